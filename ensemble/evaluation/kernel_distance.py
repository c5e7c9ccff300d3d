"""Kernel distance between feature sets."""

from __future__ import annotations

import numpy as np

from ensemble.evaluation._arrays import Features, as_float64, same_width

_ROWS = 1024  # bounds the kernel values held at once


def kernel_distance(a: Features, b: Features) -> float:
    """Unbiased squared maximum mean discrepancy of (N, D) and (M, D) with a cubic kernel; about 0, also
    below it, for sets from one distribution.

    Σ_{i≠j} k(a_i, a_j) / N(N-1) + Σ_{i≠j} k(b_i, b_j) / M(M-1) - 2 Σ_ij k(a_i, b_j) / NM with
    k(x, y) = (x·y / D + 1)³. In float64.

    Raises ValueError for other shapes, widths that differ, fewer than two rows, or values not finite.

    Source: Bińkowski et al. (2018), "Demystifying MMD GANs", section 4 (KID). Departure: all pairs at once
    instead of the mean over random subsets, so there is nothing to draw.
    """
    a, b = as_float64(a, "a", at_least=2), as_float64(b, "b", at_least=2)
    same_width(a=a, b=b)
    return _within(a) + _within(b) - 2 * _kernel_sum(a, b) / (len(a) * len(b))


def _within(x: np.ndarray) -> float:
    diagonal = float((((x * x).sum(1) / x.shape[1] + 1) ** 3).sum())
    return (_kernel_sum(x, x) - diagonal) / (len(x) * (len(x) - 1))


def _kernel_sum(x: np.ndarray, y: np.ndarray) -> float:
    blocks = (x[start : start + _ROWS] @ y.T for start in range(0, len(x), _ROWS))
    return float(sum(((block / x.shape[1] + 1) ** 3).sum() for block in blocks))
