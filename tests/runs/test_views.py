"""A stage of a recipe as the view that a run takes."""

from __future__ import annotations

import torch

from ensemble.image.transforms import Jitter, Noise
from ensemble.machine.rng import generator
from ensemble.recipe import parse_recipe
from ensemble.runs.build import _stage


def view(images: torch.Tensor, **fields: object) -> torch.Tensor:
    recipe = parse_recipe({"teachers": [{"model": "resnet20_cifar"}], "stages": [fields]})
    return _stage(recipe, recipe.stages[0], 8).transform(images, generator(1))


def test_noise_is_added_to_a_finished_view() -> None:
    images = torch.rand(2, 3, 8, 8, generator=generator(2))
    rng = generator(1)
    jittered = Jitter(2, "reflect", True)(images, rng)
    torch.rand(1, generator=rng), torch.rand(2, 3, generator=rng, dtype=torch.float64)  # of flip and zoom
    assert torch.equal(view(images, jitter=2, jitter_per_image=True, noise=0.1), Noise(0.1)(jittered, rng))
    assert torch.equal(view(images, jitter=2, jitter_per_image=True), jittered)
