"""DenseNet-BC for 32 x 32 images (Huang et al. 2017), as the field's CIFAR projects train it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from models.cifar import _init

_BLOCKS = {121: (6, 12, 24, 16), 161: (6, 12, 36, 24), 169: (6, 12, 32, 32)}


class _DenseLayer(nn.Module):
    def __init__(self, c_in: int, growth: int, newest_first: bool) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(c_in)
        self.conv1 = nn.Conv2d(c_in, 4 * growth, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, 1, 1, bias=False)
        self.newest_first = newest_first

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        new = self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x))))))
        return torch.cat([new, x] if self.newest_first else [x, new], dim=1)


class _Transition(nn.Module):
    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(c_in)
        self.conv = nn.Conv2d(c_in, c_out, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(self.conv(F.relu(self.bn(x))), 2)


class CifarDenseNet(nn.Module):
    """DenseNet-BC with a 3 x 3 stem of stride 1, and `growth` new channels a layer.

    With `pool`, normalisation and max-pooling follow the stem and channels are kept in the order in which they were
    made; without, the newest stand first.
    """

    def __init__(self, depth: int, num_classes: int = 10, growth: int = 32, pool: bool = False) -> None:
        super().__init__()
        c = 2 * growth
        self.conv1 = nn.Conv2d(3, c, 3, 1, 1, bias=False)
        self.stem = nn.Sequential(nn.BatchNorm2d(c), nn.ReLU(), nn.MaxPool2d(3, 2, 1)) if pool else nn.Identity()
        layers: list[nn.Module] = []
        for stage, count in enumerate(_BLOCKS[depth]):
            dense = nn.Sequential(*(_DenseLayer(c + i * growth, growth, not pool) for i in range(count)))
            c += count * growth
            layers.append(dense)
            if stage < 3:
                layers.append(_Transition(c, c // 2))
                c //= 2
        self.stages = nn.Sequential(*layers)
        self.bn = nn.BatchNorm2d(c)
        self.linear = nn.Linear(c, num_classes)
        _init(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn(self.stages(self.stem(self.conv1(x)))))
        return self.linear(x.mean((2, 3)))
