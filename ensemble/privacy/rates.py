"""How well a score tells members from others: AUC and true positive rates, with intervals."""

from __future__ import annotations

from math import sqrt
from statistics import NormalDist

import torch

from ensemble.evaluation.estimate import Z95, Estimate
from ensemble.evaluation.intervals import clopper_pearson

LEAST_EXPECTED = 10
"""False positives that a rate must let one expect, to be read at all."""


def auc(members: torch.Tensor, others: torch.Tensor) -> Estimate:
    """P(score of a member > score of a non-member), ties counting half, of scores (N,) and (M,), larger for members.

    The interval is Newcombe's (2006, method 5): the bounds are the A at which |A - value| = z sd(A), with Hanley and
    McNeil's sd(A)^2 = A (1 - A) (1 + k (1 - A) / (2 - A) + k A / (1 + A)) / (N M), k = (N + M) / 2 - 1. It has a width
    at 0 and at 1, where DeLong's and the bootstrap's have none.

    ValueError for an empty set or scores that are not finite.
    """
    if not len(members) or not len(others):
        raise ValueError("an AUC needs members and others; one of the sets is empty")
    a, b = members.double().flatten(), others.double().flatten()
    if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
        raise ValueError("an AUC of scores that are not all finite")
    value = float(twice_below(a, b.sort().values).mean()) / (2 * len(b))
    return Estimate(value, _bound(value, len(a), len(b), 0.0), _bound(value, len(a), len(b), 1.0))


def twice_below(x: torch.Tensor, ordered: torch.Tensor) -> torch.Tensor:
    """float64 (N,): twice how many of `ordered` (M,) are below each x (N,), so that ties, counting half, are whole."""
    return (torch.searchsorted(ordered, x) + torch.searchsorted(ordered, x, right=True)).double()


def _bound(value: float, n: int, m: int, end: float) -> float:
    """Where, between the value and the end, the value becomes too unlikely."""
    k = (n + m) / 2 - 1

    def far(a: float) -> bool:
        variance = a * (1 - a) * (1 + k * (1 - a) / (2 - a) + k * a / (1 + a)) / (n * m)
        return abs(a - value) > Z95 * sqrt(variance)

    near, other = value, end
    for _ in range(60):
        middle = (near + other) / 2
        near, other = (near, middle) if far(middle) else (middle, other)
    return near


def tpr_at(members: torch.Tensor, others: torch.Tensor, rate: float) -> Estimate | None:
    """The share of members above the threshold that at most `rate` of the others are above, with Clopper and Pearson's
    interval.

    None where so many others let one expect fewer than LEAST_EXPECTED false positives.
    """
    if len(others) * rate < LEAST_EXPECTED:
        return None
    hits = int(_above(members, others, torch.tensor([rate], dtype=torch.float64)))
    return Estimate(hits / len(members), *clopper_pearson(hits, len(members)))


def tprs(members: torch.Tensor, others: torch.Tensor, rates: torch.Tensor) -> torch.Tensor:
    """`tpr_at` at each of the rates (F,), float64 (F,), however few others there are."""
    return _above(members, others, rates) / len(members)


def _above(members: torch.Tensor, others: torch.Tensor, rates: torch.Tensor) -> torch.Tensor:
    """How many members are above each rate's threshold; at a rate of 1 all are."""
    thresholds = others.double().flatten().sort(descending=True).values
    thresholds = torch.cat([thresholds, thresholds.new_full((1,), -torch.inf)])
    at = thresholds[(rates * len(others)).long().clamp_max(len(others))]
    return (members.double().flatten()[None] > at[:, None]).double().sum(1)


def normal_cdf(x: float) -> float:
    """Phi(x)."""
    return NormalDist().cdf(x)
