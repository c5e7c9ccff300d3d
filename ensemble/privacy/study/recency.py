"""Whether running statistics tell the images of the last batches from those of earlier ones."""

from __future__ import annotations

import torch
from torch import nn

from ensemble.evaluation.estimate import Estimate
from ensemble.machine.rng import generator
from ensemble.privacy.moments import Moments, with_stored
from ensemble.privacy.rates import auc
from ensemble.privacy.tracing import image_moments, released, tracing_scores
from models import ModelCard


def last_batches(seed: int, epoch: int, count: int, batch_size: int, batches: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices (n,) of the images in the last `batches` of an epoch, and (m,) of its earlier ones, as they were seen.

    The epoch, from 0, is one of `ensemble.training.loop.train` with this seed on `count` images. Those that fill no
    batch are in neither: the epoch did not see them. ValueError where the epoch has no earlier batch, or none is asked.
    """
    steps = count // batch_size
    if not 0 < batches < steps:
        raise ValueError(f"recency: the last {batches} of {steps} batches; ask for at least 1 and fewer than all")
    order = torch.randperm(count, generator=generator(seed, "epoch", epoch))[: steps * batch_size]
    first = (steps - batches) * batch_size
    return order[first:], order[:first]


def recency_auc(
    net: nn.Module,
    card: ModelCard,
    members: torch.Tensor,
    late: torch.Tensor,
    early: torch.Tensor,
    reference: torch.Tensor,
    moments: Moments,
) -> Estimate:
    """AUC of the tracing statistic for late members against early ones, of a network that stores these moments (B = 1).

    A running average of momentum 0.1 is mostly of its last 20 batches, so that it tells these; statistics that are
    taken anew at the end do not, and 0.5 is expected. Weights learned late and early images alike.

    `members` are uint8 (N, 3, H, W), `reference` too or floats as the network takes them, `late` and `early` indices
    into members. Where training augmented images, give the reference augmented alike: else the shift of all means that
    augmentation makes is noise in every score. ValueError where late or early is empty.
    """
    made = with_stored(net, moments)
    known = image_moments(made, card, reference)
    found = [image_moments(made, card, members[index]) for index in (late, early)]
    return auc(*(tracing_scores(images, released(moments), known) for images in found))
