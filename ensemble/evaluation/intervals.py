"""Intervals of a proportion."""

from __future__ import annotations

from functools import lru_cache

import torch

_HALVINGS = 60


@lru_cache(maxsize=256)
def clopper_pearson(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """The exact interval of a proportion, of which `successes` of `n` were seen.

    low:  P(X >= successes | low) = (1 - level) / 2      high: P(X <= successes | high) = (1 - level) / 2

    for X ~ Binomial(n, p); 0 where there was no success, 1 where there was nothing else. It covers at least `level`,
    for any p. Found by halving.

    Source: Clopper and Pearson (1934), "The use of confidence or fiducial limits illustrated in the case of the
    binomial".
    """
    if not 0 <= successes <= n or n == 0:
        raise ValueError(f"need 0 <= successes <= n and n > 0, got {successes} of {n}")
    tail = (1 - level) / 2
    k = torch.arange(n + 1, dtype=torch.float64)
    whole = torch.tensor(n + 1.0, dtype=torch.float64)
    ways = torch.lgamma(whole) - torch.lgamma(k + 1) - torch.lgamma(whole - k)

    def at_most(p: float, most: int) -> float:
        """P(X <= most | p)."""
        odds = torch.tensor([p, 1 - p], dtype=torch.float64).log()
        return float((ways + k * odds[0] + (n - k) * odds[1])[: most + 1].exp().sum())

    def crossing(most: int, wanted: float) -> float:
        """The p at which P(X <= most | p), which falls with p, is `wanted`."""
        low, high = 0.0, 1.0
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if at_most(middle, most) > wanted else (low, middle)
        return (low + high) / 2

    low = 0.0 if successes == 0 else crossing(successes - 1, 1 - tail)
    high = 1.0 if successes == n else crossing(successes, tail)
    return low, high
