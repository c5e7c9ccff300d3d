"""Recipes of preferred images: each says where it comes from, and takes two steps with untrained networks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ensemble import cli
from ensemble.config.yaml_files import load_yaml
from ensemble.objectives.activation import Activation
from ensemble.recipe import parse_recipe

FOLDER = Path(__file__).parents[2] / "recipes" / "units"
FILES = sorted(FOLDER.glob("*.yaml"))


def test_all_are_there() -> None:
    ways = [f"cnnpref_{way}_{level}" for way in ("gd", "lbfgs") for level in ("higher", "lower")]
    ways += [f"cnnpref_generator_{way}_{level}" for way in ("gd", "lbfgs") for level in ("higher", "lower")]
    assert {*ways, "lucent", "maco"} == {file.stem for file in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_each_takes_two_steps(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = path.read_text(encoding="utf-8")
    recipe = parse_recipe(load_yaml(path))
    assert "Departures:" in text and f"--recipe units/{path.stem}" in text
    (term,) = recipe.objectives
    assert isinstance(term, Activation) and recipe.best_every == 0
    model = recipe.teachers[0].model.partition("@")[0]
    command = ["--recipe", str(path), "--models", f"{model}@random", "--iterations", "2", "--device", "cpu"]
    small = ["--set", "images_per_class=2", "--precision", "fp32", "--output", str(tmp_path)]
    assert cli.main([*command, *small]) == 0, capsys.readouterr().err
    assert json.loads((tmp_path / "summary.json").read_text())["teachers"]
