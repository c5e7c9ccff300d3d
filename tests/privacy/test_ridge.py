"""Leave-pair-out against a fit of every pair by its normal equations, the null, what is planted, and permutations."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from ensemble.privacy.study.ridge import leave_pair_out, leave_pair_out_auroc, ridge_p


def bank(seeds: int, features: int, seed: int, effect: float = 0.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two networks a seed, which share half of their variance; the positive one has `effect` in its first feature."""
    rng = torch.Generator().manual_seed(seed)
    positive = torch.tensor([True, False] * seeds)
    seed_of = torch.arange(seeds).repeat_interleave(2)
    x = torch.randn(2 * seeds, features, generator=rng) + torch.randn(seeds, features, generator=rng)[seed_of]
    x[:, 0] += effect * positive
    return x, positive, seed_of


def by_normal_equations(features: torch.Tensor, positive: torch.Tensor, seeds: torch.Tensor) -> np.ndarray:
    x, y, s = features.double().numpy(), np.where(positive.numpy(), 1.0, -1.0), seeds.numpy()
    rows = []
    for i in np.flatnonzero(y > 0):
        row = []
        for j in np.flatnonzero(y < 0):
            known = (s != s[i]) & (s != s[j])
            mean, sd = x[known].mean(0), x[known].std(0)
            z = (x[known] - mean) / sd
            design = np.hstack([z, np.ones((len(z), 1))])  # an intercept, which is not penalised
            penalty = np.diag([float(x.shape[1])] * x.shape[1] + [0.0])
            w = np.linalg.solve(design.T @ design + penalty, design.T @ y[known])[:-1]
            row.append(float((x[i] - x[j]) / sd @ w > 0))
        rows.append(row)
    return np.array(rows)


@pytest.mark.parametrize("features", [3, 40])
def test_every_pair_is_what_the_normal_equations_say(features: int) -> None:
    x, positive, seeds = bank(7, features, features, effect=1.0)
    positive[3] = True  # seeds need not be balanced
    found = leave_pair_out(x, positive, seeds)
    expected = by_normal_equations(x, positive, seeds)
    assert 0 < expected.mean() < 1
    np.testing.assert_array_equal(found.numpy(), expected)
    assert leave_pair_out_auroc(x, positive, seeds) == pytest.approx(expected.mean())


def test_units_of_features_and_the_order_of_networks_do_not_count() -> None:
    x, positive, seeds = bank(6, 5, 1, effect=1.0)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    found = leave_pair_out_auroc(x, positive, seeds)
    scaled = x * torch.tensor([1e-3, 1.0, 50.0, 1e4, 2.0]) + 7
    assert leave_pair_out_auroc(scaled, positive, seeds) == pytest.approx(found)
    assert leave_pair_out_auroc(x[order], positive[order], seeds[order] + 5) == pytest.approx(found)


def test_nothing_to_find_is_a_half_and_what_is_planted_is_found() -> None:
    null = [leave_pair_out_auroc(*bank(6, 10, seed)) for seed in range(60)]
    assert abs(float(np.mean(null)) - 0.5) < 3 * float(np.std(null)) / 60**0.5 + 0.01
    assert leave_pair_out_auroc(*bank(10, 4, 0, effect=12.0)) == 1


def test_constant_features_tie() -> None:
    _, positive, seeds = bank(4, 1, 0)
    assert (leave_pair_out(torch.full((8, 3), 0.1), positive, seeds) == 0.5).all()


def test_permutations_are_uniform_where_there_is_nothing_to_find() -> None:
    p = np.array([ridge_p(*bank(6, 4, seed), draws=99, seed=seed) for seed in range(120)])
    assert abs(p.mean() - 0.5) < 0.1
    for level in (0.05, 0.1, 0.25):
        assert (p <= level).mean() < level + 3 * (level * (1 - level) / 120) ** 0.5


def test_permutations_are_a_sample_of_all_labellings() -> None:
    x, positive, seeds = bank(6, 4, 3, effect=1.5)
    observed, drawn = leave_pair_out_auroc(x, positive, seeds), []
    for swaps in product((False, True), repeat=6):
        labels = positive ^ torch.tensor(swaps)[seeds]
        drawn.append(leave_pair_out_auroc(x, labels, seeds))
    exact = float(np.mean(np.array(drawn) > observed - 1e-9))
    assert drawn[0] == drawn[-1]  # all labels swapped
    assert 0.02 < exact < 0.5
    assert ridge_p(x, positive, seeds, draws=999) == pytest.approx(exact, abs=4 * (exact * (1 - exact) / 999) ** 0.5)


def test_what_is_planted_has_the_smallest_p_there_is_and_a_seed_says_which() -> None:
    planted = bank(12, 30, 0, effect=12.0)
    assert ridge_p(*planted, draws=199) == pytest.approx(1 / 200)
    weak = bank(6, 4, 1)
    assert ridge_p(*weak, draws=49, seed=1) == ridge_p(*weak, draws=49, seed=1)


def test_what_cannot_be_asked_is_refused() -> None:
    x, positive, seeds = bank(4, 3, 0)
    with pytest.raises(ValueError, match="leaves no network to learn from"):
        leave_pair_out(x[:4], positive[:4], seeds[:4])
    with pytest.raises(ValueError, match="one of the labels is missing"):
        leave_pair_out(x, torch.ones_like(positive), seeds)
    with pytest.raises(ValueError, match="not all finite"):
        leave_pair_out(x * torch.inf, positive, seeds)
    with pytest.raises(ValueError, match="one positive and one negative"):
        ridge_p(x[:-1], positive[:-1], seeds[:-1], draws=9)
    with pytest.raises(ValueError, match="one positive and one negative"):
        ridge_p(x, positive ^ (seeds == 0) & positive, seeds, draws=9)
