"""Which classes are meant."""

from __future__ import annotations

import pytest

from ensemble.runs.targets import parse_targets

NAMES = ("ant", "crane", "bee", "Crane")


def test_names_and_indices() -> None:
    assert parse_targets(["Bee", 0, "1-2"], 4, NAMES) == (2, 0, 1, 2)


def test_two_classes_of_one_name_are_told_apart_by_their_indices() -> None:
    with pytest.raises(ValueError, match=r"classes 1 and 3 are all called 'crane'; give the index"):
        parse_targets(["crane"], 4, NAMES)
    assert parse_targets([1, "ant"], 4, NAMES) == (1, 0)


def test_what_is_no_class_is_told_with_the_nearest() -> None:
    with pytest.raises(
        ValueError, match=r"no class is called 'cranes'; did you mean 'crane'\?.*class 7 is out of range"
    ):
        parse_targets(["cranes", 7], 4, NAMES)


def test_further_names_such_as_wordnets() -> None:
    assert parse_targets(["n02", "bee", "n01"], 4, NAMES, {"n01": 0, "n02": 1}) == (1, 2, 0)
    with pytest.raises(ValueError, match=r"no class is called 'n03'"):
        parse_targets(["n03"], 4, NAMES, {"n01": 0, "n02": 1})
