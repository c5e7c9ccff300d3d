"""ResNet-18/34/50 and ResNeXt-29 for 32 x 32 images, as the field's CIFAR projects train them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from models.cifar import _init, _scaled


def _projection(c_in: int, c_out: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and c_in == c_out:
        return None
    return nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))


class _Basic(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.shortcut = _projection(c_in, c_out, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + (x if self.shortcut is None else self.shortcut(x)))


class _Bottleneck(nn.Module):
    def __init__(self, c_in: int, c_mid: int, c_out: int, stride: int, groups: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_mid, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_mid)
        self.conv2 = nn.Conv2d(c_mid, c_mid, 3, stride, 1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(c_mid)
        self.conv3 = nn.Conv2d(c_mid, c_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(c_out)
        self.shortcut = _projection(c_in, c_out, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return F.relu(self.bn3(self.conv3(out)) + (x if self.shortcut is None else self.shortcut(x)))


_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}


class CifarDeepResNet(nn.Module):
    """ResNet-18/34/50 (He et al. 2016, table 1) with a 3 x 3 stem of stride 1; max-pooling after it only by `pool`."""

    def __init__(self, depth: int, num_classes: int = 10, width: float = 1.0, pool: bool = False) -> None:
        super().__init__()
        c_in = _scaled(64, width)
        self.conv1 = nn.Conv2d(3, c_in, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_in)
        self.pool = nn.MaxPool2d(3, 2, 1) if pool else nn.Identity()
        for stage, blocks in enumerate(_BLOCKS[depth]):
            channels = _scaled(64 * 2**stage, width)
            c_out = 4 * channels if depth == 50 else channels
            layers: list[nn.Module] = []
            for i in range(blocks):
                stride = 2 if stage and i == 0 else 1
                layers.append(
                    _Bottleneck(c_in, channels, c_out, stride) if depth == 50 else _Basic(c_in, c_out, stride)
                )
                c_in = c_out
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
        self.linear = nn.Linear(c_in, num_classes)
        _init(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(F.relu(self.bn1(self.conv1(x))))
        for stage in range(4):
            x = self.get_submodule(f"layer{stage + 1}")(x)
        return self.linear(x.mean((2, 3)))


class CifarResNeXt(nn.Module):
    """ResNeXt-29 (Xie et al. 2017, section 5.3): three stages of three blocks, `groups` x `base` channels.

    Blocks of `stem` 1 (a 1 x 1 stem) have twice their inner channels outside; with `stem` 3, the paper's, blocks have
    256, 512 and 1024.
    """

    def __init__(self, groups: int, base: int, num_classes: int = 10, stem: int = 3) -> None:
        super().__init__()
        if stem not in (1, 3):
            raise ValueError(f"stem must be 1 or 3, got {stem}")
        c_in = 64
        self.conv1 = nn.Conv2d(3, c_in, stem, 1, stem // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(c_in)
        for stage in range(3):
            c_mid = groups * base * 2**stage
            c_out = 2 * c_mid if stem == 1 else 256 * 2**stage
            layers = []
            for i in range(3):
                layers.append(_Bottleneck(c_in, c_mid, c_out, 2 if stage and i == 0 else 1, groups))
                c_in = c_out
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
        self.linear = nn.Linear(c_in, num_classes)
        _init(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        for stage in range(3):
            x = self.get_submodule(f"layer{stage + 1}")(x)
        return self.linear(x.mean((2, 3)))
