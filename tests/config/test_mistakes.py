"""The error that tells of several mistakes, and how values are shown in it."""

from __future__ import annotations

import pickle

import pytest

from ensemble.config.mistakes import ConfigError, at, join, nearest, show


def test_error_text_is_a_line_for_each_and_survives_pickling() -> None:
    error = ConfigError(["a: missing", "b: missing"])
    assert str(error) == "a: missing\nb: missing"
    assert pickle.loads(pickle.dumps(error)).problems == error.problems


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (False, "false"),
        (1.0, "1.0"),
        ("a'b", '"a\'b"'),
        ({"a": 1}, "a mapping"),
        ([1], "a list"),
        ((1,), "a list"),
        ("x" * 99, "'" + "x" * 56 + "..."),
        (ValueError("two\n  lines"), "two lines"),
    ],
)
def test_values_are_shown_in_one_short_line(value: object, text: str) -> None:
    assert show(value) == text


def test_nearest_name_or_all() -> None:
    assert nearest("wieght", ["weight", "layers"], "keys") == "did you mean 'weight'?"
    assert nearest("zzz", ["weight", "layers"], "keys") == "valid keys: weight, layers"
    assert nearest(3, [], "kinds") == "valid kinds: none"


def test_paths() -> None:
    assert join("", "a") == "a" and join("a[1]", "b-c") == "a[1].b-c" and join("a", "x.0") == "a['x.0']"
    assert at("", "wrong") == "wrong" and at("a", "wrong") == "a: wrong"
