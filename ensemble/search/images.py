"""Images of a recipe at the seeds of a search, and the images that no point sees."""

from __future__ import annotations

from dataclasses import replace

import torch

from ensemble.data.labelled import LabelledImages
from ensemble.evaluation.classification import logits_of
from ensemble.image.pictures import to_eight_bits
from ensemble.machine.progress import SilentProgress
from ensemble.recipe import Recipe
from ensemble.runs.job import job
from ensemble.search.metric import Kit

HELD_OUT_IMAGES = 500
"""At least so many are made: two standard deviations of a share of 0.8 are 4 points, alike for all points."""
MOST_SEEDS = 1000
"""Of a point."""
_CONFIRMING, _HELD_OUT = MOST_SEEDS, 2 * MOST_SEEDS
_APART = 1_000_000
"""Between two seeds of a search: batches of a run have seeds that follow each other."""


def seed_at(recipe: Recipe, place: int) -> int:
    """The seed of the recipe's run at a place: 0, 1, .. in the search."""
    return recipe.seed + _APART * place


def confirming(place: int) -> int:
    """The place of a seed that the search does not see."""
    return _CONFIRMING + place


def made(recipe: Recipe, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (N, 3, H, W), RGB in [0, 1], and targets (N,) of one run, of which nothing is written.

    Raises KeyboardInterrupt where it was asked to stop, and what else a run raises.
    """
    alone = replace(recipe, seed=seed, verifiers=(), agreement=False)
    results = job(alone, None).run(0.0, SilentProgress(), keeps_partial=True)
    assert results is not None, "one process"
    if results.summary.get("stopped"):
        raise KeyboardInterrupt
    return results.images, results.targets


def make_held_out(kit: Kit) -> LabelledImages:
    """Images of the unchanged recipe from seeds of their own, labelled by the judge."""
    seed = seed_at(kit.recipe, _HELD_OUT)
    one = job(kit.recipe, None).plan
    batches = -(-HELD_OUT_IMAGES // len(one.targets(0)))
    images, _ = made(replace(kit.recipe, trials=max(batches, kit.recipe.trials)), seed)
    net, card = kit.network
    labels = logits_of(net, card, images).argmax(1)
    names = card.class_names or tuple(map(str, range(card.num_classes)))
    return LabelledImages(to_eight_bits(images), labels, names)
