from __future__ import annotations

import math
import os
import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest

from ensemble.config.mistakes import ConfigError
from ensemble.config.overrides import apply_override, differences
from ensemble.config.parsing import parse, to_plain
from ensemble.config.yaml_files import dump_yaml, load_yaml


@dataclass(frozen=True)
class Adam:
    kind: ClassVar[str] = "adam"
    lr: float
    betas: tuple[float, float] = (0.9, 0.999)

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ValueError(f"lr must be positive, got {self.lr}")


@dataclass(frozen=True)
class Lbfgs:
    kind: ClassVar[str] = "lbfgs"
    history: int = 10
    line_search: bool = True


@dataclass(frozen=True)
class Term:
    weight: float = 1.0
    layers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plain:
    kind: ClassVar[str] = "plain"
    scale: float = 1.0


@dataclass(frozen=True)
class Run:
    seed: int
    optimizer: Adam | Lbfgs
    name: str = "run"
    flip: bool = True
    precision: Literal["fp32", "bf16", "off"] = "fp32"
    batch: int | Literal["auto"] = "auto"
    clip: float | None = None
    targets: str | int | tuple[int | str, ...] = "all"
    terms: tuple[Term, ...] = ()
    extra: Plain | None = None
    by_layer: dict[str, float] = field(default_factory=dict)
    size: float | int = 1
    level: Literal[1, 2] = 1

    def __post_init__(self) -> None:
        found = []
        if self.seed < 0:
            found.append(f"seed must be at least 0, got {self.seed}")
        if self.name == "":
            found.append("name is empty; give one")
        if found:
            raise ConfigError(found)


def run(**values: Any) -> dict[str, Any]:
    return {"seed": 1, "optimizer": {"kind": "adam", "lr": 0.1}, **values}


def problems(data: object, cls: Any = Run, path: str = "") -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(cls, data, path)
    return caught.value.problems


def write(folder: Path, text: str, name: str = "a.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_yaml(path)
    (line,) = caught.value.problems
    assert "\n" not in line
    return line


def test_defaults_and_values() -> None:
    assert parse(Run, run()) == Run(1, Adam(0.1))
    data = run(batch=4, clip="1e-4", targets=[3, "cat"], terms=[{"weight": 2}], extra={}, by_layer={"a.b": 1})
    assert parse(Run, data) == Run(
        1,
        Adam(0.1),
        batch=4,
        clip=1e-4,
        targets=(3, "cat"),
        terms=(Term(2.0),),
        extra=Plain(),
        by_layer={"a.b": 1.0},
    )


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("clip", 3, 3.0),
        ("clip", "1e-4", 1e-4),
        ("clip", "-.5E+3", -500.0),
        ("clip", math.inf, math.inf),
        ("clip", None, None),
        ("extra", None, None),
        ("extra", {"kind": "plain", "scale": 2}, Plain(2.0)),
        ("batch", "auto", "auto"),
        ("targets", "all", "all"),
        ("targets", 7, 7),
        ("targets", [], ()),
        ("size", 3, 3),
        ("size", 3.0, 3.0),
    ],
)
def test_accepted(key: str, value: object, expected: object) -> None:
    got = getattr(parse(Run, run(**{key: value})), key)
    assert got == expected
    assert type(got) is type(expected)


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"seed": "abc"}, "seed: expected an integer, got 'abc'"),
        ({"seed": True}, "seed: expected an integer, got true"),
        ({"seed": 3.0}, "seed: expected an integer, got 3.0"),
        ({"seed": None}, "seed: expected an integer, got null"),
        ({"flip": 1}, "flip: expected true or false, got 1"),
        ({"flip": "yes"}, "flip: expected true or false, got 'yes'"),
        ({"name": False}, "name: expected a string, got false; put it in quotes"),
        ({"name": None}, "name: expected a string, got null"),
        ({"name": "x" * 99, "seed": [1]}, "seed: expected an integer, got a list"),
        ({"clip": math.nan}, "clip: expected a number or null, got nan"),
        ({"clip": "nan"}, "clip: expected a number or null, got 'nan'"),
        ({"clip": "1e999"}, "clip: expected a number or null, got '1e999'"),
        ({"clip": True}, "clip: expected a number or null, got true"),
        (
            {"precision": "bf61"},
            "precision: expected one of 'fp32', 'bf16', 'off', got 'bf61'; did you mean 'bf16'?",
        ),
        (
            {"precision": False},
            "precision: expected one of 'fp32', 'bf16', 'off', got false; put it in quotes",
        ),
        ({"batch": "aut"}, "batch: expected an integer or 'auto', got 'aut'; did you mean 'auto'?"),
        ({"targets": [1, 2.5]}, "targets[1]: expected an integer or a string, got 2.5; put it in quotes"),
        ({"terms": {"weight": 1}}, "terms: expected a list, got a mapping"),
        ({"terms": [{}, 3]}, "terms[1]: expected a mapping, got 3"),
        ({"terms": [{}, {"wieght": 3}]}, "terms[1].wieght: unknown key; did you mean 'weight'?"),
        ({"terms": [{"zzz": 3}]}, "terms[0].zzz: unknown key; valid keys: weight, layers"),
        ({"terms": [{3: 3}]}, "terms[0]: the key 3 is not a string; put it in quotes"),
        ({"by_layer": {"layer1.0": "x"}}, "by_layer['layer1.0']: expected a number, got 'x'"),
        ({"by_layer": {1: 1}}, "by_layer: the key 1 is not a string; put it in quotes"),
        ({"by_layer": []}, "by_layer: expected a mapping, got a list"),
        ({"optimizer": {"kind": "adam"}}, "optimizer.lr: missing"),
        (
            {"optimizer": {"kind": "adma", "lr": 1}},
            "optimizer.kind: unknown kind 'adma'; did you mean 'adam'?",
        ),
        ({"optimizer": {"kind": [1]}}, "optimizer.kind: unknown kind a list; valid kinds: adam, lbfgs"),
        ({"optimizer": {"lr": 1}}, "optimizer.kind: missing; valid kinds: adam, lbfgs"),
        ({"optimizer": "adam"}, "optimizer: expected a mapping, got 'adam'"),
        (
            {"optimizer": {"kind": "lbfgs", "lr": 1}},
            "optimizer.lr: unknown key; valid keys: kind, history, line_search",
        ),
        (
            {"optimizer": {"kind": "adam", "lr": 1, "betas": [1]}},
            "optimizer.betas: expected a list of 2, got 1",
        ),
        ({"optimizer": {"kind": "adam", "lr": -1}}, "optimizer: lr must be positive, got -1.0"),
        ({"extra": {"kind": "adam"}}, "extra.kind: unknown kind 'adam'; valid kinds: plain"),
        ({"extra": 5}, "extra: expected a mapping or null, got 5"),
        ({"level": True}, "level: expected one of 1, 2, got true"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
    ],
)
def test_refused_with_one_line(values: dict[str, Any], line: str) -> None:
    assert problems(run(**values)) == [line]


def test_an_integer_too_large_for_a_float_is_refused() -> None:
    assert len(problems(run(clip=10**400))) == 1


def test_data_that_is_not_a_mapping() -> None:
    assert problems([1]) == ["expected a mapping, got a list"]
    assert problems(None, path="recipe") == ["recipe: expected a mapping, got null"]


def test_all_problems_at_once_below_the_given_path() -> None:
    data = {
        "sede": 3,
        "optimizer": {"kind": "adam", "lr": -1, "beta": 2},
        "terms": [{"weight": "x"}, {"layers": [1, "a", 2]}],
        "flip": "no",
    }
    assert problems(data, path="job") == [
        "job.sede: unknown key; did you mean 'seed'?",
        "job.seed: missing",
        "job.optimizer.beta: unknown key; did you mean 'betas'?",
        "job.optimizer: lr must be positive, got -1.0",
        "job.flip: expected true or false, got 'no'",
        "job.terms[0].weight: expected a number, got 'x'",
        "job.terms[1].layers[0]: expected a string, got 1; put it in quotes",
        "job.terms[1].layers[2]: expected a string, got 2; put it in quotes",
    ]


def test_several_problems_of_one_post_init() -> None:
    found = problems(run(seed=-1, name=""), path="job")
    assert found == ["job: seed must be at least 0, got -1", "job: name is empty; give one"]


def test_error_text_is_a_line_for_each_and_survives_pickling() -> None:
    error = ConfigError(["a: missing", "b: missing"])
    assert str(error) == "a: missing\nb: missing"
    assert pickle.loads(pickle.dumps(error)).problems == error.problems


@pytest.mark.parametrize(
    "instance",
    [
        Run(1, Adam(1e-5)),
        Run(
            2,
            Lbfgs(3, False),
            name="1e-4",
            flip=False,
            precision="off",
            batch=8,
            clip=math.inf,
            targets=(1, "2"),
        ),
        Run(3, Adam(1e22, (0.5, 1e-300)), name="no", targets="12:30", extra=Plain(0.1), size=2.0),
        Run(4, Lbfgs(), name="2026-01-31 # ü\n 'x'", terms=(Term(0.1 + 0.2, ("a", "off")), Term())),
        Run(5, Lbfgs(), targets=4, by_layer={"layer1.0": -0.0, "<<": 1.0, "": 2.0, "on": 3.0}),
    ],
)
def test_round_trip_through_text(tmp_path: Path, instance: Run) -> None:
    plain = to_plain(instance)
    assert parse(Run, plain) == instance
    loaded = load_yaml(write(tmp_path, dump_yaml(plain)))
    assert loaded == plain
    assert parse(Run, loaded) == instance
    assert to_plain(parse(Run, loaded)) == plain


def test_plain_has_kind_first_lists_and_its_own_order() -> None:
    plain = to_plain(Run(1, Adam(0.1)))
    assert list(plain["optimizer"].items()) == [("kind", "adam"), ("lr", 0.1), ("betas", [0.9, 0.999])]
    assert dump_yaml({"b": 1, "a": [2]}).splitlines()[0] == "b: 1"


def test_shared_values_are_written_out(tmp_path: Path) -> None:
    shared = [1, 2]
    data = {"a": shared, "b": shared}
    assert load_yaml(write(tmp_path, dump_yaml(data))) == data


def test_a_float_as_people_write_it(tmp_path: Path) -> None:
    data = load_yaml(write(tmp_path, "kind: adam\nlr: 1e-4\n"))
    assert data["lr"] == "1e-4"
    assert parse(Adam, data) == Adam(1e-4)


def test_a_tag_is_refused_and_not_executed(tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    path = write(tmp_path, f"a: 1\nb: !!python/object/apply:os.system ['touch {mark}']\n")
    assert refusal(path) == f"{path}:2: the tag !!python/object/apply:os.system is not allowed; write a plain value"
    assert not mark.exists()
    with pytest.raises(ConfigError, match="the tag"):
        apply_override({}, f"a=!!python/object/apply:os.system ['touch {mark}']")
    assert not mark.exists()


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("a: !!str 5", ":1: the tag !!str is not allowed; write a plain value"),
        ("a: !mine {b: 1}", ":1: the tag !mine is not allowed; write a plain value"),
        ("!mine\na: 1", ":1: the tag !mine is not allowed; write a plain value"),
        ("a: ! x", ":1: the tag ! is not allowed; write a plain value"),
        ("? !mine a\n: 1", ":1: the tag !mine is not allowed; write a plain value"),
        ("a: 1\nb: 2\na: 3", ":3: duplicate key 'a'"),
        ("x:\n  - b: {c: 1, c: 2}", ":2: duplicate key 'c'"),
        ("a: &x [1]\nb: *x", ":2: the alias *x is not allowed; write the value out"),
        ("a: &x [*x]", ":1: the alias *x is not allowed; write the value out"),
        ("a:\n  <<: {b: 1}", ":2: the merge key << is not allowed; write the values out"),
        ("a: [1,\nb: 2", ":2: while parsing a flow sequence, expected ',' or ']', but got '<stream end>'"),
        (
            "a: 1\n\tb: 2",
            ":2: while scanning for the next token, found character '\\t' that cannot start any token",
        ),
        ("a: 1\nb: \x00", ":2: special characters are not allowed"),
        ("a: 1\n---\nb: 2", ":2: expected a single document in the stream, but found another document"),
        ("a: 1\nb: 2026-13-01", ":2: month must be in 1..12"),
        ("? [a]\n: 1", ":1: while constructing a mapping, found unhashable key"),
        ("- 1", ": expected a mapping, got a list"),
        ("", ": expected a mapping, got null"),
        ("a: " + "[" * 5000, ": nested too deeply"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, text: str, rest: str) -> None:
    path = write(tmp_path, text)
    assert refusal(path).startswith(f"{path}{rest}")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    missing = tmp_path / "missing.yaml"
    assert refusal(missing) == f"{missing}: cannot be read: {os.strerror(2)}"
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"a: 1\nb: \xe9\n")
    assert refusal(latin) == f"{latin}:2: not UTF-8 text"


def test_extends_merges_mappings_and_replaces_the_rest(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    write(tmp_path / "base", "a: {x: 1, y: {z: 2, w: 3}}\nb: [1, 2]\nc: 1\nd: 5\no: {kind: adam, lr: 1}\n")
    path = write(
        tmp_path,
        "extends: base/a.yaml\na: {y: {z: 9}}\nb: [3]\nc: {k: 1}\nd: null\no: {kind: lbfgs}\n",
        "b.yaml",
    )
    assert load_yaml(path) == {
        "a": {"x": 1, "y": {"z": 9, "w": 3}},
        "b": [3],
        "c": {"k": 1},
        "d": None,
        "o": {"kind": "lbfgs"},
    }
    same_kind = write(tmp_path, "extends: base/a.yaml\no: {kind: adam, beta: 2}\n", "c.yaml")
    assert load_yaml(same_kind)["o"] == {"kind": "adam", "lr": 1, "beta": 2}


def test_extends_is_one_level_and_names_a_file(tmp_path: Path) -> None:
    write(tmp_path, "a: 1", "one.yaml")
    write(tmp_path, "extends: one.yaml", "two.yaml")
    three = write(tmp_path, "extends: two.yaml", "three.yaml")
    assert refusal(three) == f"{three}: extends: two.yaml itself extends a file; only one level is allowed"
    itself = write(tmp_path, "extends: itself.yaml", "itself.yaml")
    assert "only one level" in refusal(itself)
    listed = write(tmp_path, "extends: [one.yaml]", "listed.yaml")
    assert refusal(listed) == f"{listed}: extends: expected the name of a file, got a list"
    broken = write(tmp_path, "a: 1\na: 2", "broken.yaml")
    assert refusal(write(tmp_path, "extends: broken.yaml", "over.yaml")) == f"{broken}:2: duplicate key 'a'"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("a.b=3", {"a": {"b": 3, "l": [1, {"c": 2}]}, "n": None}),
        ("a.l[1].c=x", {"a": {"b": 1, "l": [1, {"c": "x"}]}, "n": None}),
        ("a.l[0]=[1, 2]", {"a": {"b": 1, "l": [[1, 2], {"c": 2}]}, "n": None}),
        ("a={kind: k}", {"a": {"kind": "k"}, "n": None}),
        ("n.p.q=true", {"a": {"b": 1, "l": [1, {"c": 2}]}, "n": {"p": {"q": True}}}),
        ("m.p=a=b", {"a": {"b": 1, "l": [1, {"c": 2}]}, "n": None, "m": {"p": "a=b"}}),
        ("n['x.0=']=", {"a": {"b": 1, "l": [1, {"c": 2}]}, "n": {"x.0=": None}}),
        ("['n']=1e-4", {"a": {"b": 1, "l": [1, {"c": 2}]}, "n": "1e-4"}),
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
        ("l[2]=1", "l has 2 entries, counted from 0; there is no [2]"),
        ("s.x=1", "s is not a mapping but 3"),
        ("l.x=1", "l is not a mapping but a list"),
        ("s[0]=1", "s is not a list but 3"),
        ("new[0]=1", "new is not a list but null"),
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
