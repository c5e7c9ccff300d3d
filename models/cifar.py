"""Small networks for 32 x 32 images: ResNet, VGG-BN, Wide ResNet, MobileNetV2, each with a width factor."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def _scaled(channels: int, width: float) -> int:
    """`channels` x `width`, at least 4 and a multiple of 4. Raises ValueError for a width outside (0, 16]."""
    if not 0 < width <= 16:
        raise ValueError(f"width must lie in (0, 16], got {width}")
    return max(4, round(channels * width / 4) * 4)


def _init(net: nn.Module) -> None:
    """He et al. (2015), normal, fan-out for convolutions; fan-in uniform for the classifier."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class _BasicBlock(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int, projected: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.shortcut = (
            nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))
            if projected and (stride != 1 or c_in != c_out)
            else None
        )
        self.stride = stride
        self.pad = (c_out - c_in) // 2, c_out - c_in - (c_out - c_in) // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.shortcut is not None:  # option B
            x = self.shortcut(x)
        elif self.stride != 1 or self.pad != (0, 0):  # option A: subsample, pad channels with zeros
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, *self.pad))
        return F.relu(out + x)


class CifarResNet(nn.Module):
    """ResNet of depth 6n + 2 for CIFAR (He et al. 2016, section 4.2).

    Shortcuts that change the shape are option A, zeros without parameters, or option B, 1 x 1 convolutions.
    """

    def __init__(self, depth: int, num_classes: int = 10, width: float = 1.0, shortcut: str = "A") -> None:
        super().__init__()
        if (depth - 2) % 6:
            raise ValueError(f"a CIFAR ResNet has depth 6n + 2, got {depth}")
        if shortcut not in ("A", "B"):
            raise ValueError(f"shortcut must be A or B, got {shortcut!r}")
        blocks = (depth - 2) // 6
        channels = [_scaled(c, width) for c in (16, 32, 64)]
        self.conv1 = nn.Conv2d(3, channels[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels[0])
        self.layer1 = self._stage(channels[0], channels[0], blocks, 1, shortcut == "B")
        self.layer2 = self._stage(channels[0], channels[1], blocks, 2, shortcut == "B")
        self.layer3 = self._stage(channels[1], channels[2], blocks, 2, shortcut == "B")
        self.linear = nn.Linear(channels[2], num_classes)
        _init(self)

    @staticmethod
    def _stage(c_in: int, c_out: int, blocks: int, stride: int, projected: bool) -> nn.Sequential:
        first = _BasicBlock(c_in, c_out, stride, projected)
        return nn.Sequential(first, *(_BasicBlock(c_out, c_out, 1) for _ in range(blocks - 1)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


_VGG = {
    11: (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"),
    13: (64, 64, "M", 128, 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"),
    16: (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"),
    19: (64, 64, "M", 128, 128, "M", *(256,) * 4, "M", *(512,) * 4, "M", *(512,) * 4, "M"),
}


class CifarVGG(nn.Module):
    """VGG with BatchNorm (Simonyan & Zisserman 2015) for 32 x 32 images.

    The classifier is one linear layer, or the paper's three with two `hidden` layers of so many units.
    """

    def __init__(self, depth: int, num_classes: int = 10, width: float = 1.0, hidden: int = 0) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        c_in = 3
        for item in _VGG[depth]:
            if isinstance(item, str):
                layers.append(nn.MaxPool2d(2))
                continue
            c_out = _scaled(item, width)
            layers += [
                nn.Conv2d(c_in, c_out, 3, padding=1, bias=False),
                nn.BatchNorm2d(c_out),
                nn.ReLU(inplace=True),
            ]
            c_in = c_out
        self.features = nn.Sequential(*layers)
        self.classifier = _three_layers(c_in, hidden, num_classes) if hidden else nn.Linear(c_in, num_classes)
        _init(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


def _three_layers(c_in: int, hidden: int, num_classes: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(c_in, hidden),
        nn.ReLU(inplace=True),
        nn.Dropout(),
        nn.Linear(hidden, hidden),
        nn.ReLU(inplace=True),
        nn.Dropout(),
        nn.Linear(hidden, num_classes),
    )


class _PreActBlock(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(c_in, c_out, 1, stride, bias=False) if c_in != c_out or stride != 1 else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = F.relu(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(out)
        return self.conv2(F.relu(self.bn2(self.conv1(out)))) + shortcut


class CifarWideResNet(nn.Module):
    """Wide ResNet WRN-depth-k of depth 6n + 4 (Zagoruyko & Komodakis 2016), pre-activation, no dropout."""

    def __init__(self, depth: int, k: int, num_classes: int = 10, width: float = 1.0) -> None:
        super().__init__()
        if (depth - 4) % 6:
            raise ValueError(f"a wide ResNet has depth 6n + 4, got {depth}")
        blocks = (depth - 4) // 6
        channels = [_scaled(16, width), *(_scaled(c * k, width) for c in (16, 32, 64))]
        self.conv1 = nn.Conv2d(3, channels[0], 3, 1, 1, bias=False)
        stages = []
        for c_in, c_out, stride in zip(channels, channels[1:], (1, 2, 2), strict=False):
            first = _PreActBlock(c_in, c_out, stride)
            stages.append(nn.Sequential(first, *(_PreActBlock(c_out, c_out, 1) for _ in range(blocks - 1))))
        self.blocks = nn.Sequential(*stages)
        self.bn = nn.BatchNorm2d(channels[3])
        self.linear = nn.Linear(channels[3], num_classes)
        _init(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn(self.blocks(self.conv1(x))))
        return self.linear(x.mean((2, 3)))


class _InvertedResidual(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int, expansion: int) -> None:
        super().__init__()
        c_mid = c_in * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers += [nn.Conv2d(c_in, c_mid, 1, bias=False), nn.BatchNorm2d(c_mid), nn.ReLU6(inplace=True)]
        layers += [
            nn.Conv2d(c_mid, c_mid, 3, stride, 1, groups=c_mid, bias=False),
            nn.BatchNorm2d(c_mid),
            nn.ReLU6(inplace=True),
            nn.Conv2d(c_mid, c_out, 1, bias=False),
            nn.BatchNorm2d(c_out),
        ]
        self.body = nn.Sequential(*layers)
        self.residual = stride == 1 and c_in == c_out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.body(x)
        return x + out if self.residual else out


class CifarMobileNetV2(nn.Module):
    """MobileNetV2 (Sandler et al. 2018) with the strides changed for 32 x 32 images: 8 in all, not 32."""

    # (expansion, channels, blocks, stride of the first block); expanded maps never have the full 32 x 32
    _STAGES = (
        (1, 16, 1, 2),
        (6, 24, 2, 1),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 1),
        (6, 320, 1, 1),
    )

    def __init__(self, num_classes: int = 10, width: float = 1.0) -> None:
        super().__init__()
        c_in = _scaled(32, width)
        layers: list[nn.Module] = [
            nn.Conv2d(3, c_in, 3, 1, 1, bias=False),
            nn.BatchNorm2d(c_in),
            nn.ReLU6(inplace=True),
        ]
        for expansion, channels, repeats, first_stride in self._STAGES:
            c_out = _scaled(channels, width)
            for i in range(repeats):
                layers.append(_InvertedResidual(c_in, c_out, first_stride if i == 0 else 1, expansion))
                c_in = c_out
        c_out = _scaled(1280, width)
        layers += [nn.Conv2d(c_in, c_out, 1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU6(inplace=True)]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(c_out, num_classes)
        _init(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x).mean((2, 3)))
