"""A mean over seeds with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, stdev

_T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
"""Student's t for 95 %, two-sided, by the number of values."""


def mean_interval(values: Sequence[float], digits: int = 3) -> str:
    """`mean ± half-width` of the 95 % interval (Student's t) of up to five values; of one value, that value.

    ValueError for no values or more than five.
    """
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    half = half_width(values)
    return f"{mean(values):.{digits}f} ± {half:.{digits}f}"


def half_width(values: Sequence[float]) -> float:
    """Half of the 95 % interval (Student's t) of the mean of two to five values: t sd / sqrt(n), with the unbiased sd.

    ValueError for another number of values.
    """
    if not 2 <= len(values) <= 5:
        raise ValueError(f"an interval of {len(values)} values; give one to five")
    return _T95[len(values)] * stdev(values) / len(values) ** 0.5
