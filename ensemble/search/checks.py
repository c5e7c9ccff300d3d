"""What can be refused before a search begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec

import torch

from ensemble.data.labelled import LabelledImages
from ensemble.recipe import Recipe
from ensemble.runs.job import job
from ensemble.runs.networks import Networks
from ensemble.runs.origin import file_digests
from ensemble.search.images import MOST_SEEDS
from ensemble.search.metric import Kit
from ensemble.search.settings import Settings
from models import model_card

_MOST_CONFIRMATIONS = 5


def check_installed() -> None:
    """ValueError where a package of the extra `search` is missing."""
    for name in ("optuna", "matplotlib"):
        if find_spec(name) is None:
            raise ValueError(f"search: the package {name} is not installed; pip install -e '.[search]'")


def check_counts(points: int, seeds: int, confirmations: int) -> None:
    """ValueError for numbers that make no search."""
    if points < 1:
        raise ValueError(f"--trials {points}: give at least 1, which is the recipe as it is")
    if not 1 <= seeds <= MOST_SEEDS:
        raise ValueError(f"--seeds {seeds}: give 1 to {MOST_SEEDS}")
    if confirmations and not 2 <= confirmations <= _MOST_CONFIRMATIONS:
        raise ValueError(f"--confirm {confirmations}: give 2 to {_MOST_CONFIRMATIONS}, or 0 to confirm nothing")


def check_settings(settings: Settings, tried: Sequence[Recipe], points: int) -> None:
    """ValueError for what judge, metric or sampler do not allow; `tried` are recipes of the space."""
    _check_judge(settings.judge, [settings.recipe, *tried])
    metric = settings.metric
    if metric.needs_data and settings.data is None:
        raise ValueError(f"--metric {metric.kind} compares with real images; name them by --data")
    if settings.data is not None and not metric.needs_data:
        raise ValueError(f"--data: the metric {metric.kind} reads no real images; leave it out")
    kit = Kit(settings.judge, settings.recipe, settings.data, torch.device("cpu"), _none)
    metric.check(kit)
    if settings.sampler == "grid":
        from ensemble.search.sampling import grid_of

        size = len(grid_of(settings)) + 1
        if points > size:
            raise ValueError(
                f"--trials {points}: the grid and the recipe as it is are {size} points; give at most that"
            )


def digests_of(settings: Settings, tried: Sequence[Recipe]) -> dict[str, str]:
    """Of the files that points are made from and judged by, as they are now."""
    plans = [job(replace(recipe, verifiers=(settings.judge,)), None).plan for recipe in (settings.recipe, *tried)]
    return file_digests({file: None for plan in plans for file in plan.all_files})


def _check_judge(judge: str, recipes: Sequence[Recipe]) -> None:
    card = model_card(judge)
    for recipe in recipes:
        if Networks().taught(judge, [teacher.model for teacher in recipe.teachers]):
            raise ValueError(f"--judge: {judge} is a teacher, for which images are made; name a network that is none")
        first = model_card(recipe.teachers[0].model)
        if not card.shares_classes(first):
            raise ValueError(f"--judge: {judge} has other classes than the first teacher, {first.name}; name another")


def _none() -> LabelledImages:
    raise AssertionError("nothing is measured here")
