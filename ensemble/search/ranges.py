"""Which values a field takes in a search: a range of numbers, or a choice."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pydantic import PositiveFloat

from ensemble.config.checked import Checked

_ROUNDING = 1e-9
"""Of a number of steps: 0.3 is three times 0.1, though not in binary."""


class Asks(Protocol):
    """What gives a point its values: a trial of Optuna's."""

    def suggest_int(self, name: str, low: int, high: int, *, step: int, log: bool) -> int: ...

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None, log: bool) -> float: ...

    def suggest_categorical(self, name: str, choices: Sequence[str]) -> str: ...


@dataclass(frozen=True)
class Range(Checked):
    """Numbers from `low` to `high`, both included."""

    low: float
    high: float
    log: bool = False
    """Equal ratios are equally likely, not equal differences."""
    int: bool = False
    """Whole numbers only."""
    step: PositiveFloat | None = None
    """From `low` in steps of this size."""

    def rules(self) -> Iterator[str]:
        if self.low >= self.high:
            yield f"low: {self.low:g} is not below high, {self.high:g}; swap or change them"
            return
        if self.log and self.low <= 0:
            yield f"low: with `log: true` it must be above 0, and it is {self.low:g}"
        if self.log and self.step is not None:
            yield "step: it does not go with `log: true`; leave one of them out"
        if self.int and any(value is not None and not _whole(value) for value in (self.low, self.high, self.step)):
            yield "int: low, high and step must be whole numbers, too"
        if self.step is not None and not _whole((self.high - self.low) / self.step):
            yield f"step: high - low, {self.high - self.low:g}, is no multiple of it; change high or step"

    @property
    def probes(self) -> list[Any]:
        """Values that the recipe is tried with before a search."""
        return [self._typed(self.low), self._typed(self.high)]

    @property
    def grid(self) -> list[Any] | None:
        """All values; None where there is no end of them."""
        step = self.step or (1.0 if self.int else None)
        if step is None:
            return None
        last = round((self.high - self.low) / step)
        return [self._typed(min(self.low + i * step, self.high)) for i in range(last + 1)]

    def suggest(self, name: str, trial: Asks) -> Any:
        if self.int:
            return trial.suggest_int(name, round(self.low), round(self.high), step=round(self.step or 1), log=self.log)
        return trial.suggest_float(name, self.low, self.high, step=self.step, log=self.log)

    def encoded(self, value: Any) -> Any:
        """The value as a study holds it; None where it is none of the range's."""
        if isinstance(value, bool) or not isinstance(value, float | int) or not self.low <= value <= self.high:
            return None
        step = self.step or (1.0 if self.int else None)
        return self._typed(value) if step is None or _whole((value - self.low) / step) else None

    def _typed(self, value: float) -> Any:
        return round(value) if self.int else float(value)


@dataclass(frozen=True)
class Choice:
    """One of several values, which may be any that a recipe holds."""

    values: tuple[Any, ...]

    @property
    def probes(self) -> list[Any]:
        return list(self.values)

    @property
    def grid(self) -> list[Any]:
        return list(self.values)

    def suggest(self, name: str, trial: Asks) -> Any:
        """As JSON, a study tells true from 1, and holds lists and mappings."""
        return json.loads(trial.suggest_categorical(name, [json.dumps(value) for value in self.values]))

    def encoded(self, value: Any) -> str | None:
        """Of a number that a recipe holds as 1.0, the space may say 1."""
        return next((json.dumps(one) for one in self.values if canonical(one) == canonical(value)), None)


def canonical(value: Any) -> str:
    """A text that values of a recipe share where they are the same: 1 and 1.0 are, 1 and true are not."""
    return json.dumps(json.loads(json.dumps(value), parse_int=float))


def _whole(value: float) -> bool:
    return math.isclose(value, round(value), rel_tol=_ROUNDING, abs_tol=_ROUNDING)
