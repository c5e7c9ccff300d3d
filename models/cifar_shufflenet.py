"""ShuffleNetV2 for 32 x 32 images (Ma et al. 2018, table 5), without the first two halvings."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from models.cifar import _init

CHANNELS = {
    0.5: (48, 96, 192, 1024),
    1.0: (116, 232, 464, 1024),
    1.5: (176, 352, 704, 1024),
    2.0: (244, 488, 976, 2048),
}


def _conv(c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    return nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(c_out)


class _Unit(nn.Module):
    """Half of the channels pass by (stride 1), or a second branch (stride 2); then both halves interleave."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        half = c_out // 2
        self.branch1 = None
        if stride == 2:
            self.branch1 = nn.Sequential(*_conv(c_in, c_in, 3, 2, c_in), *_conv(c_in, half, 1), nn.ReLU(inplace=True))
        self.branch2 = nn.Sequential(
            *_conv(c_in if stride == 2 else half, half, 1),
            nn.ReLU(inplace=True),
            *_conv(half, half, 3, stride, half),
            *_conv(half, half, 1),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.branch1 is None:
            first, second = x.chunk(2, dim=1)
        else:
            first, second = self.branch1(x), x
        return F.channel_shuffle(torch.cat([first, self.branch2(second)], dim=1), 2)


class CifarShuffleNetV2(nn.Module):
    """ShuffleNetV2 x `width` (0.5, 1, 1.5 or 2), three halvings in all."""

    def __init__(self, num_classes: int = 10, width: float = 1.0) -> None:
        super().__init__()
        if width not in CHANNELS:
            raise ValueError(f"width must be one of {', '.join(map(str, CHANNELS))}, got {width}")
        *stages, last = CHANNELS[width]
        self.conv1 = nn.Sequential(*_conv(3, 24, 3), nn.ReLU(inplace=True))
        c_in = 24
        units: list[nn.Module] = []
        for c_out, repeats in zip(stages, (4, 8, 4), strict=True):
            units.append(nn.Sequential(_Unit(c_in, c_out, 2), *(_Unit(c_out, c_out, 1) for _ in range(repeats - 1))))
            c_in = c_out
        self.stage2, self.stage3, self.stage4 = units
        self.conv5 = nn.Sequential(*_conv(c_in, last, 1), nn.ReLU(inplace=True))
        self.fc = nn.Linear(last, num_classes)
        _init(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv5(self.stage4(self.stage3(self.stage2(self.conv1(x)))))
        return self.fc(x.mean((2, 3)))
