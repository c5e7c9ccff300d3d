"""How far images are from a network's statistics, against plain torch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ensemble.evaluation.bn_distance import bn_distance
from models import ModelCard, create_model

CARD = ModelCard("two", "test", 8, 3, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))


def net() -> nn.Module:
    torch.manual_seed(0)
    made = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5), nn.Flatten()
    )
    made.append(nn.Linear(80, 3))
    for module in made:
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.5)  # type: ignore[union-attr, operator]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr, operator]
    return made.eval()


def test_it_is_plain_torchs_over_any_parts() -> None:
    """Without measured levels the unit is the error of sampling: of P positions P / (4 + P / 12) count."""
    network, images = net(), torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    seen: list[torch.Tensor] = []
    for module in network:
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].double()))
    view = (images - torch.tensor(CARD.mean).view(3, 1, 1)) / torch.tensor(CARD.std).view(3, 1, 1)
    with torch.no_grad():
        network(view)
    ratios = []
    for module, x in zip([m for m in network if isinstance(m, nn.BatchNorm2d)], seen, strict=True):
        mean, var = module.running_mean.double(), module.running_var.double()  # type: ignore[union-attr, operator]
        positions = x[0, 0].numel()
        count = positions / (4 + positions / 12) * len(images)
        gap = (x.mean((0, 2, 3)) - mean).norm() / var.sqrt().norm()
        ratios.append(gap / (1 / count) ** 0.5)
        gap = (x.var((0, 2, 3), correction=0) - var).norm() / var.norm()
        ratios.append(gap / (2 / count) ** 0.5)
    expected = float(torch.stack(ratios).mean())
    for parts in ([images], images.split(5)):
        assert bn_distance(network, CARD, parts) == pytest.approx(expected, rel=1e-4)
    assert network[1].weight.requires_grad, "the judge is left as it was"


def test_larger_images_are_read_at_the_judges_size_and_a_network_without_layers_says_nothing() -> None:
    images = torch.rand(6, 3, 16, 16)
    assert bn_distance(net(), CARD, [images]) == pytest.approx(
        bn_distance(net(), CARD, [nn.functional.interpolate(images, (8, 8), mode="bilinear", antialias=True)])
    )
    assert bn_distance(nn.Sequential(nn.Flatten(), nn.Linear(192, 3)), CARD, [images[:, :, :8, :8]]) is None


def test_noise_is_far_from_what_a_bundled_network_saw() -> None:
    network, card = create_model("mobilenetv2_slim_cifar")
    found = bn_distance(network, card, [torch.rand(50, 3, 32, 32)])
    assert found is not None and found > 3
