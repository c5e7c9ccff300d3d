"""Losses are compared from the first step to the end only where both are of the same teachers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from ensemble.objectives.competition import Competition
from ensemble.recipe import EnsembleRule
from ensemble.runs.summary import warnings_of
from ensemble.runs.trial_results import TrialResults

END = {"loss": 3.0, "prior": 9.0, "a/x": 1.0, "b/x": 5.0, "a/accuracy": 1.0, "b/accuracy": 1.0}


def told(*first: dict[str, float], term: Competition | None = None) -> list[str]:
    """What is said of trials with these losses at their first step, which all end alike: the losses named."""
    formulation = SimpleNamespace(names=("x",) if term else (), teacher_terms=(term,) if term else ())
    recipe = SimpleNamespace(ensemble=EnsembleRule(acting="random"), seed=0, objectives=())
    plan: Any = SimpleNamespace(names=("a", "b"), teachers=("a", "b"), recipe=recipe, formulation=formulation)
    done = {trial: TrialResults(torch.zeros(1, 3, 1, 1), END, {}, {}) for trial in range(len(first))}
    return [text.split(" did not fall")[0] for text in warnings_of(plan, done, dict(enumerate(first)))]


def test_the_loss_of_some_teachers_is_not_that_of_all() -> None:
    one = {"loss": 2.0, "prior": 0.0, "a/x": 2.0, "a/accuracy": 0.0}
    assert told(one) == []
    assert told({**one, "b/x": 4.0, "b/accuracy": 0.0}) == ["loss", "b/x"]


def test_trials_may_begin_with_other_teachers() -> None:
    first = {"loss": 2.0, "a/x": 0.5, "a/accuracy": 0.0}
    second = {"loss": 2.0, "b/x": 6.0, "b/accuracy": 0.0}
    assert told(first, second) == ["a/x"]
    assert told({}, second) == []


def test_a_loss_that_rises_where_all_goes_well_is_not_told() -> None:
    """An image on which teacher and student part counts in `masked` no longer."""
    both = {"loss": 2.0, "a/x": -0.3, "a/accuracy": 0.0, "b/x": 6.0, "b/accuracy": 0.0}
    assert told(both, term=Competition()) == ["loss", "a/x"]
    assert told(both, term=Competition(divergence="masked")) == []
