"""`invert.py schema`: the shipped schemas are what it prints, and accept what the recipes' parsers accept."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

import ensemble.plugins
from ensemble import cli
from ensemble.config.kinds import undone_on_error
from ensemble.config.yaml_files import load_text

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "recipes"
FILES = sorted(file for file in RECIPES.rglob("*.yaml") if file.parent.name != "search")  # those are spaces
SCHEMAS = {
    "": RECIPES / "recipe.schema.json",
    "training": RECIPES / "training/training.schema.json",
    "distillation": RECIPES / "distillation/distillation.schema.json",
    "leakage": RECIPES / "leakage/leakage.schema.json",
}
"""By the folder of the recipes, which is the option of the command."""
each_recipe = pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(RECIPES).as_posix())


def kind_of(file: Path) -> str:
    first = file.relative_to(RECIPES).parts[0]
    return first if first in SCHEMAS else ""


def validator(kind: str) -> Draft202012Validator:
    schema = json.loads(SCHEMAS[kind].read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def read(file: Path) -> Any:
    return load_text(file.read_text(encoding="utf-8"), str(file))


def test_all_recipes_are_looked_at() -> None:
    there = [Path(folder, name) for folder, _, names in os.walk(RECIPES) for name in names]
    recipes = {file for file in there if file.suffix in (".yaml", ".yml") and file.parent.name != "search"}
    assert set(FILES) == recipes and len(FILES) == len(recipes) >= 43
    assert set(map(kind_of, FILES)) == set(SCHEMAS)


@pytest.mark.parametrize("kind", SCHEMAS)
def test_the_shipped_schemas_are_what_the_command_prints(kind: str) -> None:
    words = [sys.executable, "invert.py", "schema", *([f"--{kind}"] if kind else [])]
    # a process of its own knows the kinds that other tests have added no more than a user's does
    printed = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True, encoding="utf-8").stdout
    written = SCHEMAS[kind].read_text(encoding="utf-8")
    assert printed == written, f"{' '.join(words[1:])} > {SCHEMAS[kind].relative_to(ROOT)} renews it"


@each_recipe
def test_recipes_name_their_schema(file: Path) -> None:
    first = file.read_text(encoding="utf-8").splitlines()[0]
    named = re.fullmatch(r"# yaml-language-server: \$schema=(\S+)", first)
    assert named, first
    assert (file.parent / named[1]).resolve() == SCHEMAS[kind_of(file)] and SCHEMAS[kind_of(file)].is_file()


@each_recipe
def test_schemas_accept_the_shipped_recipes(file: Path) -> None:
    errors = [error.message for error in validator(kind_of(file)).iter_errors(read(file))]
    assert not errors


def with_misspelt_keys(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[tuple[Any, ...], Any]]:
    """The data with one key more, in each of its mappings in turn; `layers` and `classes` take any key."""
    if isinstance(data, list):
        below = list(enumerate(data))
    elif isinstance(data, dict) and path[-1:] not in (("layers",), ("classes",)):
        below = list(data.items())
    else:
        return []
    found = [(path, {**data, "iteratoins": 3})] if isinstance(data, dict) else []
    for key, value in below:
        for where, changed in with_misspelt_keys(value, (*path, key)):
            copied = [*data] if isinstance(data, list) else {**data}
            copied[key] = changed
            found.append((where, copied))
    return found


@each_recipe
def test_schemas_refuse_a_misspelt_key(file: Path) -> None:
    check, variants = validator(kind_of(file)), with_misspelt_keys(read(file))
    assert variants[0][0] == ()
    for where, data in variants:
        assert not check.is_valid(data), where


def test_a_misspelt_key_is_looked_for_everywhere() -> None:
    places = {where for where, _ in with_misspelt_keys(read(RECIPES / "quickstart.yaml"))}
    assert places >= {(), ("teachers", 0), ("image", "start"), ("objectives", 2), ("stages", 0), ("runtime",)}
    assert ("objectives", 1, "layers") not in places


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("", {}),
        ("", {"teachers": []}),
        ("", {"teachers": [{"model": "a", "weight": 0}]}),
        ("", {"teachers": [{"model": "a"}], "image": {"start": {"kind": "noise", "path": None}}}),
        ("", {"teachers": [{"model": "a"}], "image": {"start": {"kind": "image"}}}),
        ("", {"teachers": [{"model": "a"}], "objectives": [{"weight": 1.0}]}),
        ("", {"extends": 3}),
        ("", {"extends": "quickstart.yaml", "stages": []}),
        ("training", {"model": "a"}),
        ("training", {"model": "a", "data": {}}),
        ("training", {"model": "a", "data": {"path": "b"}, "schedule": {"lr": 0}}),
        ("training", {"model": "a", "data": {"path": "b"}, "schedule": {"precision": "fp16"}}),
        ("distillation", {"student": "a"}),
        ("distillation", {"student": "a", "dataset": []}),
        ("distillation", {"student": "a", "dataset": ["b"], "lesson": {"kind": "hard", "temperature": 1}}),
    ],
)
def test_what_schemas_refuse(kind: str, data: dict[str, Any]) -> None:
    assert not validator(kind).is_valid(data)


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("", {"teachers": [{"model": "a"}]}),
        ("", {"extends": "quickstart.yaml"}),
        ("", {"teachers": [{"model": "a"}], "optimizer": {"lr": 1}}),
        ("", {"teachers": [{"model": "a"}], "image": {"start": {"scale": 1}, "size": None}}),
        ("training", {"model": "a", "data": {"path": "b"}}),
        ("training", {"extends": "a.yaml", "model": "b"}),
        ("distillation", {"student": "a", "dataset": ["b"], "test": {"path": "c"}}),
        ("distillation", {"student": "a", "dataset": ["b"], "lesson": {"kind": "stored", "temperature": 1}}),
    ],
)
def test_what_schemas_accept(kind: str, data: dict[str, Any]) -> None:
    assert validator(kind).is_valid(data)


def test_docstrings_are_descriptions() -> None:
    schema = json.loads(SCHEMAS["training"].read_text(encoding="utf-8"))
    assert schema["description"] == "One network, one data set, one schedule."
    lr = schema["$defs"]["Schedule"]["properties"]["lr"]
    assert lr["description"] == "Peak learning rate, for a loss averaged over the batch." and lr["default"] == 0.2
    assert "relative to this one" in schema["properties"]["extends"]["description"]


PLUGIN = """
from dataclasses import dataclass
from ensemble.image.start import Start

@dataclass(frozen=True)
class Stripes(Start, kind="stripes_of_a_plugin"):
    '''Stripes.'''
    width: int = 3

    def set(self, image, rng):
        pass
"""


@pytest.mark.parametrize("by_entry_point", [False, True])
def test_kinds_of_plugins_are_in_it(
    by_entry_point: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = {
        "teachers": [{"model": "a"}],
        "image": {"start": {"kind": "stripes_of_a_plugin", "width": 4}},
    }
    assert not validator("").is_valid(recipe)
    plugin = tmp_path / "plugin.py"
    plugin.write_text(PLUGIN)
    words = ["schema"]
    if by_entry_point:
        monkeypatch.setattr(ensemble.plugins, "load_entry_points", lambda: ensemble.plugins.load_plugin(plugin))
    else:
        words += ["--plugin", str(plugin)]
    with pytest.raises(KeyboardInterrupt), undone_on_error():  # which takes the kind back
        assert cli.main(words) == 0
        raise KeyboardInterrupt
    schema = json.loads(capsys.readouterr().out)
    assert Draft202012Validator(schema).is_valid(recipe)
    recipe["image"]["start"]["width"] = "wide"
    assert not Draft202012Validator(schema).is_valid(recipe)


def test_options_that_are_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["schema", "--trainnig"]) == 2
    assert (
        "unrecognized arguments: --trainnig (did you mean --training?); see invert.py schema --help"
        in capsys.readouterr().err
    )
