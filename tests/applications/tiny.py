"""A plugin of tiny networks for 8x8 images, and misfortunes that strike them on request.

MISFORTUNE=WHAT:RANK:CALL lets one happen to a rank at its CALL-th forward pass of several images: `kill`
(SIGKILL), `term` (SIGTERM to itself), `hang`, `pause` (4 s), `nan` (from then on). With MISFORTUNE_MARKER=FILE it
happens only while FILE does not exist. Passes count from the first one on that is for a gradient: before that a network
is looked at, not used.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import torch
from torch import nn

from models import ModelCard, register_model

NAMES = ("circle", "square", "star")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _strike(call: int) -> None:
    what, rank, when = os.environ.get("MISFORTUNE", "none:0:0").split(":")
    if what in ("none", "nan") or os.environ.get("RANK", "0") != rank or call != int(when):
        return
    marker = os.environ.get("MISFORTUNE_MARKER")
    if marker is not None:
        if Path(marker).exists():
            return
        Path(marker).touch()
    if what == "pause":
        time.sleep(4)
        return
    if what == "hang":
        time.sleep(600)
    os.kill(os.getpid(), signal.SIGKILL if what == "kill" else signal.SIGTERM)


def _breaks(call: int) -> bool:
    what, rank, when = os.environ.get("MISFORTUNE", "none:0:0").split(":")
    return what == "nan" and os.environ.get("RANK", "0") == rank and call >= int(when)


class Tiny(nn.Module):
    """Convolution, optional BatchNorm, pooling, linear classifier."""

    def __init__(self, channels: int, classes: int, norm: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels) if norm else nn.Identity()
        self.fc = nn.Linear(channels, classes)
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > 1 and (self.calls or x.requires_grad):
            self.calls += 1
            _strike(self.calls)
        logits = self.fc(self.norm(self.conv(x)).relu().mean((2, 3)))
        return logits * float("nan") if _breaks(self.calls) else logits


class Infinite(Tiny):
    """Its logits are, and its weights are not."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + float("inf")


class Viewing(Tiny):
    """Its shape of a batch is not told from one of no images."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).view(len(x), -1)


@register_model(ModelCard("tiny_viewing", "tiny", 8, 3, mean=MEAN, std=STD, class_names=NAMES, label_space="shapes"))
def tiny_viewing(num_classes: int = 3) -> nn.Module:
    return Viewing(8, num_classes)


@register_model(ModelCard("tiny_a", "tiny", 8, 3, mean=MEAN, std=STD, class_names=NAMES, label_space="shapes"))
def tiny_a(num_classes: int = 3) -> nn.Module:
    return Tiny(8, num_classes)


@register_model(ModelCard("tiny_b", "tiny", 8, 3, mean=MEAN, std=STD, class_names=NAMES, label_space="shapes"))
def tiny_b(num_classes: int = 3) -> nn.Module:
    return Tiny(12, num_classes)


@register_model(ModelCard("tiny_plain", "tiny", 8, 3, mean=MEAN, std=STD, class_names=NAMES, label_space="shapes"))
def tiny_plain(num_classes: int = 3) -> nn.Module:
    return Tiny(8, num_classes, norm=False)


@register_model(ModelCard("tiny_inf", "tiny", 8, 3, mean=MEAN, std=STD, class_names=NAMES, label_space="shapes"))
def tiny_inf(num_classes: int = 3) -> nn.Module:
    return Infinite(8, num_classes)


@register_model(ModelCard("tiny_renamed", "tiny", 8, 3, mean=MEAN, std=STD, class_names=NAMES[::-1]))
def tiny_renamed(num_classes: int = 3) -> nn.Module:
    return Tiny(8, num_classes)


@register_model(ModelCard("tiny_wide", "tiny", 8, 3, mean=MEAN, std=STD))
def tiny_wide(num_classes: int = 3) -> nn.Module:
    return Tiny(8, 7)


@register_model(ModelCard("tiny_broken", "tiny", 8, 3, mean=MEAN, std=STD))
def tiny_broken(num_classes: int = 3) -> nn.Module:
    net = Tiny(8, num_classes)
    net.norm = nn.BatchNorm2d(9)
    return net
