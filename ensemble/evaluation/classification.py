"""How well a network recognises images: the verifier's and the student's score."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from ensemble.evaluation._inputs import batches, check_images
from ensemble.evaluation.intervals import clopper_pearson
from models import ModelCard, card_logits, evaluating


@dataclass(frozen=True)
class Accuracy:
    """Fractions in [0, 1] over `n` images."""

    top1: float
    top5: float
    n: int
    interval: tuple[float, float]
    """Clopper and Pearson's 95 % interval of `top1`."""
    per_class: tuple[float, ...]
    """Top-1 among the images of each class; NaN for a class without images."""
    confidence: float
    """Mean of the largest softmax probability, whether or not it is the target's."""


def accuracy(
    net: nn.Module, card: ModelCard, images: torch.Tensor, targets: torch.Tensor, batch_size: int | None = None
) -> Accuracy:
    """How often `net` gives the images their targets, int64 (N,).

    With fewer than five classes `top5` counts them all. Raises ValueError as `logits_of` does, and where targets do
    not fit images or card.
    """
    return accuracy_of(logits_of(net, card, images, batch_size), targets, card)


def logits_of(net: nn.Module, card: ModelCard, images: torch.Tensor, batch_size: int | None = None) -> torch.Tensor:
    """The logits (N, classes), float32 on the CPU, of images float (N, 3, H, W), RGB in [0, 1].

    They are resized (bilinear, antialiased) to the card's input size and normalised with its mean and std. The
    network runs in eval mode without gradients and keeps the mode it was in.

    Raises ValueError where images or logits do not fit the card, or logits are not finite.
    """
    check_images(card, images)
    found = []
    with evaluating(net):
        for batch in batches(net, card, images, batch_size):
            logits = card_logits(net(batch), len(batch), card)
            if not logits.isfinite().all():
                raise ValueError(f"{card.name}: the logits are not finite; check the weights")
            found.append(logits.float().cpu())
    return torch.cat(found)


def accuracy_of(logits: torch.Tensor, targets: torch.Tensor, card: ModelCard) -> Accuracy:
    """How often `logits` (N, classes) give the images their targets (N,)."""
    if targets.shape != logits.shape[:1]:
        raise ValueError(f"{card.name}: {len(logits)} images need as many targets, got shape {tuple(targets.shape)}")
    targets = targets.detach().cpu().long()
    if targets.min() < 0 or targets.max() >= card.num_classes:
        raise ValueError(
            f"{card.name}: targets must be in 0..{card.num_classes - 1}, "
            f"got {targets.min().item()}..{targets.max().item()}"
        )
    hits = logits.topk(min(5, card.num_classes)).indices == targets[:, None]
    first = hits[:, 0]
    n = len(targets)
    right = torch.bincount(targets[first], minlength=card.num_classes).tolist()
    total = torch.bincount(targets, minlength=card.num_classes).tolist()
    return Accuracy(
        top1=first.sum().item() / n,
        top5=hits.any(1).sum().item() / n,
        n=n,
        interval=clopper_pearson(int(first.sum()), n),
        per_class=tuple(r / t if t else math.nan for r, t in zip(right, total, strict=True)),
        confidence=logits.softmax(1).amax(1).double().mean().item(),
    )
