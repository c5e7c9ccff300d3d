"""A small network with BatchNorm, and images with edges, for detectors."""

from __future__ import annotations

import torch
from torch import nn

from models import ModelCard

CARD = ModelCard(
    "small", "test", 16, 3, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), class_names=("a", "b", "c")
)


def small_net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for before, after in ((3, 12), (12, 16), (16, 16), (16, 16)):
        layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3)).eval()


def textured(n: int, seed: int = 0, size: int = 16) -> torch.Tensor:
    """uint8 (N, 3, H, W): smooth colours, and a disc of another one in each."""
    rng = torch.Generator().manual_seed(seed)
    smooth = nn.functional.interpolate(torch.rand(n, 3, 4, 4, generator=rng), size=size, mode="bicubic")
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    centre, radius = size * torch.rand(n, 2, 1, 1, generator=rng), 2 + size / 4 * torch.rand(n, 1, 1, generator=rng)
    inside = (y - centre[:, 0]) ** 2 + (x - centre[:, 1]) ** 2 < radius**2
    colour = torch.rand(n, 3, 1, 1, generator=rng)
    made = torch.where(inside[:, None], colour, smooth) + 0.03 * torch.randn(n, 3, size, size, generator=rng)
    return (255 * (0.15 + 0.6 * made).clamp(0, 1)).to(torch.uint8)
