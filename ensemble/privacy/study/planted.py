"""Planted statistics: whether the tracing statistic reaches what theory says, where it must."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ensemble.machine.rng import generator
from ensemble.privacy.rates import auc
from ensemble.privacy.tracing import directions, expected_auc, image_moments, tracing_scores
from models import ModelCard


def theory_line(
    net: nn.Module,
    card: ModelCard,
    images: torch.Tensor,
    reference: torch.Tensor,
    counts: Sequence[int] = (50, 100, 250, 500),
    repeats: int = 5,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Of statistics of exactly n of the images (uint8): n, d directions, the AUCs of `repeats` draws, and the expected.

    Members are the n images, non-members as many others. Counts for which there are too few images are left out.
    """
    known, rows = image_moments(net, card, reference), []
    found = image_moments(net, card, images)
    d = directions(known)
    for n in counts:
        if 2 * n > len(images):
            continue
        values = []
        for repeat in range(repeats):
            order = torch.randperm(len(images), generator=generator(seed, "planted", n, repeat))
            a, b = found[order[:n]], found[order[n : 2 * n]]
            mean = a.mean(0)
            values.append(auc(tracing_scores(a, mean, known), tracing_scores(b, mean, known)).value)
        rows.append({"n": n, "d": d, "auc": values, "expected": expected_auc(d, n)})
    return rows
