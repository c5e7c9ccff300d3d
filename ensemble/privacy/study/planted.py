"""The tracing statistic where the answer is known: means of exactly n images, against theory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ensemble.evaluation.estimate import t_interval
from ensemble.machine.rng import generator
from ensemble.privacy.rates import auc
from ensemble.privacy.tracing import expected_auc, expected_auc_of_lengths, image_moments, whitening
from models import ModelCard


@dataclass(frozen=True)
class Planted:
    """What tracing finds of the mean of n images."""

    n: int
    d: int
    """Whitened directions."""
    auc: float
    """The mean over repeats."""
    low: float
    high: float
    """Of its 95 % interval over repeats (Student's t); NaN for one repeat."""
    expected: float
    """Of normal images (`expected_auc`)."""
    of_lengths: float
    """Of images that lie as far from the mean as these do (`expected_auc_of_lengths`)."""


def theory_line(
    net: nn.Module,
    card: ModelCard,
    images: torch.Tensor,
    reference: torch.Tensor,
    counts: Sequence[int] = (50, 100, 250, 500),
    repeats: int = 5,
    seed: int = 0,
) -> list[Planted]:
    """For each n, the AUC of n images, drawn anew in each repeat, whose mean is released, against all other images.

    Where it is far off what theory expects with so many reference images, the measure is broken, or `images` and
    `reference` are not of one distribution: other classes are enough. A whitening by few images costs a little.
    Both uint8 (N, 3, H, W).

    ValueError for fewer than 2 n images.
    """
    if len(images) < 2 * max(counts):
        raise ValueError(f"planted statistics of {max(counts)} images take {2 * max(counts)} images, not {len(images)}")
    centre, basis = whitening(image_moments(net, card, reference))
    rows = (image_moments(net, card, images) - centre) @ basis
    d, lengths = rows.shape[1], rows.square().sum(1)
    found = []
    for n in counts:
        values = []
        for repeat in range(repeats):
            order = torch.randperm(len(rows), generator=generator(seed, "planted", n, repeat))
            scores = rows[order] @ rows[order[:n]].mean(0)  # `tracing_scores`, whitened once for all
            values.append(auc(scores[:n], scores[n:]).value)
        expected = expected_auc(d, n, len(reference)), expected_auc_of_lengths(lengths, n, len(reference))
        found.append(Planted(n, d, *t_interval(values), *expected))
    return found
