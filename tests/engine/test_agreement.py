"""Cosines between teachers' gradients: by hand, against NumPy, and the parts they are of against differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from linear import FULL, SIZE, Curved, draw, losses_of, plain_loss, rows

from ensemble.engine.agreement import Agreement, agreement_of, radius
from ensemble.engine.placement import Cell
from ensemble.engine.reduction import FixedPointSum

TARGETS = torch.tensor([0, 1, 0, 1, 1])
CELLS = [[Cell(0, 0, 5), Cell(1, 0, 5)], [Cell(1, 2, 5), Cell(0, 0, 1), Cell(0, 1, 5), Cell(1, 0, 2)]]


def test_linear_teachers_by_hand() -> None:
    """On the left the second wants what the first wants, twice; on the right the opposite; the third has no say."""
    wanted = torch.ones(3, SIZE, SIZE, dtype=torch.float64)
    other = 2 * wanted
    other[:, :, SIZE // 2 :] *= -1
    loss = losses_of([rows(wanted), rows(other), rows(0 * wanted)], (1.0, 5.0, 1.0), TARGETS[:2])
    found = agreement_of(["a", "b", "c"], loss.parts(draw(2)))
    assert {pair: cosine.tolist() for pair, cosine in found.cosines.items()} == {
        "a~b": [0, 0], "a~c": [0, 0], "b~c": [0, 0],
    }  # fmt: skip
    third = round(1 / 3, 3)
    ninth = round(1 / 9, 3)
    row = [third, third, third, ninth, -ninth, -third, -third, -third]  # the box is 3 wide
    assert torch.allclose(found.maps.double(), torch.tensor(row, dtype=torch.float64).expand(2, SIZE, SIZE), atol=1e-3)
    pair = agreement_of(["a", "b"], iter([wanted[None], 7 * wanted[None]]))
    assert pair.cosines["a~b"].tolist() == [1] and torch.equal(pair.maps, torch.ones(1, SIZE, SIZE).half())
    assert agreement_of(["a", "b"], iter([wanted[None], -wanted[None]])).mean.tolist() == [-1]


@pytest.mark.parametrize("size", [(5, 7), (40, 33)])
def test_it_is_numpys(size: tuple[int, int]) -> None:
    """Also where gradients are so small that their squares are none in float32, and windows end at the border."""
    parts = [torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(t)) * 1e-25 for t in range(3)]
    found = agreement_of("abc", iter(parts))
    a, b, c = (part.double().numpy() for part in parts)
    reach, (height, width) = radius(*size), size
    total = np.zeros((2, height, width))
    for name, x, y in (("a~b", a, b), ("a~c", a, c), ("b~c", b, c)):
        for i in range(2):
            cosine = (x[i] * y[i]).sum() / np.linalg.norm(x[i]) / np.linalg.norm(y[i])
            assert float(found.cosines[name][i]) == pytest.approx(cosine, abs=1e-6)
            for row, column in np.ndindex(height, width):
                up, left = max(0, row - reach), max(0, column - reach)
                u, v = (z[i, :, up : row + reach + 1, left : column + reach + 1].ravel() for z in (x, y))
                total[i, row, column] += u @ v / np.linalg.norm(u) / np.linalg.norm(v) / 3
    assert float((found.maps.double() - torch.from_numpy(total)).abs().max()) < 1e-3
    assert torch.allclose(found.mean, torch.stack(list(found.cosines.values())).mean(0))


def test_the_box_is_an_eighth_of_the_side() -> None:
    assert [2 * radius(side, side) + 1 for side in (1, 8, 32, 64, 224)] == [3, 3, 5, 9, 29]
    assert radius(224, 32) == 2


@pytest.mark.parametrize("cells", CELLS)
@pytest.mark.parametrize("reduction", [None, FixedPointSum()])
def test_parts_are_each_teachers_own(cells: list[Cell], reduction: FixedPointSum | None) -> None:
    networks, view = [Curved(0), Curved(1)], draw(5)
    loss = losses_of(networks, (1.0, 3.0), TARGETS, FULL, cells, reduction=reduction)
    for part, network, weight in zip(loss.parts(view), networks, (0.25, 0.75), strict=True):
        leaf = view.clone().requires_grad_()
        (expected,) = torch.autograd.grad(weight * plain_loss(network, leaf, TARGETS), leaf)
        assert float((part - expected).norm() / expected.norm()) < (1e-9 if reduction else 1e-12)


def test_parts_by_finite_differences() -> None:
    networks, view = [Curved(0), Curved(1)], draw(5)
    loss = losses_of(networks, (1.0, 3.0), TARGETS, FULL, CELLS[1])
    direction = draw(5, seed=1) - 0.5
    ahead, behind = (loss.measure(view + h * direction).per_teacher[:, :2] for h in (1e-5, -1e-5))
    slopes = ((ahead - behind) / 2e-5 * torch.tensor([0.7, 0.3])).sum(1)
    for part, slope, weight in zip(loss.parts(view), slopes.tolist(), (0.25, 0.75), strict=True):
        assert float((part * direction).sum()) == pytest.approx(weight * slope, rel=1e-6)


def test_each_part_takes_one_sum_over_ranks() -> None:
    sizes: list[int] = []

    def reduce(tensor: torch.Tensor) -> None:
        sizes.append(tensor.numel())

    view = draw(5)
    parts = losses_of([Curved(0), Curved(1)], (1.0, 3.0), TARGETS, FULL, reduce=reduce).parts(view)
    next(parts)
    assert sizes[1:] == [view.numel()]
    next(parts)
    assert sizes[1:] == [view.numel()] * 2


def test_batches_are_joined_and_named_tensors_come_back() -> None:
    one, other = (agreement_of("ab", iter([draw(n), draw(n, seed=1)])) for n in (2, 3))
    both = Agreement.joined([one, other])
    assert both.maps.shape == (5, SIZE, SIZE) and torch.equal(both.cosines["a~b"][2:], other.cosines["a~b"])
    back = Agreement.from_tensors(both.tensors())
    assert back is not None and torch.equal(back.maps, both.maps) and back.cosines.keys() == {"a~b"}
    assert Agreement.from_tensors({}) is None
