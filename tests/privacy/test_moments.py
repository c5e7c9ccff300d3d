"""Moments at BatchNorm inputs, against PyTorch's own and NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_networks import small_net
from torch import nn

from ensemble.privacy.moments import bn_layers, moments_of, stored, with_stored


def test_the_first_layers_moments_are_numpys() -> None:
    net = small_net()
    batch = torch.rand(6, 3, 16, 16)
    found = moments_of(net, [batch])
    x = net[0](batch).detach().double().numpy().transpose(1, 0, 2, 3).reshape(12, -1)
    np.testing.assert_allclose(found.mean[0, :12], x.mean(1), atol=1e-6)
    np.testing.assert_allclose(found.var[0, :12], x.var(1, ddof=1), rtol=1e-5)


def test_averages_of_batches_are_what_training_with_a_cumulative_average_stores() -> None:
    net, twin = small_net(), small_net()
    batches = [torch.rand(8, 3, 16, 16) for _ in range(3)]
    for layer in bn_layers(twin).values():
        layer.reset_running_stats()
        layer.momentum = None
        layer.train()
    with torch.no_grad():
        for batch in batches:
            twin(batch)
    found, expected = moments_of(net, batches).average(), stored(twin, bn_layers(twin))
    torch.testing.assert_close(found.mean, expected.mean, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found.var, expected.var, atol=1e-6, rtol=1e-4)


def test_the_network_stays_as_it_was_and_a_copy_takes_other_statistics() -> None:
    net = small_net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    found = moments_of(net, [torch.rand(8, 3, 16, 16)])
    made = with_stored(net, found)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    torch.testing.assert_close(stored(made, bn_layers(made)).var, found.var)


def test_a_network_without_running_statistics_is_refused() -> None:
    with pytest.raises(ValueError, match="no BatchNorm layer with running statistics"):
        moments_of(
            nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)), [torch.rand(4, 3, 8, 8)]
        )
