"""Sums over cells: fixed point is associative, and says when it overflows."""

import itertools

import pytest
import torch

from ensemble.engine.reduction import FixedPointSum, FloatSum


def _sum(reduction, terms):
    total = reduction.zeros(terms[0].shape, terms[0].dtype, torch.device("cpu"))
    for term in terms:
        reduction.add(total, term)
    return reduction.result(total, lambda tensor: None, terms[0].dtype)


def test_fixed_point_gives_the_same_bits_in_any_order():
    terms = [torch.randn(5, generator=torch.Generator().manual_seed(i)) * 10.0**-i for i in range(4)]
    sums = [_sum(FixedPointSum(), list(order)) for order in itertools.permutations(terms)]
    assert all(torch.equal(s, sums[0]) for s in sums)
    torch.testing.assert_close(sums[0], _sum(FloatSum(), terms))


def test_fixed_point_rounds_to_its_unit():
    assert _sum(FixedPointSum(bits=2), [torch.tensor([0.3, 0.4])]).tolist() == [0.25, 0.5]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 257.0, -1e30])
def test_what_does_not_fit_comes_out_as_nan(bad):
    result = _sum(FixedPointSum(), [torch.tensor([1.0, 1.0]), torch.tensor([bad, 2.0]), torch.tensor([-200.0, 3.0])])
    assert torch.isnan(result[0])
    assert result[1] == 6.0


@pytest.mark.parametrize("count", [1, 7, 8, 16, 1024])
@pytest.mark.parametrize("bad", [float("nan"), 1e9, -1e9])
def test_many_terms_that_do_not_fit_do_not_cancel(count, bad):
    terms = [torch.tensor([bad, 0.25]) for _ in range(count)]
    result = _sum(FixedPointSum(), [torch.tensor([-200.0, 0.0]), *terms, torch.tensor([100.0, 0.0])])
    assert torch.isnan(result[0]) and result[1] == 0.25 * count


@pytest.mark.parametrize("ranks", [2, 8, 64, 128])
def test_ranks_that_all_have_such_a_term(ranks):
    reduction = FixedPointSum()
    total = reduction.zeros((1,), torch.float32, torch.device("cpu"))
    reduction.add(total, torch.tensor([float("nan")]))
    assert torch.isnan(reduction.result(total, lambda tensor: tensor.mul_(ranks), torch.float32))
