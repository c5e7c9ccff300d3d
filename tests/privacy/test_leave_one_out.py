"""Attacks on simulated margins of known separation, against normal theory; nulls at 0.5; who counts as what."""

from __future__ import annotations

import math
from functools import cache
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from ensemble.privacy.membership import tail_share
from ensemble.privacy.rates import auc
from ensemble.privacy.study.leave_one_out import attacks, null_rows, roc_band, summary

Bank = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@cache
def bank(networks: int, images: int, known: float, canaries: int = 0, hard: float = 4.0, seed: int = 0) -> Bank:
    """Margins: how hard an image is, `known` where it was learned (thrice that for canaries), and normal noise."""
    rng = torch.Generator().manual_seed(seed)
    inside = torch.rand(networks, images, generator=rng) < 0.5
    wrong = torch.arange(images) < canaries
    gain = known * torch.where(wrong, 3.0, 1.0)
    noise = torch.randn(networks, images, generator=rng, dtype=torch.float64)
    return hard * torch.randn(images, generator=rng, dtype=torch.float64) + gain * inside + noise, inside, wrong


def of(rows: list[dict[str, Any]], attack: str, key: str = "auc") -> list[Any]:
    return [row[key] for row in rows if row["attack"] == attack]


def phi(x: float) -> float:
    return NormalDist().cdf(x)


@pytest.mark.parametrize("known", [0.5, 1.0, 2.0])
def test_likelihood_ratios_come_close_to_what_known_normals_give(known: float) -> None:
    rows = attacks(*bank(32, 1200, known), references=(4,))
    best = phi(known / math.sqrt(2))
    assert best - 0.03 < np.mean(of(rows, "lira")) < best + 0.005
    # one-sided: x less a mean of 16 others
    assert np.mean(of(rows, "lira_offline")) == pytest.approx(phi(known / math.sqrt(2 * (1 + 1 / 16))), abs=0.01)
    # no shadows: images differ by 4 each
    assert np.mean(of(rows, "loss")) == pytest.approx(phi(known / math.sqrt(2 * 17)), abs=0.01)


def test_more_references_tell_more_and_those_that_are_not_there_are_left_out() -> None:
    rows = attacks(*bank(8, 1500, 1.0, hard=2.0), seed=1)
    mean = {attack: np.mean(of(rows, attack)) for attack in ("loss", "rmia_1", "rmia_2", "rmia_4")}
    assert mean["loss"] < mean["rmia_1"] < mean["rmia_2"] < mean["rmia_4"], mean
    assert {row["attack"] for row in rows} == {*mean, "lira", "lira_offline", "tail"}
    assert len(attacks(*bank(12, 50, 1.0))) == 12 * 8
    two = attacks(*bank(2, 50, 1.0))
    assert {row["attack"] for row in two} == {"loss", "lira_offline", "rmia_1", "tail"}


def test_memberships_of_another_network_are_told_by_nothing() -> None:
    for attack, found in summary(null_rows(*bank(12, 2500, 1.0, canaries=500))).items():
        for figure in () if attack == "tail" else ("auc", "canary_auc"):
            middle, low, high = found[figure]  # type: ignore[misc]
            assert low - 0.01 < 0.5 < high + 0.01 and abs(middle - 0.5) < 0.02, (attack, figure, middle, low, high)


def test_the_null_fires_where_memberships_hang_together() -> None:
    margins, inside, wrong = bank(6, 1500, 1.0, hard=0.0)
    shared = inside[:1].expand(6, -1)
    assert min(of(null_rows(margins - 1.0 * inside + 1.0 * shared, shared, wrong), "loss")) > 0.7


def test_the_null_has_every_attack() -> None:
    given = bank(12, 60, 1.0)
    assert [row["attack"] for row in null_rows(*given)] == [row["attack"] for row in attacks(*given)]


def test_canaries_are_judged_among_themselves() -> None:
    margins, inside, wrong = bank(12, 2000, 1.0, canaries=400)
    rows = attacks(margins, inside, wrong)
    assert np.mean(of(rows, "lira", "canary_auc")) > 0.95 > np.mean(of(rows, "lira"))
    louder = torch.where(wrong, 10 * margins, margins)
    for attack in ("loss", "lira", "lira_offline", "rmia_4"):
        # RMIA moves the few images that all references learned by the average over all images
        assert of(attacks(louder, inside, wrong), attack) == pytest.approx(of(rows, attack), abs=5e-4)
    none = attacks(margins, inside, torch.zeros_like(wrong))
    assert of(none, "lira", "canary_auc") == [None] * 12 == of(none, "lira", "canary_tpr_1pct")


def test_rates_are_read_where_ten_false_positives_are_expected() -> None:
    rows = attacks(*bank(3, 2400, 2.0, canaries=100, hard=0.0))
    assert of(rows, "loss", "tpr_0_1pct") == [None] * 3 == of(rows, "loss", "canary_tpr_1pct")
    expected = phi(2.0 + NormalDist().inv_cdf(0.01))
    for rate, (low, high) in zip(of(rows, "loss", "tpr_1pct"), of(rows, "loss", "tpr_1pct_interval"), strict=True):
        assert rate == pytest.approx(expected, abs=0.15) and low < rate < high


def test_gap_and_tail_of_one_target_by_hand() -> None:
    margins = torch.tensor([[2.0, -1.0, 1.0, -3.0], [0.0, 0.0, 0.0, 0.0]])
    inside = torch.tensor([[True, True, False, False], [False, False, True, True]])
    right = torch.tensor([[True, True, True, False], [True, True, False, False]])  # of more classes than two
    rows = attacks(margins, inside, torch.zeros(4, dtype=torch.bool), right=right)
    assert of(rows, "gap") == [0.75, 0.0] and of(rows, "loss")[0] == 0.75
    assert of(rows, "tail", "tail_tnr")[0] == tail_share(margins[0, :2], margins[0, 2:]) == 0.5


def test_a_network_that_learned_every_image_has_no_population() -> None:
    margins, inside, wrong = bank(4, 60, 1.0)
    inside = inside.clone()
    inside[0] = True
    rows = attacks(margins, inside, wrong)
    assert {row["attack"] for row in rows if row["target"] == 0} == {"loss", "lira", "lira_offline", "tail"}


def test_the_summary_is_scipys_t_interval() -> None:
    rows = attacks(*bank(5, 300, 1.0))
    values, found = of(rows, "lira"), summary(rows)
    expected = stats.t.interval(0.95, 4, np.mean(values), stats.sem(values))
    assert found["lira"]["auc"] == pytest.approx((np.mean(values), *expected))
    assert found["lira"]["canary_auc"] is None and set(found["tail"]) == {"tail_tnr"}


def test_the_roc_is_that_of_two_normals() -> None:
    band = roc_band(*bank(8, 4000, 1.5, hard=0.0), "loss", points=20)
    expected = torch.tensor([phi(1.5 + NormalDist().inv_cdf(f)) for f in band.fpr[:-1].tolist()] + [1.0]).double()
    torch.testing.assert_close(band.mean, expected, atol=0.03, rtol=0)
    assert bool((band.low <= band.mean).all() and (band.mean <= band.high).all())
    assert 0.004 < float(band.fpr[0]) < 0.006 and float(band.mean[-1]) == 1.0
    area = torch.trapezoid(band.mean, band.fpr)
    margins, inside, _ = bank(8, 4000, 1.5, hard=0.0)
    assert float(area) == pytest.approx(auc(margins[inside], margins[~inside]).value, abs=0.02)


def test_the_roc_of_canaries_and_what_has_none() -> None:
    given = bank(8, 600, 1.0, canaries=200)
    middle = [float(roc_band(*given, attack, of_canaries=True).mean[0]) for attack in ("lira", "rmia_4", "loss")]
    assert min(middle[:2]) > middle[2]
    with pytest.raises(ValueError, match="rmia_11 is none of the attacks of 8 networks"):
        roc_band(*given, "rmia_11")
    with pytest.raises(ValueError, match="more than 10 others"):
        roc_band(*bank(4, 20, 1.0), "loss", of_canaries=True)


def test_shapes_and_numbers_are_checked() -> None:
    margins, inside, wrong = bank(3, 20, 1.0)
    with pytest.raises(ValueError, match=r"\(3, 20\)"):
        attacks(margins, inside, wrong[:5])
    with pytest.raises(ValueError, match="at least 2"):
        attacks(margins[:1], inside[:1], wrong)
    with pytest.raises(ValueError, match="at least 3"):
        null_rows(margins[:2], inside[:2], wrong)
