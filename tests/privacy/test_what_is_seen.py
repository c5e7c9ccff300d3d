"""What a page says that it would have seen is seen in 39 of 40 draws, however lucky the draw that says it."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from scipy import stats

from ensemble.evaluation.estimate import Estimate
from ensemble.privacy import pictures
from ensemble.privacy.members import _blind, _loss, closer_to_members
from ensemble.privacy.rates import auc

NULL = Estimate(0.5, 0.4, 0.6)


def stated(reading: str) -> float:
    found = re.search(r"above (?:AUC )?(\S+) would have been seen", reading)
    assert found is not None, reading
    return float(found[1])


def drawn(rng: np.random.Generator, true: float, n: int) -> Estimate:
    """Of normal scores with this AUC."""
    apart = stats.norm.ppf(true) * 2**0.5
    return auc(torch.from_numpy(rng.normal(apart, 1, n)), torch.from_numpy(rng.normal(0, 1, n)))


@pytest.mark.parametrize("n", [60, 500])
def test_an_auc(n: int) -> None:
    rng = np.random.default_rng(0)
    lucky = min((e for e in (drawn(rng, 0.5, n) for _ in range(60)) if e.high >= 0.5), key=lambda e: e.value)
    for reading in (_loss(lucky, NULL, None, "", 0.0).reading, _blind(lucky, "").reading):
        seen = np.mean([drawn(rng, stated(reading), n).low > 0.5 for _ in range(200)])
        assert seen > 0.94


@pytest.mark.parametrize(("n", "hits"), [(16, 4), (16, 8), (32, 11), (32, 16)])
def test_a_share_of_inversions(n: int, hits: int) -> None:
    members = torch.eye(n)
    inversions, others = members.clone(), members.clone()
    others[:hits] = 0
    inversions[hits:], members[hits:] = members[hits:], 0
    finding = closer_to_members(inversions, members, others)
    assert finding.value == hits / n
    least = next(k for k in range(n + 1) if stats.beta.ppf(0.025, k, n - k + 1) > 0.5)
    assert stats.binom.sf(least - 1, n, stated(finding.reading) + 0.005) >= 0.975


def test_a_difference_of_seams(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores of an image are its own value."""
    monkeypatch.setattr(pictures, "seam_scores", lambda images: images[:, 0, 0, 0].double())
    monkeypatch.setattr(pictures, "turned_control", lambda images: torch.zeros(len(images)))
    rng = np.random.default_rng(1)

    def images(mean: float) -> torch.Tensor:
        return torch.from_numpy(rng.normal(mean, 1, 32))[:, None, None, None]

    zero = torch.zeros(32, 1, 1, 1)
    lucky = min((images(0) for _ in range(30)), key=lambda made: float(made.mean()))
    reading = pictures._seams(lucky, zero, zero, zero + 9 + images(0), Estimate(0.9, 0.8, 1.0)).reading
    assert np.mean([pictures._difference(images(stated(reading)), zero).low > 0 for _ in range(300)]) > 0.9
