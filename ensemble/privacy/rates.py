"""How well a score tells members from others: AUC and true positive rates, with intervals."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist

import torch

from ensemble.evaluation.intervals import clopper_pearson

LEAST_EXPECTED = 10
"""False positives that a rate must let one expect, to be read at all."""
_Z = 1.959964


@dataclass(frozen=True)
class Auc:
    """P(score of a member > score of a non-member), ties counting half, and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Rate:
    """The true positive rate at a false positive rate, and its 95 % interval (Clopper and Pearson)."""

    at: float
    value: float
    low: float
    high: float


def auc(members: torch.Tensor, others: torch.Tensor) -> Auc:
    """Of scores (N,) and (M,), larger for members.

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
    ordered = b.sort().values
    below, upto = torch.searchsorted(ordered, a), torch.searchsorted(ordered, a, right=True)
    value = float((below + upto).double().mean()) / (2 * len(b))
    return Auc(value, _bound(value, len(a), len(b), 0.0), _bound(value, len(a), len(b), 1.0))


def _bound(value: float, n: int, m: int, end: float) -> float:
    """Where, between the value and the end, the value becomes too unlikely."""
    k = (n + m) / 2 - 1

    def far(a: float) -> bool:
        variance = a * (1 - a) * (1 + k * (1 - a) / (2 - a) + k * a / (1 + a)) / (n * m)
        return abs(a - value) > _Z * sqrt(variance)

    near, other = value, end
    for _ in range(60):
        middle = (near + other) / 2
        near, other = (near, middle) if far(middle) else (middle, other)
    return near


def tpr_at(members: torch.Tensor, others: torch.Tensor, rate: float) -> Rate | None:
    """The share of members above the threshold that at most `rate` of the others are above.

    None where so many others let one expect fewer than LEAST_EXPECTED false positives.
    """
    if len(others) * rate < LEAST_EXPECTED:
        return None
    threshold = others.double().sort(descending=True).values[min(int(len(others) * rate), len(others) - 1)]
    hits = int((members.double() > threshold).sum())
    low, high = clopper_pearson(hits, len(members))
    return Rate(rate, hits / len(members), low, high)


def normal_cdf(x: float) -> float:
    """Phi(x)."""
    return NormalDist().cdf(x)
