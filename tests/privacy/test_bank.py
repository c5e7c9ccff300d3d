"""How many images a bank takes: of the test split, for controls, and of the pool, for networks that learn by heart."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_networks import textured

from ensemble.data.labelled import LabelledImages
from ensemble.privacy.study.bank import Bank
from ensemble.privacy.study.controls import _groups
from ensemble.privacy.study.recipe import parse_leakage_recipe

RECIPE: dict[str, Any] = {
    "model": "resnet8_cifar:width=0.25,num_classes=2@random",
    "data": {"path": "nowhere"},
    "arms": [
        {"name": "plain", "teachers": 4},
        {"name": "cutmix", "teachers": 4, "augmentation": {"cutmix": 1.0}},
    ],
    "canaries": 20,
    "schedule": {"batch_size": 32, "recalibrate_bn": False},
    "inversions": {"images": 30},
}


def labelled(n: int, seed: int) -> LabelledImages:
    return LabelledImages(textured(n, seed, size=32), torch.arange(n) % 2, ("circle", "square"))


def bank(tested: int, quick: bool = False) -> Bank:
    """Of 240 images, and so many of the test split."""
    recipe = parse_leakage_recipe(RECIPE)
    made = Bank(recipe.hastened() if quick else recipe)
    canaries = torch.arange(240) < 20
    vars(made).update(_drawn=(labelled(240, 0), canaries), test=labelled(tested, 1))
    return made


@pytest.mark.parametrize(("quick", "least"), [(False, 120), (True, 40)])
def test_the_test_split_holds_controls_that_differ(quick: bool, least: int) -> None:
    made = bank(least, quick)
    made.check()
    groups = _groups(made.test.images[1::2], made.recipe.inversions.images, 0)
    assert len({tuple(sorted(image.sum().item() for image in group)) for group in groups}) == len(groups)
    with pytest.raises(ValueError, match=rf"^data\.test: {least - 1} images, .* give {least} at least, or ask for"):
        bank(least - 1, quick).check()


def test_a_stressed_network_learns_what_the_pool_has() -> None:
    """500 are asked for; of 240 images 220 are no canaries, and a third of these is 73."""
    made = bank(120)
    members, others = made.stress_sets(0)
    assert made.recipe.stress.images == 500 and made.by_heart == len(members) == len(others) == 73


def test_an_image_that_is_there_twice_is_in_the_pool_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its copies would be a network's members and non-members at once."""
    again = labelled(60, 0).subset(torch.arange(120) % 60)
    monkeypatch.setattr("ensemble.privacy.study.bank.load_images", lambda *_, **__: again)
    assert len(Bank(parse_leakage_recipe(RECIPE)).pool) == 60
