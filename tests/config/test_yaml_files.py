"""YAML text and files: what they mean, what is refused with which line, and that dumped values come back."""

from __future__ import annotations

import math
import os
import random
from pathlib import Path

import pytest
from config_examples import Adam

from ensemble.config.mistakes import ConfigError
from ensemble.config.overrides import apply_override
from ensemble.config.parsing import parse
from ensemble.config.yaml_files import dump_yaml, load_text, load_yaml

INDENTED = "; indent it as the lines that it belongs to"


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


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1e5", 1e5),
        ("1E5", 1e5),
        ("-2E+3", -2000.0),
        ("+1e2", 100.0),
        ("1.5e3", 1500.0),
        ("1.e3", 1000.0),
        (".5e3", 500.0),
        ("-.5E+3", -500.0),
        ("-.5", -0.5),
        ("1.5", 1.5),
        ("1.", 1.0),
        ("3", 3),
        ("-3", -3),
        ("1e", "1e"),
        ("e5", "e5"),
        ("1e-", "1e-"),
        ("1e5x", "1e5x"),
        ("1e5 x", "1e5 x"),
        ("0x1e5", 0x1E5),
        ("08", "08"),
        (".", "."),
        ("'1e-4'", "1e-4"),
        ('"1e5"', "1e5"),
        ("'3'", "3"),
    ],
)
def test_numbers_and_what_looks_like_them(text: str, value: object) -> None:
    loaded = load_text(f"a: {text}", "text")["a"]
    assert loaded == value and type(loaded) is type(value)
    assert load_text(f"{{a: [{text}]}}", "text") == {"a": [value]}


def test_a_number_as_people_write_it_and_in_quotes() -> None:
    assert parse(Adam, load_text("lr: 1e-4", "text")) == Adam(1e-4)
    with pytest.raises(ConfigError, match=r"^lr: expected a number, got '1e-4'$"):
        parse(Adam, load_text("lr: '1e-4'", "text"))
    with pytest.raises(ConfigError, match=r"^lr: expected a number, got inf$"):
        parse(Adam, load_text("lr: 1e999", "text"))


LOOKALIKES = """
    1e-4 1e5 -2E+3 .5 -.5 1. 1.e5 1e999 +1 -0 0 00 08 010 0x1f 0b11 0o7 1_000 1_0.5e3 1__e5 12:30 1:30.5 190:20:30
    .inf -.INF +.inf .nan NaN inf nan null Null ~ yes No on OFF true False y n 2026-01-31 2026-01-31T12:00:00 = <<
    - -- --- ... ? : # , [ ] { } & * ! | > % @ `
"""


@pytest.mark.parametrize(
    "text", [*LOOKALIKES.split(), "", " ", "1 ", " 1", "1e5\n", "\n", "1e5 # no", "- 1", "a: b", "\t1", "ü", "\x07"]
)
def test_strings_that_look_like_something_else_stay_strings(text: str) -> None:
    data = {"a": text, "l": [text, {"b": text}], text: 1}
    loaded = load_text(dump_yaml(data), "text")
    assert loaded == data
    assert type(loaded["a"]) is str and all(type(key) is str for key in loaded)


def test_random_strings_and_numbers_come_back() -> None:
    rng = random.Random(0)
    for _ in range(3000):
        text = "".join(rng.choices("0123456789+-.eE_:xo", k=rng.randint(1, 7)))
        number = math.ldexp(rng.uniform(-1, 1), rng.randint(-1000, 1000))
        data = {"text": text, "number": number, "integer": int(number) if abs(number) < 1e30 else 0}
        loaded = load_text(dump_yaml(data), "text")
        assert loaded == data, text
        assert list(map(type, loaded.values())) == [str, float, int], text


def test_keys_keep_their_order() -> None:
    assert dump_yaml({"b": 1, "a": [2]}).splitlines()[0] == "b: 1"


def test_shared_values_are_written_out(tmp_path: Path) -> None:
    shared = [1, 2]
    data = {"a": shared, "b": shared}
    assert load_yaml(write(tmp_path, dump_yaml(data))) == data


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
        (
            "a:\n  b: 1\n c: 2",
            f":3: while parsing a block mapping, expected <block end>, but found '<block mapping start>'{INDENTED}",
        ),
        ("a: 1\n b: 2", f":2: mapping values are not allowed here{INDENTED}"),
        ("a: [1,\nb: 2", ":2: while parsing a flow sequence, expected ',' or ']', but got '<stream end>'"),
        (
            "a: 1\n\tb: 2",
            ":2: while scanning for the next token, found character '\\t' that cannot start any token; "
            "indent with spaces, not with tabs",
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
