"""Reference networks: what they say is trained once."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from ensemble.data.labelled import LabelledImages
from ensemble.privacy import training
from ensemble.training.recipe import TrainingRecipe, parse_training_recipe

RECIPE = {
    "model": "resnet20_cifar:num_classes=3@random",
    "data": {"path": "nowhere"},
    "schedule": {"epochs": 1, "batch_size": 16, "precision": "fp32"},
}


class Haste(NamedTuple):
    quick: bool
    seed: int


def some(first: int) -> LabelledImages:
    images = torch.randint(0, 256, (24, 3, 32, 32), generator=torch.Generator().manual_seed(first), dtype=torch.uint8)
    return LabelledImages(images, torch.arange(24) % 3, ("a", "b", "c"))


def told(recipe: TrainingRecipe, count: int, kept: Path | None, seed: int = 0, first: int = 1):
    lines: list[str] = []
    found = training.train_shadows(recipe, count, some(first), some(9), Haste(True, seed), lines.append, kept)
    return found, [line.partition(" reference")[0] if "training" in line else "kept" for line in lines]


def test_what_a_network_says_is_kept_and_of_no_other(tmp_path: Path) -> None:
    recipe = parse_training_recipe(RECIPE)
    first, lines = told(recipe, 2, tmp_path / "kept")
    assert lines == ["training", "training"]
    again, lines = told(recipe, 3, tmp_path / "kept")
    assert lines == ["kept", "kept", "training"]
    assert torch.equal(again.margins[:2], first.margins) and torch.equal(again.inside[:2], first.inside)
    plain, lines = told(recipe, 2, None)
    assert lines == ["training", "training"] and torch.equal(plain.margins, first.margins)
    for other in (
        lambda: told(recipe, 2, tmp_path / "kept", seed=1),
        lambda: told(recipe, 2, tmp_path / "kept", first=2),
        lambda: told(parse_training_recipe(RECIPE | {"augmentation": {"crop_padding": 2}}), 2, tmp_path / "kept"),
    ):
        assert other()[1] == ["training", "training"]
    # what took hours is not written over
    assert told(recipe, 3, tmp_path / "kept")[1] == ["kept"] * 3
    assert len(list((tmp_path / "kept").iterdir())) == 3 + 3 * 2


def test_a_network_whose_code_changed_is_trained_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plugin's network keeps its name when its file is edited."""
    recipe = parse_training_recipe(RECIPE)
    told(recipe, 1, tmp_path)
    build = training.build_network

    def edited(spec: str, seed: int):
        net, card = build(spec, seed)
        net.conv1.weight.data *= 2
        return net, card

    monkeypatch.setattr(training, "build_network", edited)
    assert told(recipe, 1, tmp_path)[1] == ["training"]


@pytest.mark.parametrize("damage", [b"", b"no tensors"])
def test_a_damaged_one_is_trained_anew(damage: bytes, tmp_path: Path) -> None:
    recipe = parse_training_recipe(RECIPE)
    first, _ = told(recipe, 1, tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(damage)
    again, lines = told(recipe, 1, tmp_path)
    assert lines == ["training"] and torch.equal(again.margins, first.margins)
    assert told(recipe, 1, tmp_path)[1] == ["kept"]
