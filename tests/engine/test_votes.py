"""Gradients that are masked where teachers conflict: by hand, against plain torch, over any cells."""

from __future__ import annotations

import pytest
import torch
from linear import FULL, SIZE, Curved, draw, losses_of, plain_loss, rows

from ensemble.engine.placement import Cell
from ensemble.engine.reduction import FixedPointSum
from ensemble.engine.votes import Votes

TARGETS = torch.tensor([0, 1, 0, 1, 1])
WEIGHTS = (1.0, 2.0, 0.5)
UNEVEN = [Cell(1, 3, 5), Cell(0, 0, 1), Cell(0, 1, 5), Cell(2, 2, 5), Cell(1, 0, 3), Cell(2, 0, 2)]


def image(*values: float) -> torch.Tensor:
    """(3, SIZE, SIZE) that begins with these, and is 0 elsewhere."""
    made = torch.zeros(3 * SIZE * SIZE, dtype=torch.float64)
    made[: len(values)] = torch.tensor(values, dtype=torch.float64)
    return made.view(3, SIZE, SIZE)


def first_values(gradient: torch.Tensor, count: int) -> list[list[float]]:
    """Of each image."""
    return [[round(float(v), 12) for v in one.flatten()[:count]] for one in gradient]


def test_two_linear_teachers_by_hand() -> None:
    """Weights 1/3 and 2/3: where signs differ the vote is 1/3; where one of both is 0, it is the other's weight."""
    networks = [rows(image(3, 3, 0, 3, 0)), rows(image(6, -6, 6, 0, 0))]
    for threshold, masked in ((0.3, [5, -3, 4, 1, 0]), (0.5, [5, 0, 4, 0, 0]), (0.7, [5, 0, 0, 0, 0])):
        loss = losses_of(networks, (1.0, 2.0), TARGETS[:2], threshold=threshold)
        _, gradient, _ = loss.gradient(draw(2), {0: 1 / 3, 1: 2 / 3})
        half = [v / 2 for v in masked]
        assert first_values(gradient, 5) == [[-v or 0.0 for v in half], half]


def test_the_bound_itself_is_enough() -> None:
    """Also of shares that binary numbers cannot hold; and all are enough where all are asked for."""
    signs = [image(1, 1), image(1, 1), image(1, 1), image(1, -1)]
    for weights in ((0.1, 0.1, 0.1, 0.1), (0.1, 0.2, 0.3, 0.1), (1.0, 3.0, 5.0, 2.0), (0.3, 0.1, 0.7, 0.2)):
        share = [weight / sum(weights) for weight in weights]
        networks = [rows(one) for one in signs]
        for threshold, kept in ((1 - 2 * share[3], 1 - 2 * share[3]), (1 - 2 * share[3] + 1e-4, 0.0), (1.0, 0.0)):
            loss = losses_of(networks, weights, TARGETS[1:2], threshold=threshold)
            _, gradient, _ = loss.gradient(draw(1), dict(enumerate(share)))
            assert first_values(gradient, 2) == [[1.0, round(kept, 12)]]


def test_a_tie_is_never_enough() -> None:
    loss = losses_of([rows(image(1)), rows(image(-3))], (1.0, 1.0), TARGETS[1:2], threshold=1e-7)
    _, gradient, _ = loss.gradient(draw(1), {0: 0.5, 1: 0.5})
    assert first_values(gradient, 1) == [[0.0]]


@pytest.mark.parametrize("cells", [None, UNEVEN])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("reduction", [None, FixedPointSum()])
def test_it_is_plain_torchs(cells: list[Cell] | None, recompute: bool, reduction: FixedPointSum | None) -> None:
    """Terms that read the whole batch, priors that are not masked, teachers cut into slices."""
    networks, view = [Curved(seed) for seed in range(3)], draw(5)
    parts = []
    for network, weight in zip(networks, WEIGHTS, strict=True):
        leaf = view.clone().requires_grad_()
        parts.append(torch.autograd.grad(weight / 3.5 * plain_loss(network, leaf, TARGETS), leaf)[0])
    votes = sum(weight / 3.5 * part.sign() for weight, part in zip(WEIGHTS, parts, strict=True))
    assert isinstance(votes, torch.Tensor)
    agreed = votes.abs() >= 0.5
    assert 0.2 < float(agreed.double().mean()) < 0.8
    leaf = view.clone().requires_grad_()
    (prior,) = torch.autograd.grad(FULL.prior_loss(leaf), leaf)
    expected = torch.where(agreed, torch.stack(parts).sum(0), 0.0) + prior
    options = {"cells": cells, "recompute": recompute, "reduction": reduction}
    loss = losses_of(networks, WEIGHTS, TARGETS, FULL, threshold=0.5, **options)  # type: ignore[arg-type]
    _, gradient, _ = loss.gradient(view, {t: weight / 3.5 for t, weight in enumerate(WEIGHTS)})
    assert float((gradient - expected).norm() / expected.norm()) < (1e-9 if reduction else 1e-12)


def test_a_sum_has_the_bits_of_a_sum() -> None:
    """Without a threshold nothing but the parts is added, in the order of the cells, and one tensor is summed."""
    networks, view = [Curved(0), Curved(1)], draw(5)
    cells = [Cell(0, 0, 5), Cell(1, 0, 2), Cell(1, 2, 5)]
    sizes: list[int] = []

    def reduce(tensor: torch.Tensor) -> None:
        sizes.append(tensor.numel())

    loss = losses_of(networks, (1.0, 2.0), TARGETS, FULL, cells, reduce=reduce)
    weights = {0: 1 / 3, 1: 2 / 3}
    _, gradient, _ = loss.gradient(view, weights)
    assert sizes[1:] == [view.numel()]
    first, second = loss.parts(view)
    leaf = view.clone().requires_grad_()
    (prior,) = torch.autograd.grad(FULL.prior_loss(leaf), leaf)
    assert torch.equal(gradient, first + second + prior)
    sizes.clear()
    losses_of(networks, (1.0, 2.0), TARGETS, FULL, cells, reduce=reduce, threshold=0.5).gradient(view, weights)
    assert sizes[1:] == [view.numel()] * 2


def test_teachers_that_do_not_act_do_not_vote() -> None:
    networks = [rows(image(1)), rows(image(2)), rows(image(-9))]
    loss = losses_of(networks, (1.0, 1.0, 1.0), TARGETS[1:2], threshold=1.0)
    _, gradient, _ = loss.gradient(draw(1), {0: 0.5, 1: 0.5})
    assert first_values(gradient, 1) == [[1.5]]


def test_what_is_not_a_number_is_not_masked() -> None:
    """It must be seen, not lost among conflicts."""
    view = torch.zeros(1, 3, 1, 1)
    votes = Votes({0: 0.5, 1: 0.5}, 0.5, view)
    part = torch.tensor([float("nan"), float("inf"), 1.0]).view(1, 3, 1, 1)
    votes.add(Cell(0, 0, 1), part)
    votes.add(Cell(1, 0, 1), -part)
    masked = votes.masked(part - part, lambda tensor: None)
    assert masked.isnan().flatten().tolist() == [True, True, False]
