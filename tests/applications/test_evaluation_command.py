"""python -m ensemble.evaluation on a run's folder and real images."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import ONE, PLUGIN
from PIL import Image

from ensemble.applications.evaluate import main

NAMES = ("star", "square", "circle")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    noise = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in NAMES:
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for i in range(8):
                Image.fromarray(noise.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return tmp_path / "data"


@pytest.fixture
def results(run, tmp_path: Path) -> Path:
    short = ["--iterations", "2", "--targets", "square", "star", "--images-per-class", "4"]
    assert run(*ONE, *short, "--output", tmp_path / "out").code == 0
    return tmp_path / "out"


@pytest.fixture
def evaluate(monkeypatch, capsys):
    def call(*arguments: object) -> tuple[int, str, list[str]]:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["evaluation", *map(str, arguments)])
        code = main()
        captured = capsys.readouterr()
        return code, captured.out, captured.err.splitlines()

    return call


def test_a_folder_is_judged_beside_real_images(evaluate, data, results, tmp_path):
    judge = [*PLUGIN[:2], "--judge", "tiny_b@random", "--data", data]
    code, out, errors = evaluate(results, *judge, "--json", tmp_path / "rows.json")
    assert code == 0 and not errors
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert list(rows) == [str(results), "8 real training images"] and "8 real training images" in out
    per_class = rows["8 real training images"]["accuracy"]["per_class"]
    assert per_class[0] is None or np.isnan(per_class[0])  # circles were not asked for


def test_mistakes(evaluate, data, results, tmp_path):
    judge = [*PLUGIN[:2], "--judge", "tiny_b@random", "--data", data]
    code, _, errors = evaluate(tmp_path / "nowhere", *judge)
    assert code == 2 and len(errors) == 1 and "give the results folder of a finished run" in errors[0]
    code, _, errors = evaluate(results, *PLUGIN[:2], "--judge", "tiny_renamed@random", "--data", data)
    assert code == 2 and len(errors) == 1 and "tiny_renamed has other classes" in errors[0]
    written = results / "recipe.yaml"
    recipe = yaml.safe_load(written.read_text())
    recipe["teachers"][0]["model"] = "unknown_here"
    written.write_text(yaml.safe_dump(recipe))
    assert evaluate(results, *judge)[0] == 0  # what cannot be known is not refused
