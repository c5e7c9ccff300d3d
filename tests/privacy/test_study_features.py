"""Features of a network: values by hand, and no order of channels in them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from ensemble.privacy.moments import Moments
from ensemble.privacy.study.features import statistics_features, weight_features


def moments(mean: list[float], var: list[float], *sizes: int) -> Moments:
    layers = tuple((f"bn{i}", n) for i, n in enumerate(sizes))
    return Moments(layers, torch.tensor([mean]).double(), torch.tensor([var]).double())


def drawn(seed: int) -> Moments:
    rng = torch.Generator().manual_seed(seed)
    mean, var = torch.randn(3, 12, generator=rng).double(), torch.rand(3, 12, generator=rng).double() + 0.1
    return Moments((("a", 5), ("b", 7)), mean, var)


def test_two_channels_by_hand() -> None:
    found = statistics_features(moments([1.0, 3.0], [2.0, 2.0], 2), moments([0.0, 1.0], [1.0, 4.0], 2))
    log2 = math.log(2)
    expected = [0.0, log2, (1.0 + 4.0 / 4.0) / 2, (1.0 + 2.0 / 2.0) / 2]
    assert found.tolist() == pytest.approx(expected)


def test_the_same_statistics_are_zeros_and_plain_ones_are_averaged() -> None:
    plain = drawn(0)
    assert statistics_features(plain.average(), plain).abs().max() < 1e-12


def test_layers_follow_each_other() -> None:
    stored, plain = moments([0.0, 1.0, 5.0], [1.0, 1.0, 1.0], 2, 1), moments([0.0] * 3, [1.0] * 3, 2, 1)
    assert statistics_features(stored, plain).tolist() == pytest.approx([0, 0, 0.5, 0.5, 0, 0, 25, 5])


def test_the_order_of_channels_does_not_count_but_that_of_layers_does() -> None:
    stored, plain = drawn(1)[:1], drawn(2)
    order = torch.cat([torch.randperm(5), 5 + torch.randperm(7)])
    shuffled = [Moments(part.layers, part.mean[:, order], part.var[:, order]) for part in (stored, plain)]
    found = statistics_features(stored, plain)
    torch.testing.assert_close(statistics_features(*shuffled), found)
    assert found.shape == (8,) and not torch.allclose(found[:4], found[4:])


def test_a_dead_channel_stays_finite() -> None:
    found = statistics_features(moments([0.0, 0.0], [1.0, 1e-20], 2), moments([0.0, 0.0], [1.0, 0.0], 2))
    assert found.abs().max() < 1e-12


def test_statistics_of_other_layers_are_refused() -> None:
    with pytest.raises(ValueError, match="different layers"):
        statistics_features(moments([0.0], [1.0], 1), moments([0.0, 0.0], [1.0, 1.0], 2))


def small() -> nn.Module:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(6)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    layers = (nn.Conv2d(3, 6, 3), norm, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))
    return nn.Sequential(*layers)


@torch.no_grad()
def test_weights_by_hand() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 2))
    net[0].weight.copy_(torch.tensor([3.0, 4.0]).view(2, 1, 1, 1))
    net[1].weight.copy_(torch.tensor([1.0, 3.0]))
    net[1].bias.copy_(torch.tensor([-1.0, 1.0]))
    net[3].weight.copy_(torch.diag(torch.tensor([1.0, -2.0])))
    net[3].bias.copy_(torch.tensor([0.6, 0.8]))
    expected = [2, 1, 0, 1, math.sqrt(5), 2, 1, 0, 0, 0, 0, 0, 0, 1, math.log(5)]
    assert weight_features(net).tolist() == pytest.approx(expected)


@torch.no_grad()
def test_the_order_of_hidden_channels_does_not_count() -> None:
    net, other = small(), small()
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    for layer in (other[0], other[1]):
        layer.weight.copy_(layer.weight[order])
        layer.bias.copy_(layer.bias[order])
    other[5].weight.copy_(other[5].weight[:, order])
    torch.testing.assert_close(weight_features(other), weight_features(net))
    other[5].weight.mul_(2)
    assert not torch.allclose(weight_features(other), weight_features(net))


def test_a_pointwise_convolution_may_be_the_classifier_and_norms_without_weights_do_not_count() -> None:
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, affine=False), nn.Conv2d(6, 4, 1, bias=False))
    found = weight_features(net)
    assert found.shape == (11,) and found[9] == 0
    assert float(found[0]) == pytest.approx(float(net[2].weight.detach().norm()))


def test_a_network_without_a_classifier_is_refused() -> None:
    with pytest.raises(ValueError, match="could be its classifier"):
        weight_features(nn.Conv2d(3, 4, 3))
