"""Teachers' gradients brought to one magnitude, image by image: against plain torch, over any cells."""

from __future__ import annotations

import pytest
import torch
from linear import FULL, Curved, draw, losses_of, plain_loss, rows

from ensemble.engine.placement import Cell
from ensemble.engine.reduction import FixedPointSum

TARGETS = torch.tensor([0, 1, 0, 1, 1])
WEIGHTS = (1.0, 2.0, 0.5)
UNEVEN = [Cell(1, 3, 5), Cell(0, 0, 1), Cell(0, 1, 5), Cell(2, 2, 5), Cell(1, 0, 3), Cell(2, 0, 2)]


@pytest.mark.parametrize("cells", [None, UNEVEN])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("reduction", [None, FixedPointSum()])
def test_it_is_plain_torchs(cells: list[Cell] | None, recompute: bool, reduction: FixedPointSum | None) -> None:
    networks, view = [Curved(seed) for seed in range(3)], draw(5)
    expected = torch.zeros_like(view)
    for network, weight in zip(networks, WEIGHTS, strict=True):
        leaf = view.clone().requires_grad_()
        (part,) = torch.autograd.grad(plain_loss(network, leaf, TARGETS), leaf)
        for i in range(5):
            expected[i] += weight / 3.5 * part[i] / part[i].abs().mean()
    leaf = view.clone().requires_grad_()
    expected += torch.autograd.grad(FULL.prior_loss(leaf), leaf)[0]
    options = {"cells": cells, "recompute": recompute, "reduction": reduction}
    loss = losses_of(networks, WEIGHTS, TARGETS, FULL, equal=True, **options)  # type: ignore[arg-type]
    _, gradient, _ = loss.gradient(view, {t: weight / 3.5 for t, weight in enumerate(WEIGHTS)})
    assert float((gradient - expected).norm() / expected.norm()) < (1e-9 if reduction else 1e-12)


def test_a_loud_teacher_drowns_none_and_a_silent_one_gives_zeros() -> None:
    one = torch.zeros(3, 8, 8)
    one[0, 0, 0] = 1
    loud, quiet, silent = 1e6 * one, one.flip(0), 0 * one
    loss = losses_of([rows(loud), rows(quiet), rows(silent)], (1.0, 1.0, 1.0), TARGETS[:1], equal=True)
    _, gradient, _ = loss.gradient(draw(1), {0: 0.5, 1: 0.25, 2: 0.25})
    assert float(gradient[0, 0, 0, 0]) == pytest.approx(-0.5 * 192)  # the mean magnitude over 192 values is 1
    assert float(gradient[0, 2, 0, 0]) == pytest.approx(-0.25 * 192)
    assert int((gradient != 0).sum()) == 2
