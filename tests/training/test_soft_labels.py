"""Soft labels: values by hand and NumPy twins."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ensemble.data.soft_labels import centred, deviation, pooled, scales
from ensemble.machine.rng import generator
from ensemble.training.soft_labels import kl_divergence, squared_distance


def logits(seed: int, n: int = 6, classes: int = 4) -> torch.Tensor:
    return torch.randn(n, classes, generator=generator(seed, "test"), dtype=torch.float64)


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def test_deviation_by_hand() -> None:
    """Centred rows (-1, 1), (-3, 3): the mean square is 5; what is added to a row does not count."""
    assert deviation(torch.tensor([[10.0, 12.0], [0.0, 6.0]])) == pytest.approx(math.sqrt(5))
    assert deviation(torch.tensor([[0.0, 2.0], [97.0, 103.0]]).half()) == pytest.approx(math.sqrt(5))


def test_scales_by_hand() -> None:
    """Deviations 1 and 3 have the mean 2."""
    assert scales({"a": 1.0, "b": 3.0}) == pytest.approx({"a": 2.0, "b": 2 / 3})
    assert scales({"a": 7.0}) == {"a": 1.0}


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_a_teacher_that_says_the_same_everywhere(value: float) -> None:
    with pytest.raises(ValueError, match="soft labels: b tells no classes apart here; leave it out"):
        scales({"a": 1.0, "b": value})


def test_scaled_teachers_reach_as_far_and_keep_the_mean() -> None:
    each = {"a": logits(0), "b": 30 * logits(1) + 5}
    deviations = {name: deviation(z) for name, z in each.items()}
    factors = scales(deviations)
    reach = [deviation(factors[name] * z) for name, z in each.items()]
    assert reach == pytest.approx([np.mean([*deviations.values()])] * 2)


def test_pooled_logits_equal_numpy() -> None:
    a, b = logits(0), logits(1)
    expected = (a.numpy() - a.numpy().mean(1, keepdims=True) + b.numpy() - b.numpy().mean(1, keepdims=True)) / 2
    np.testing.assert_allclose(pooled([a, b], "logits", 3.0), expected, atol=1e-12)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_pooled_probabilities_equal_numpy(temperature: float) -> None:
    each = [logits(seed) for seed in range(3)]
    z = pooled(each, "probabilities", temperature)
    expected = np.mean([softmax(one.numpy() / temperature) for one in each], 0)
    np.testing.assert_allclose((z / temperature).softmax(1), expected, rtol=1e-12)


def test_the_two_averages_by_hand() -> None:
    """Teachers that are sure of different classes: both averages say one half; of one and undecided, they differ."""
    sure, other = torch.tensor([[4.0, 0.0]]), torch.tensor([[0.0, 4.0]])
    for average in ("logits", "probabilities"):
        torch.testing.assert_close(pooled([sure, other], average, 1.0).softmax(1), torch.full((1, 2), 0.5))
    undecided = torch.zeros(1, 2)
    sigmoid = 1 / (1 + math.exp(-4))
    assert float(pooled([sure, undecided], "probabilities", 1.0).softmax(1)[0, 0]) == pytest.approx((sigmoid + 0.5) / 2)
    assert float(pooled([sure, undecided], "logits", 1.0).softmax(1)[0, 0]) == pytest.approx(1 / (1 + math.exp(-2)))


@pytest.mark.parametrize("average", ["logits", "probabilities"])
def test_one_teacher_is_itself(average: str) -> None:
    torch.testing.assert_close(pooled([logits(0)], average, 4.0), centred(logits(0)))


def test_divergence_by_hand() -> None:
    """KL((1, 0) || (1/2, 1/2)) = log 2; T² = 9."""
    told, undecided = torch.tensor([[1.0, 0.0]]), torch.zeros(1, 2)
    assert float(kl_divergence(told, undecided, 3.0, scale=False)) == pytest.approx(math.log(2))
    assert float(kl_divergence(told, undecided, 3.0, scale=True)) == pytest.approx(9 * math.log(2))


def test_divergence_equals_torch() -> None:
    teacher, student = logits(0), logits(1)
    told = (teacher / 4).softmax(1)
    twin = torch.nn.KLDivLoss(reduction="batchmean")((student / 4).log_softmax(1), told)
    torch.testing.assert_close(kl_divergence(told, student, 4.0, scale=False), twin)
    torch.testing.assert_close(kl_divergence(told, 4 * told.log(), 4.0, scale=True), torch.zeros((), dtype=told.dtype))


def test_the_scale_keeps_the_gradient() -> None:
    """At a high temperature, T² KL is 1/2C |centred difference|² (Hinton et al.), whose gradient has no T."""
    teacher, student = logits(0), logits(1).requires_grad_()
    kl_divergence((teacher / 1000).softmax(1), student, 1000.0, scale=True).backward()
    expected = (centred(student.detach()) - centred(teacher)) / (6 * 4)
    torch.testing.assert_close(student.grad, expected, atol=1e-4, rtol=1e-2)


def test_squared_distance_by_hand() -> None:
    """Centred (-1, 1) and (-2, 2): each class is 1 away."""
    assert float(squared_distance(torch.tensor([[0.0, 2.0]]), torch.tensor([[5.0, 9.0]]))) == pytest.approx(1.0)
