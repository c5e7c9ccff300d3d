"""Recency: whether running statistics, averages over the last batches, tell those batches' images."""

from __future__ import annotations

import torch
from torch import nn

from ensemble.machine.rng import generator
from ensemble.privacy.moments import Moments, with_stored
from ensemble.privacy.rates import Auc, auc
from ensemble.privacy.tracing import image_moments, released, tracing_scores
from models import ModelCard


def last_batches(seed: int, epoch: int, images: int, size: int, batches: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers of the training images of the last batches of an epoch, and of those before: late (n,), early (m,).

    Both in the order of training backwards, the latest first. The order is that of `ensemble.training.loop`; images
    beyond the last whole batch were not seen. ValueError where no batch is left before.
    """
    whole = images // size
    if not 0 < batches < whole:
        raise ValueError(f"the last {batches} of {whole} batches leave none before them")
    order = torch.randperm(images, generator=generator(seed, "epoch", epoch))[: whole * size]
    cut = (whole - batches) * size
    return order[cut:].flip(0), order[:cut].flip(0)


def recency_auc(
    net: nn.Module,
    card: ModelCard,
    late: torch.Tensor,
    early: torch.Tensor,
    reference: torch.Tensor,
    moments: Moments,
) -> Auc:
    """Of the tracing statistic of these moments, B = 1, for images uint8 of the last batches against earlier ones.

    The network is asked as if it had been released with these statistics.
    """
    net = with_stored(net, moments)
    known, a, b = (image_moments(net, card, images) for images in (reference, late, early))
    mean = released(moments)
    return auc(tracing_scores(a, mean, known), tracing_scores(b, mean, known))
