"""The best point and the recipe as it is, run again on seeds that the search did not see."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ensemble.evaluation.estimate import mean_interval, t_interval
from ensemble.machine.progress import ProgressReporter
from ensemble.recipe import Recipe
from ensemble.search.images import confirming
from ensemble.search.tasks import Tasks

Value = Callable[[Recipe, int], float]
"""The metric of a recipe at the place of a seed."""


@dataclass(frozen=True)
class Confirmation:
    """What both said, seed by seed."""

    best: tuple[float, ...]
    baseline: tuple[float, ...]
    best_mean: str
    """With its 95 % interval (Student's t)."""
    baseline_mean: str
    difference: str
    """Of the best from the baseline, paired by seeds."""
    verdict: str
    """`better` or `worse` where the interval of the difference leaves out 0, else `no difference shown`."""


def compare(best: Sequence[float], baseline: Sequence[float], minimised: bool) -> Confirmation:
    """Both in words; differences are paired, for both runs of a seed have the same targets, noise and student."""
    differences = [a - b for a, b in zip(best, baseline, strict=True)]
    found = t_interval(differences)
    gains = found.value < 0 if minimised else found.value > 0
    # equal differences have no spread to make an interval of: a coarse metric, such as a share of few images
    told = found.low < found.high and not found.holds(0)
    verdict = "no difference shown" if not told else "better" if gains else "worse"
    return Confirmation(
        tuple(best), tuple(baseline), mean_interval(best), mean_interval(baseline), mean_interval(differences), verdict
    )


def confirm(
    tasks: Tasks,
    recipes: tuple[Recipe, Recipe],
    seeds: int,
    minimised: bool,
    value: Value,
    progress: ProgressReporter,
) -> Confirmation | str:
    """The best recipe and the baseline, run by all workers together; or why a run of them failed."""
    progress.start(2 * seeds, tasks.ended(2 * seeds))

    def do(trial: object, number: int) -> float:
        return value(recipes[number % 2], confirming(number // 2))

    tasks.work(2 * seeds, do, lambda: progress.step(tasks.ended(2 * seeds) - 1))
    runs = tasks.all()[: 2 * seeds]
    if failed := [run.failed for run in runs if run.failed is not None]:
        return failed[0]
    values = [float(run.trial.values[0]) for run in runs]
    return compare(values[0::2], values[1::2], minimised)
