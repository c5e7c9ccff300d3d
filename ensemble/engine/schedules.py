"""Values over time: multipliers as functions of the step, and state machines that follow the loss."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


def ramp(step: int, warmup: int) -> float:
    """A multiplier in (0, 1]: (step + 1) / warmup while step < warmup, then 1."""
    return min(1.0, (step + 1) / warmup) if warmup else 1.0


def warmup_cosine(step: int, steps: int, warmup: int) -> float:
    """A multiplier in [0, 1]: (step + 1) / warmup while step < warmup, then half a cosine from 1 to 0:

        (1 + cos(pi (step - warmup) / (steps - warmup))) / 2

    It is 0 at step `steps`, one past the last. Raises ValueError unless 0 <= warmup <= steps.
    """
    if not 0 <= warmup <= steps:
        raise ValueError(f"schedule: warmup must lie between 0 and the {steps} steps, not {warmup}")
    assert 0 <= step <= steps
    if step == steps:
        return 0.0
    if step < warmup:
        return ramp(step, warmup)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


@dataclass
class Plateau:
    """A multiplier that shrinks by `factor` once more than `patience` updates in a row bring no improvement.

    A loss improves if it is below the best so far by more than threshold x |best|. As PyTorch's
    ReduceLROnPlateau without cool-down, but |best| keeps the threshold's sense where losses are negative. A
    loss that is not a number is no improvement.

    Raises ValueError unless 0 < factor < 1, patience >= 0 and threshold >= 0.
    """

    factor: float
    patience: int
    threshold: float = 1e-4
    multiplier: float = field(default=1.0, init=False)
    best: float = field(default=math.inf, init=False)
    waited: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if not 0 < self.factor < 1:
            raise ValueError(f"plateau: factor must lie between 0 and 1, not {self.factor}")
        _check_patience("plateau", self.patience, self.threshold)

    def update(self, loss: float) -> float:
        """The multiplier after this loss."""
        if _improves(loss, self.best, self.threshold):
            self.best, self.waited = loss, 0
        else:
            self.waited += 1
        if self.waited > self.patience:
            self.multiplier *= self.factor
            self.waited = 0
        return self.multiplier

    def state(self) -> dict[str, float]:
        """All that changes, for a checkpoint."""
        return {"multiplier": self.multiplier, "best": self.best, "waited": float(self.waited)}

    def load_state(self, state: Mapping[str, float]) -> None:
        """Continue from what `state` returned."""
        self.multiplier, self.best, self.waited = state["multiplier"], state["best"], int(state["waited"])


@dataclass
class EarlyStopping:
    """Says stop once more than `patience` updates in a row bring no improvement, as `Plateau` counts them.

    Raises ValueError unless patience >= 0 and threshold >= 0.
    """

    patience: int
    threshold: float = 1e-4
    best: float = field(default=math.inf, init=False)
    waited: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        _check_patience("early stopping", self.patience, self.threshold)

    def update(self, loss: float) -> bool:
        """True once it is time to stop."""
        if _improves(loss, self.best, self.threshold):
            self.best, self.waited = loss, 0
        else:
            self.waited += 1
        return self.waited > self.patience

    def state(self) -> dict[str, float]:
        """All that changes, for a checkpoint."""
        return {"best": self.best, "waited": float(self.waited)}

    def load_state(self, state: Mapping[str, float]) -> None:
        """Continue from what `state` returned."""
        self.best, self.waited = state["best"], int(state["waited"])


@dataclass
class Enough:
    """Says stop once what the teachers ask for was at most `share` of what it was at first, `steps` times in a row.

    It is for losses that are at least 0: where nothing is asked for at first, that is enough.

    Raises ValueError unless 0 < share < 1.
    """

    share: float
    steps: int = 10
    first: float = field(default=math.nan, init=False)
    met: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError(f"enough: a share between 0 and 1, not {self.share}")

    def update(self, asked: float) -> bool:
        """True once there is nothing left to pull."""
        if math.isnan(self.first):
            self.first = asked
        self.met = self.met + 1 if self.first >= 0 and asked <= self.share * self.first else 0
        return self.met >= self.steps

    def state(self) -> dict[str, float]:
        """All that changes, for a checkpoint; nothing before the first update."""
        return {} if math.isnan(self.first) else {"first": self.first, "met": float(self.met)}

    def load_state(self, state: Mapping[str, float]) -> None:
        """Continue from what `state` returned."""
        if state:
            self.first, self.met = state["first"], int(state["met"])


@dataclass
class Heard:
    """What a step's losses stand for where not all of `teachers` act: of each the last step that it acted in, averaged.

    So what follows the losses does not compare one teacher's with another's.
    """

    teachers: int
    latest: dict[int, tuple[float, float]] = field(default_factory=dict, init=False)

    def update(self, acting: Iterable[int], total: float, asked: float) -> tuple[float, float] | None:
        """The mean loss and the mean of the teachers' part of it; None until each teacher acted."""
        self.latest |= dict.fromkeys(acting, (total, asked))
        if len(self.latest) < self.teachers:
            return None
        totals, parts = zip(*self.latest.values(), strict=True)
        return sum(totals) / self.teachers, sum(parts) / self.teachers

    def state(self) -> dict[str, float]:
        """All that changes, for a checkpoint."""
        return {f"{t}.{name}": v for t, pair in self.latest.items() for name, v in zip(_PAIR, pair, strict=True)}

    def load_state(self, state: Mapping[str, float]) -> None:
        """Continue from what `state` returned."""
        teachers = sorted({int(key.partition(".")[0]) for key in state})
        self.latest = {t: (state[f"{t}.total"], state[f"{t}.asked"]) for t in teachers}


_PAIR = ("total", "asked")


def _improves(loss: float, best: float, threshold: float) -> bool:
    # inf - threshold * inf is not a number, so the first loss is compared with inf itself.
    return loss < (best if math.isinf(best) else best - threshold * abs(best))


def _check_patience(name: str, patience: int, threshold: float) -> None:
    if patience < 0 or not threshold >= 0:
        raise ValueError(f"{name}: patience and threshold must be >= 0, not {patience} and {threshold}")
