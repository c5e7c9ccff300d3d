"""What a network is told for a batch, and the plainest of it: its images' classes."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from ensemble.training.augment import MixedLabels

Teaching = Callable[[torch.Tensor, torch.Tensor, MixedLabels], tuple[torch.Tensor, torch.Tensor]]
"""Of a batch's logits (B, classes), its views (B, C, H, W) as the network took them, and which images are in these
(first, second, first's share): the loss, and the class (B,) that each view is told to be most of all."""


def hard_labels(labels: torch.Tensor, smoothing: float) -> Teaching:
    """Cross-entropy with the classes `labels` (N,) of all images."""

    def teach(logits: torch.Tensor, batch: torch.Tensor, mixed: MixedLabels) -> tuple[torch.Tensor, torch.Tensor]:
        first, second, share = labels[mixed[0]], labels[mixed[1]], mixed[2]
        loss = mixed_cross_entropy(logits, (first, second, share), smoothing)
        return loss, first if share >= 0.5 else second

    return teach


def mixed_cross_entropy(logits: torch.Tensor, mixed: MixedLabels, smoothing: float) -> torch.Tensor:
    """The classes' cross-entropies, each by its share."""
    first, second, share = mixed
    loss = F.cross_entropy(logits, first, label_smoothing=smoothing)
    if share == 1.0:
        return loss
    return share * loss + (1 - share) * F.cross_entropy(logits, second, label_smoothing=smoothing)
