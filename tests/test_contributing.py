"""What CONTRIBUTING prints works as printed."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from models import create_model, load_plugin
from models._registry import undone_on_error

ROOT = Path(__file__).resolve().parents[1]


def blocks(title: str) -> list[str]:
    """The Python blocks of one section."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.split(f"## {title}\n")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)


def insert_before(file: Path, mark: str, text: str) -> None:
    source = file.read_text(encoding="utf-8")
    assert source.count(mark) == 1, f"{mark!r} stands {source.count(mark)} times in {file.name}"
    file.write_text(source.replace(mark, text + mark), encoding="utf-8")


def test_add_a_model(tmp_path: Path) -> None:
    (plugin,) = blocks("Add a model")
    file = tmp_path / "mine.py"
    file.write_text(plugin, encoding="utf-8")
    with pytest.raises(InterruptedError), undone_on_error():  # takes the registration back
        assert load_plugin(file) == ("tiny",)
        net, card = create_model("tiny:width=0.5@random")
        assert net(torch.rand(2, 3, 32, 32)).shape == (2, 10) and card.num_classes == 10
        raise InterruptedError


def test_add_an_objective(tmp_path: Path) -> None:
    for name in ("ensemble", "models"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "invert.py", tmp_path)
    term, spec, case = blocks("Add an objective")
    priors = tmp_path / "ensemble/objectives/image_priors.py"
    priors.write_text(priors.read_text(encoding="utf-8") + "\n\n" + term, encoding="utf-8")
    recipe = tmp_path / "ensemble/recipe.py"
    insert_before(recipe, "\n\nObjectiveSpec = ", "\n\n" + spec)
    recipe.write_text(
        re.sub(r"^(ObjectiveSpec = .*)$", r"\1 | GreynessSpec", recipe.read_text(encoding="utf-8"), flags=re.M)
    )
    build = tmp_path / "ensemble/runs/build.py"
    insert_before(build, "    card = plan.cards[0]\n    space = ", case)
    insert_before(build, "from ensemble.engine.optimizers import", "from ensemble.objectives import image_priors\n")
    (tmp_path / "mine.yaml").write_text(
        "teachers: [{model: resnet20_cifar@random}]\n"
        "objectives: [{kind: cross_entropy}, {kind: greyness, weight: 0.25}]\n"
    )
    done = subprocess.run(
        [sys.executable, "invert.py", "--recipe", "mine.yaml", "--dry-run", "--device", "cpu"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "0.25 greyness" in done.stdout
