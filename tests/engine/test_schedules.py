"""Schedules against hand values and PyTorch's own scheduler."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import pytest
import torch

from ensemble.engine.schedules import EarlyStopping, Enough, Heard, Plateau, ramp, warmup_cosine
from ensemble.machine.rng import generator


def test_ramp() -> None:
    assert [ramp(step, 4) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert [ramp(step, 0) for step in range(3)] == [1.0] * 3


def test_warmup_cosine_by_hand() -> None:
    values = [warmup_cosine(step, 8, 4) for step in range(9)]
    root = math.sqrt(0.5)
    wanted = [0.25, 0.5, 0.75, 1.0, 1.0, (1 + root) / 2, 0.5, (1 - root) / 2, 0.0]
    assert values == pytest.approx(wanted)
    assert warmup_cosine(0, 10, 0) == 1.0
    assert [warmup_cosine(step, 2, 2) for step in range(3)] == [0.5, 1.0, 0.0]
    assert warmup_cosine(0, 0, 0) == 0.0


def test_plateau_by_hand() -> None:
    plateau = Plateau(factor=0.5, patience=1, threshold=0.1)
    # 0.95 is not 10 % below 1; the second miss in a row halves; 0.8 improves; NaN is a miss.
    losses = [1.0, 0.95, 0.95, 0.8, math.nan, 0.79, 0.5]
    assert [plateau.update(loss) for loss in losses] == [1, 1, 0.5, 0.5, 0.5, 0.25, 0.25]
    assert plateau.best == 0.5


def test_plateau_knows_progress_below_zero() -> None:
    plateau = Plateau(factor=0.5, patience=0, threshold=0.1)
    assert [plateau.update(loss) for loss in (-1.0, -1.05, -1.2)] == [1, 0.5, 0.5]
    assert plateau.best == -1.2


def test_plateau_equals_pytorch() -> None:
    losses = torch.rand(200, generator=generator(0)).cumsum(0).div(torch.arange(1, 201)).tolist()
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    twin = torch.optim.lr_scheduler.ReduceLROnPlateau(optimiser, factor=0.7, patience=3, threshold=0.01, eps=0.0)
    plateau = Plateau(factor=0.7, patience=3, threshold=0.01)
    for loss in losses:
        twin.step(loss)
        assert plateau.update(loss) == pytest.approx(optimiser.param_groups[0]["lr"])
    assert plateau.multiplier < 0.1


def test_early_stopping_by_hand() -> None:
    stopping = EarlyStopping(patience=1, threshold=0.0)
    assert [stopping.update(loss) for loss in (3.0, 2.0, 2.0, 1.0, 1.0, 1.0)] == [False] * 5 + [True]


def test_enough_by_hand() -> None:
    enough = Enough(share=0.5, steps=2)
    assert [enough.update(asked) for asked in (4.0, 2.0, 2.1, 1.9, 0.0)] == [False] * 4 + [True]
    nothing = Enough(share=0.5, steps=2)
    assert [nothing.update(0.0) for _ in range(2)] == [False, True]
    negative = Enough(share=0.5, steps=1)
    assert not any(negative.update(asked) for asked in (-1.0, -2.0, 0.0))
    with pytest.raises(ValueError, match="between 0 and 1"):
        Enough(share=1.0)


def test_turns_are_followed_as_the_mean_of_each_teachers_last() -> None:
    heard = Heard(2)
    assert heard.update([1], 6.0, 5.0) is None
    assert heard.update([0], 2.0, 1.0) == (4.0, 3.0)
    assert heard.update([1], 4.0, 3.0) == (3.0, 2.0)
    again = Heard(2)
    again.load_state(json.loads(json.dumps(heard.state())))
    assert again.update([0, 1], 1.0, 0.5) == heard.update([0, 1], 1.0, 0.5) == (1.0, 0.5)


@pytest.mark.parametrize("make", [lambda: Plateau(0.5, 2), lambda: EarlyStopping(2), lambda: Enough(0.9, 4)])
def test_a_resumed_machine_continues(make: Callable[[], Plateau | EarlyStopping | Enough]) -> None:
    losses = [3.0, 2.0, 2.5, 2.5, 2.5, 2.5, 2.5]
    whole, first, second = make(), make(), make()
    second.load_state(json.loads(json.dumps(first.state())))  # also before the first loss
    results = [whole.update(loss) for loss in losses]
    half = [second.update(loss) for loss in losses[:4]]
    resumed = make()
    state = json.loads(json.dumps(second.state()))
    assert all(isinstance(value, float) for value in second.state().values())
    resumed.load_state(state)
    assert half + [resumed.update(loss) for loss in losses[4:]] == results
    assert results[-1] != results[0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: warmup_cosine(0, 4, 5), "warmup must lie between"),
        (lambda: Plateau(1.0, 2), "factor must lie between"),
        (lambda: Plateau(0.5, -1), "plateau: patience and threshold"),
        (lambda: EarlyStopping(1, -0.1), "early stopping: patience and threshold"),
    ],
)
def test_mistakes_are_explained(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
