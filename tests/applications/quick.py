"""A stand-in for a run, which takes no time; loaded as a plugin, it takes the place of the runs of a search."""

from __future__ import annotations

import torch

import ensemble.search.value
from ensemble.machine.rng import generator
from ensemble.recipe import Recipe


def quick(recipe: Recipe, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A grey image whose brightness depends on the recipe's fields, and a little on the seed."""
    fields = recipe.image.parameterization.decay, recipe.image.start.scale  # type: ignore[attr-defined]
    best = (fields[0] - 1.2) ** 2 + 0.01 * (fields[1] - 1.5) ** 2
    noise = 0.01 * torch.rand((), generator=generator(seed, "quick"), dtype=torch.float64)
    return (0.9 - best + noise).expand(1, 3, 8, 8), torch.zeros(1, dtype=torch.long)


if __name__.startswith("_plugin_"):
    ensemble.search.value.made = quick
