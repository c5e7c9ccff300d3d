"""How points are drawn, and which are broken off."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from copy import copy
from typing import Any

import optuna
import torch
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from ensemble.machine.rng import generator
from ensemble.search.settings import Settings

_LARGEST = 100_000
"""Points of a grid, all of which are drawn up before the first."""


class Numbered(BaseSampler):
    """Draws each point anew from (seed, number of the point), so that a search which is gone on with draws the same.

    `fixed` gives the values of points that are not drawn, such as the recipe as it is.
    """

    def __init__(
        self,
        make: Callable[[int], BaseSampler],
        fixed: Callable[[int], Mapping[str, Any]],
        number: Callable[[FrozenTrial], int],
    ) -> None:
        self._make, self._fixed, self._number = make, fixed, number
        self._inner = make(0)
        self._values: Mapping[str, Any] = {}

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        number = self._number(trial)
        self._inner, self._values = self._make(number), self._fixed(number)
        return self._inner.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._inner.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        if param_name in self._values:
            return self._values[param_name]
        return self._inner.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self._inner.before_trial(study, trial)

    def after_trial(self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Any) -> None:
        self._inner.after_trial(study, trial, state, values)


class Brackets(optuna.pruners.HyperbandPruner):
    """Hyperband with brackets by the number of the point, in each of which a point counts once, so that a search which
    is gone on with draws and breaks off the same.

    Optuna's own go by the trial, of which a point that was left and done again has two, and begin with a report.
    """

    def __init__(self, seeds: int, number: Callable[[FrozenTrial], int]) -> None:
        super().__init__(1, seeds)
        self._number = number
        self._numbers: dict[int, int] = {}

    def _get_bracket_id(self, study: optuna.Study, trial: FrozenTrial) -> int:
        if not self._pruners:
            self._try_initialization(study)
        if trial.state == TrialState.FAIL:
            return -1  # in none
        if trial.number not in self._numbers:
            self._numbers[trial.number] = self._number(trial)
        point = copy(trial)
        point.number = self._numbers[trial.number]
        return super()._get_bracket_id(study, point)


def make_sampler(settings: Settings, baseline: Mapping[str, Any], number: Callable[[FrozenTrial], int]) -> Numbered:
    """The sampler of a search; `baseline` are the values of point 0, as a study holds them."""
    grid = grid_of(settings) if settings.sampler == "grid" else []

    def fixed(point: int) -> Mapping[str, Any]:
        if point == 0:
            return baseline
        return settings.space.encoded(grid[point - 1]) if 0 < point <= len(grid) else {}

    def make(point: int) -> BaseSampler:
        seed = int(torch.randint(2**31, (1,), generator=generator(settings.recipe.seed, "search", point)))
        return TPESampler(seed=seed) if settings.sampler == "tpe" else RandomSampler(seed=seed)

    return Numbered(make, fixed, number)


def grid_of(settings: Settings) -> list[dict[str, Any]]:
    """All points of the space, in an order that the recipe's seed draws; ValueError where there are too many."""
    axes = []
    for path, values in settings.space.fields.items():
        if values.grid is None:
            raise ValueError(f"--sampler grid: {path} has no end of values; give it a step, int: true, or a list")
        axes.append([(path, value) for value in values.grid])
    if (count := math.prod(map(len, axes))) > _LARGEST:
        raise ValueError(f"--sampler grid: {count} points are more than {_LARGEST}; give larger steps, or fewer values")
    points = [dict(point) for point in itertools.product(*axes)]
    order = torch.randperm(len(points), generator=generator(settings.recipe.seed, "search grid"))
    return [points[i] for i in order.tolist()]


def make_pruner(settings: Settings, number: Callable[[FrozenTrial], int]) -> optuna.pruners.BasePruner:
    """What breaks a point off after one of its seeds."""
    if settings.pruner == "median":
        return optuna.pruners.MedianPruner()
    if settings.pruner == "hyperband":
        return Brackets(settings.seeds, number)
    return optuna.pruners.NopPruner()
