"""MobileNetV2 for 32 x 32 images (Sandler et al. 2018, table 2) as the field's CIFAR projects train it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from models.cifar import CifarMobileNetV2, _init

# (expansion, channels, blocks, stride of the first block)
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def _eighths(channels: float) -> int:
    """The multiple of 8 that is nearest, but not more than 10 % less (the paper's authors' rule)."""
    near = max(8, int(channels + 4) // 8 * 8)
    return near + 8 if near < 0.9 * channels else near


def _conv(c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(c_out),
        nn.ReLU6(inplace=True),
    )


class _Inverted(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int, expansion: int) -> None:
        super().__init__()
        c_mid = c_in * expansion
        expand = [_conv(c_in, c_mid, 1)] if expansion != 1 else []
        project = nn.Conv2d(c_mid, c_out, 1, bias=False), nn.BatchNorm2d(c_out)
        self.conv = nn.Sequential(*expand, _conv(c_mid, c_mid, 3, stride, c_mid), *project)
        self.residual = stride == 1 and c_in == c_out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class LateMobileNetV2(nn.Module):
    """MobileNetV2 that halves where ImageNet's does, but for the stem and the first two times."""

    def __init__(self, num_classes: int = 10, width: float = 1.0) -> None:
        super().__init__()
        c_in, last = _eighths(32 * width), _eighths(1280 * max(1.0, width))
        layers: list[nn.Module] = [_conv(3, c_in, 3)]
        for expansion, channels, repeats, first_stride in _STAGES:
            c_out = _eighths(channels * width)
            for i in range(repeats):
                layers.append(_Inverted(c_in, c_out, first_stride if i == 0 else 1, expansion))
                c_in = c_out
        self.features = nn.Sequential(*layers, _conv(c_in, last, 1))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(last, num_classes))
        _init(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


class _Expanded(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int, expansion: int) -> None:
        super().__init__()
        c_mid = c_in * expansion
        self.conv1 = nn.Conv2d(c_in, c_mid, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_mid)
        self.conv2 = nn.Conv2d(c_mid, c_mid, 3, stride, 1, groups=c_mid, bias=False)
        self.bn2 = nn.BatchNorm2d(c_mid)
        self.conv3 = nn.Conv2d(c_mid, c_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(c_out)
        self.stride = stride
        self.shortcut = nn.Sequential()
        if stride == 1 and c_in != c_out:
            self.shortcut = nn.Sequential(nn.Conv2d(c_in, c_out, 1, bias=False), nn.BatchNorm2d(c_out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))))
        return out + self.shortcut(x) if self.stride == 1 else out


class ReluMobileNetV2(nn.Module):
    """MobileNetV2 with ReLU for ReLU6, an expansion in the first block too, and a shortcut in each of stride 1."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        layers, c_in = [], 32
        for expansion, c_out, repeats, first_stride in _STAGES:
            for i in range(repeats):
                layers.append(_Expanded(c_in, c_out, first_stride if i == 0 else 1, expansion))
                c_in = c_out
        self.layers = nn.Sequential(*layers)
        self.conv2 = nn.Conv2d(c_in, 1280, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(1280)
        self.linear = nn.Linear(1280, num_classes)
        _init(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn2(self.conv2(self.layers(F.relu(self.bn1(self.conv1(x)))))))
        return self.linear(x.mean((2, 3)))


def mobilenetv2(num_classes: int = 10, width: float = 1.0, variant: str = "early") -> nn.Module:
    """`early` halves from the first block on; `late` as ImageNet's does; `relu` is late with ReLU, of width 1."""
    if variant == "early":
        return CifarMobileNetV2(num_classes, width)
    if variant == "late":
        return LateMobileNetV2(num_classes, width)
    if variant != "relu" or width != 1:
        raise ValueError(f"variant must be early, late, or relu with width 1; got {variant!r} with width {width:g}")
    return ReluMobileNetV2(num_classes)
