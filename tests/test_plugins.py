"""Files that add models, objectives, parameterizations, optimisers and starts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ensemble.config.kinds import undone_on_error as kinds_undone
from ensemble.image.parameterization import Parameterization
from ensemble.objectives.terms import Objective
from ensemble.plugins import load_plugin
from ensemble.recipe import parse_recipe
from ensemble.runs.dataset_folder import DatasetFolder
from ensemble.runs.job import recipe_for
from ensemble.runs.recipes import assembled
from models import list_models
from models._table import undone_on_error as models_undone

PLUGIN = """
from dataclasses import dataclass
import torch
from torch import nn
from ensemble import Adam, Fourier, ImageTerm, ModelCard, Optimizer, Start, register_model

@register_model(ModelCard("from_plugin", "test", 8, 2, mean=(0.5,) * 3, std=(0.5,) * 3))
def from_plugin(num_classes: int = 2) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 2, 8), nn.Flatten())

@dataclass(frozen=True)
class Whiteness(ImageTerm, kind="whiteness"):
    weight: float = 1.0
    def __call__(self, view):
        return 1 - view.mean()

@dataclass(frozen=True)
class Blurred(Fourier, kind="blurred"):
    decay: float = 2.0

@dataclass(frozen=True)
class Plain(Optimizer, kind="sgd"):
    momentum: float = 0.9
    def make(self, parameters, steps):
        return torch.optim.SGD(parameters, lr=self.lr, momentum=self.momentum)

@dataclass(frozen=True)
class White(Start, kind="white"):
    def set(self, image, rng):
        image.set_image(torch.ones(image.n, 3, image.size, image.size))
"""


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """What a test registers is taken back."""
    with pytest.raises(InterruptedError), kinds_undone(), models_undone():
        yield
        raise InterruptedError


def recipe(**fields: object) -> dict[str, object]:
    return {"teachers": [{"model": "from_plugin@random"}], **fields}


def test_one_file_adds_to_every_table(tmp_path: Path) -> None:
    from ensemble import invert

    file = tmp_path / "everything.py"
    file.write_text(PLUGIN)
    names = load_plugin(file)
    assert names[0] == "from_plugin" and any("whiteness" in name for name in names)
    chosen = recipe(
        objectives=[{"kind": "cross_entropy"}, {"kind": "whiteness", "weight": 2}],
        image={"parameterization": {"kind": "blurred"}, "start": {"kind": "white"}},
        optimizer={"kind": "sgd", "lr": 0.01, "momentum": 0.5},
    )
    parsed = parse_recipe(chosen)
    assert parsed.optimizer.kind == "sgd" and parsed.image.parameterization == Parameterization.kinds["blurred"]()
    with pytest.warns(UserWarning):
        results = invert(parsed, iterations=2, device="cpu", precision="fp32", progress=False)
    assert results is not None and results.images.mean() > 0.9


@pytest.mark.parametrize("mistake", ["1 / 0", "raise SystemExit", "class Broken(ImageTerm, kind='tv'): pass"])
def test_a_plugin_that_fails_is_undone_whole(tmp_path: Path, mistake: str) -> None:
    file = tmp_path / "broken.py"
    file.write_text(PLUGIN + mistake)
    before = set(Objective.kinds)
    with pytest.raises(ValueError, match=r"broken\.py, line"):
        load_plugin(file)
    assert set(Objective.kinds) == before and not list_models("from_plugin")
    with pytest.raises(ValueError, match="unknown kind 'whiteness'"):
        parse_recipe(recipe(objectives=[{"kind": "whiteness"}]))
    file.write_text(PLUGIN)  # mended
    load_plugin(file)
    assert parse_recipe(recipe(objectives=[{"kind": "whiteness"}])).objectives[0].name == "whiteness"


def test_a_kind_that_is_not_finished_names_what_it_lacks(tmp_path: Path) -> None:
    file = tmp_path / "bare.py"
    file.write_text("from ensemble import ImageTerm\nclass Bare(ImageTerm, kind='bare'):\n    weight: float = 1.0\n")
    with pytest.raises(ValueError, match=r"bare\.py.*Bare: .*@dataclass\(frozen=True\)"):
        load_plugin(file)
    assert "bare" not in Objective.kinds


def test_a_term_is_added_to_those_that_are_there(tmp_path: Path) -> None:
    file = tmp_path / "whiteness.py"
    file.write_text(PLUGIN)
    load_plugin(file)
    found = assembled(recipe(), {}, ["objectives[3]={kind: whiteness, weight: 2}"])
    assert [term.kind for term in found.objectives] == ["cross_entropy", "bn_matching", "tv", "whiteness"]


def test_a_kind_much_like_another_is_a_plugins_in_a_run_that_goes_on(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("teachers: [{model: resnet20_cifar}]\nobjectives: [{kind: tv2}]\n")
    with pytest.raises(ValueError, match=r"did you mean 'tv'.*a plugin's comes with --plugin FILE"):
        recipe_for(None, {}, [], tmp_path, resume=True)


def test_a_run_that_goes_on_without_its_plugin_says_so(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("teachers: [{model: resnet20_cifar}]\nobjectives: [{kind: whiteness}]\n")
    with pytest.raises(
        ValueError, match=r"unknown kind 'whiteness'.*a plugin's comes with --plugin FILE, in Python by [^;]*$"
    ) as caught:
        recipe_for(None, {}, [], tmp_path, resume=True)
    assert "\n" not in str(caught.value)
    with pytest.raises(
        ValueError, match=r"holds a dataset.*unknown kind 'whiteness'.*a plugin's comes with --plugin FILE"
    ):
        DatasetFolder(tmp_path).read_recipe()
