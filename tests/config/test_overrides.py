"""Overrides by path, and the paths at which two configurations differ."""

from __future__ import annotations

from typing import Any

import pytest
from config_examples import Adam, Lbfgs, Run, Term

from ensemble.config.mistakes import ConfigError
from ensemble.config.overrides import apply_override, differences
from ensemble.config.parsing import parse, to_plain


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("a.b=3", {"a": {"b": 3, "l": [1, {"c": 2}]}, "n": None}),
        ("a.l[1].c=x", {"a": {"b": 1, "l": [1, {"c": "x"}]}, "n": None}),
        ("a.l[0]=[1, 2]", {"a": {"b": 1, "l": [[1, 2], {"c": 2}]}, "n": None}),
        ("n[0]=4", {"a": {"b": 1, "l": [1, {"c": 2}]}, "n": [4]}),
        ("a.l[2]={c: 3}", {"a": {"b": 1, "l": [1, {"c": 2}, {"c": 3}]}, "n": None}),
        ("a={kind: k}", {"a": {"kind": "k"}, "n": None}),
        ("n.p.q=true", {"a": {"b": 1, "l": [1, {"c": 2}]}, "n": {"p": {"q": True}}}),
        ("m.p=a=b", {"a": {"b": 1, "l": [1, {"c": 2}]}, "n": None, "m": {"p": "a=b"}}),
        ("n['x.0=']=", {"a": {"b": 1, "l": [1, {"c": 2}]}, "n": {"x.0=": None}}),
        ("['n']=1e-4", {"a": {"b": 1, "l": [1, {"c": 2}]}, "n": 1e-4}),
        ("['n']='1e-4'", {"a": {"b": 1, "l": [1, {"c": 2}]}, "n": "1e-4"}),
    ],
)
def test_override(override: str, expected: dict[str, Any]) -> None:
    data = {"a": {"b": 1, "l": [1, {"c": 2}]}, "n": None}
    assert apply_override(data, override) == expected
    assert data == {"a": {"b": 1, "l": [1, {"c": 2}]}, "n": None}


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("a", "expected path=value"),
        ("=1", "expected path=value"),
        ("", "expected path=value"),
        (".a=1", "expected path=value"),
        ("a..b=1", "expected path=value"),
        ("a.=1", "expected path=value"),
        ("l[=1", "expected path=value"),
        ("l[x]=1", "expected path=value"),
        ("l[-1]=1", "expected path=value"),
        ("l[0]b=1", "expected path=value"),
        ("a b=1", "expected path=value"),
        ("l[3]=1", "l has 2 entries, counted from 0; there is no [3]"),
        ("l[2].x=1", "l has 2 entries, counted from 0; there is no [2]"),
        ("s.x=1", "s is not a mapping but 3"),
        ("l.x=1", "l is not a mapping but a list"),
        ("s[0]=1", "s is not a list but 3"),
        ("new[1]=1", "new has 0 entries, counted from 0; there is no [1]"),
        ("[0]=1", "the top level is not a list but a mapping"),
        ("s=[1", ":1: while parsing a flow sequence, expected ',' or ']'"),
        ("s={a: 1, a: 2}", "duplicate key 'a'"),
    ],
)
def test_overrides_that_are_refused(override: str, part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        apply_override({"s": 3, "l": [1, 2]}, override)
    (line,) = caught.value.problems
    assert line.startswith(f"override {override!r}")
    assert part in line
    assert "\n" not in line


def test_differences() -> None:
    a = to_plain(Run(1, Adam(0.1), terms=(Term(), Term(2.0)), by_layer={"x.0": 1.0}))
    assert differences(a, to_plain(parse(Run, a))) == []
    b = to_plain(Run(2, Adam(0.2), terms=(Term(), Term(3.0)), by_layer={"x.0": 2.0, "y": 1.0}, targets=(1,)))
    assert differences(a, b) == [
        "seed",
        "optimizer.lr",
        "targets",
        "terms[1].weight",
        "by_layer['x.0']",
        "by_layer.y",
    ]
    assert differences(a, to_plain(Run(1, Lbfgs(), terms=(Term(),), by_layer={"x.0": 1.0}))) == [
        "optimizer.kind",
        "terms",
    ]
    assert differences({"a": True}, {"a": 1}) == ["a"]
    assert differences({"a": 1}, {"a": 1.0}) == []


def test_a_path_from_differences_can_be_overridden() -> None:
    a, b = {"x.0": {"l": [1]}}, {"x.0": {"l": [2]}}
    (path,) = differences(a, b)
    assert apply_override(a, f"{path}=2") == b
