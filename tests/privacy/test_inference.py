"""Exact tests against enumeration by hand, SciPy and what chance must give."""

from __future__ import annotations

from itertools import combinations, permutations, product
from math import comb, isnan

import numpy as np
import pytest
from scipy import stats

from ensemble.evaluation.estimate import t_interval
from ensemble.privacy.study.conclusions import _quantiles
from ensemble.privacy.study.inference import (
    auroc,
    fixed_sequence,
    holm,
    page_p,
    paired_auroc_difference,
    permutation_p,
    sign_flip_p,
    splits,
)


@pytest.mark.parametrize(("n", "least"), [(4, 1 / 70), (6, 1 / 924), (12, 1 / 2704156)])
def test_the_smallest_p_is_one_of_all_splits(n: int, least: float) -> None:
    assert permutation_p([*range(n, 2 * n)], [*range(n)]) == pytest.approx(least)
    assert permutation_p([*range(n)], [*range(n, 2 * n)]) == 1


@pytest.mark.parametrize("ties", [False, True])
def test_a_p_value_is_the_share_of_splits_with_at_least_that_auroc(ties: bool) -> None:
    values = np.random.default_rng(3).normal(size=9)
    values = values.round() if ties else values
    a, b = values[:4], values[4:]
    chosen = [set(c) for c in combinations(range(9), 4)]
    each = [auroc(values[[*c]], values[[i for i in range(9) if i not in c]]) for c in chosen]
    assert permutation_p(a, b) == pytest.approx(np.mean(np.array(each) >= auroc(a, b) - 1e-12))


def test_large_arms_with_ties_are_exact() -> None:
    """16 against 16, of two values: the number of ones among the first is hypergeometric."""
    a, b = [1.0] * 10 + [0.0] * 6, [1.0] * 5 + [0.0] * 11
    assert permutation_p(a, b) == pytest.approx(stats.hypergeom(32, 15, 16).sf(9))


@pytest.mark.parametrize("scale", [1e-13, 1.0, 1e4])
def test_signs_do_not_depend_on_the_scale(scale: float) -> None:
    for seed in range(50):
        d = np.abs(np.random.default_rng(seed).normal(size=9)) * scale
        assert sign_flip_p(d) == 1 / 512


def test_what_is_not_finite_is_refused() -> None:
    bad = [float("nan"), 1.0, 2.0]
    for test in (lambda: permutation_p(bad, [0.0, 0.5]), lambda: sign_flip_p(bad), lambda: auroc(bad, [1.0])):
        with pytest.raises(ValueError, match="finite"):
            test()
    with pytest.raises(ValueError, match="finite"):
        page_p([bad, [1.0, 2.0, 3.0]])


def test_signs_by_hand() -> None:
    assert sign_flip_p([1, 2, 3]) == 1 / 8
    assert sign_flip_p([1, 2, -3]) == 5 / 8  # the sums 6, 4, 2, 0 (twice), and four below
    assert sign_flip_p([1.0] * 12) == 1 / 4096


def test_a_sequence_ends_at_its_first_failure() -> None:
    assert fixed_sequence({"a": 0.01, "b": 0.2, "c": 0.001}) == {"a": True, "b": False, "c": None}
    assert fixed_sequence({"a": 0.05}) == {"a": True}


def test_holm_by_hand() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.5}) == pytest.approx(
        {"a": 0.04, "b": 0.09, "c": 0.09, "d": 0.5}
    )


def test_a_trend_is_pages() -> None:
    rows = [[1, 2, 3], [1, 3, 2], [1, 2, 3], [2, 1, 3]]
    assert page_p(rows) == pytest.approx(stats.page_trend_test(rows).pvalue) and page_p(rows) < 0.05
    tied = [[1, 2, 2], [1, 3, 2], [2, 2, 2], [1, 2, 3]]
    all_ways = [
        sum(j * rank for row in ways for j, rank in enumerate(row))
        for ways in product(*(permutations(stats.rankdata(row)) for row in tied))
    ]
    seen = sum(j * rank for row in tied for j, rank in enumerate(stats.rankdata(row)))
    assert page_p(tied) == pytest.approx(np.mean(np.array(all_ways) >= seen - 1e-9))
    assert page_p([[1, 1, 1]]) == 1.0


def test_halvings_of_one_arm_are_about_a_half() -> None:
    found = splits(np.random.default_rng(0).normal(size=8).tolist())
    assert len(found) == comb(8, 4) and found.mean() == pytest.approx(0.5)


def test_intervals_of_students_t() -> None:
    values = [0.1, 0.4, 0.3, 0.2, 0.6, 0.5]
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert t_interval(values) == pytest.approx((np.mean(values), expected.low, expected.high))
    assert t_interval([0.3])[0] == 0.3 and isnan(t_interval([0.3])[1])


def test_a_better_detector_is_better_by_its_auroc() -> None:
    plain, mixed = [*range(12)], [*range(12, 24)]
    noise = np.random.default_rng(1).normal(size=24).tolist()
    value, low, high = paired_auroc_difference((mixed, plain), (noise[:12], noise[12:]), seed=0)
    assert value == pytest.approx(1 - auroc(noise[:12], noise[12:])) and low <= value <= high and low > 0
    same, low, high = paired_auroc_difference((mixed, plain), (mixed, plain), seed=0)
    assert (same, low, high) == (0, 0, 0)


@pytest.mark.parametrize(("n", "low", "high"), [(2, "0.00", "1.00"), (4, "0.00", "1.00")])
def test_what_chance_allows_is_cut_alike_at_both_ends(n: int, low: str, high: str) -> None:
    assert _quantiles(splits(list(range(n)))) == f"[{low}, {high}]"
    for many in (5, 7, 12):
        ends = [float(end) for end in _quantiles(splits(list(range(many)))).strip("[]").split(", ")]
        assert sum(ends) == pytest.approx(1, abs=0.011)
