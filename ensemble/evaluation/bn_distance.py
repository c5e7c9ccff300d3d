"""How far images are from a network's BatchNorm statistics, beside real ones."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy

import torch
from torch import nn

from ensemble.evaluation._inputs import resized
from ensemble.teachers.teacher import Teacher
from models import ModelCard


@torch.no_grad()
def bn_distance(net: nn.Module, card: ModelCard, parts: Iterable[torch.Tensor]) -> float | None:
    """sum_l (|m - mu| / M_l + |v - var| / V_l) / 2L over the L BatchNorm layers; None for a network without any.

    m and v are mean and variance of all images together, given in `parts` (n, 3, H, W), RGB in [0, 1]; M_l and V_l are
    how far as many real images are (`BNStatistics.level`). So 1 is what real images have, less is a closer match than
    theirs, and a network that was no teacher says what the match is worth.
    """
    device = next((p.device for p in net.parameters()), torch.device("cpu"))
    teacher = Teacher(card.name, deepcopy(net).cpu(), card, device=device)
    if teacher.statistics is None:
        return None
    images, moments = 0, torch.zeros(2, teacher.channels, dtype=torch.float64, device=device)
    for part in parts:
        moments += teacher.observe(resized(card, part.to(device))).moments.double()
        images += len(part)
    gaps = teacher.statistics.distances(moments, images)
    ratios = [gap / level for gap, level in zip(gaps, teacher.statistics.level(images), strict=True)]
    return float(torch.stack(ratios).mean())
