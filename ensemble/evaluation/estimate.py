"""A figure with its interval; means over seeds, networks or draws."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from statistics import mean, stdev
from typing import NamedTuple

Z95 = 1.959964
"""Between it and its negative lie 95 % of a standard normal."""


class Estimate(NamedTuple):
    """A figure and its 95 % interval; NaN where there is none.

    `f"{estimate:.2f}"` is `0.71 [0.60, 0.80]`, and `0.71 [–]` without an interval.
    """

    value: float
    low: float
    high: float

    @property
    def interval(self) -> tuple[float, float]:
        return self.low, self.high

    @property
    def bounded(self) -> bool:
        """Whether there is an interval."""
        return isfinite(self.low) and isfinite(self.high)

    @property
    def width(self) -> float:
        return self.high - self.low

    def holds(self, figure: float) -> bool:
        """Whether the interval does."""
        return self.low <= figure <= self.high

    def __format__(self, form: str) -> str:
        value, low, high = (format(part, form) if isfinite(part) else "–" for part in self)
        return f"{value} [{low}, {high}]" if self.bounded else f"{value} [–]"


def t_interval(values: Sequence[float]) -> Estimate:
    """The mean with its interval by Student's t: half of it is t sd / sqrt(n), with the unbiased sd.

    Of one value, that value and no interval. ValueError for no values.
    """
    if not values:
        raise ValueError("a mean of no values")
    if len(values) < 2:
        return Estimate(float(values[0]), float("nan"), float("nan"))
    from scipy import stats  # takes a third of a second

    middle, n = mean(values), len(values)
    half = float(stats.t.ppf(0.975, n - 1)) * stdev(values) / n**0.5
    return Estimate(middle, middle - half, middle + half)


def mean_interval(values: Sequence[float], digits: int = 3) -> str:
    """`mean ± half` of `t_interval`; of one value, that value."""
    found = t_interval(values)
    text = f"{found.value:.{digits}f}"
    return text if len(values) == 1 else f"{text} ± {found.width / 2:.{digits}f}"
