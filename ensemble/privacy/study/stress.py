"""A network that learned few images by heart: where attacks on members must fire."""

from __future__ import annotations

import torch
from torch import nn

from ensemble.data.labelled import LabelledImages
from ensemble.privacy.membership import answers
from ensemble.privacy.moments import moments_of, with_stored
from ensemble.privacy.rates import auc
from ensemble.privacy.tracing import directions, expected_auc, image_moments, released, tracing_scores
from ensemble.training.reading import evaluate, inputs_of
from models import ModelCard

LOSS_FIRES, TRACING_FIRES = 0.9, 0.6
"""AUCs that the two attacks must reach."""
_BATCH = 500


def stressed(
    net: nn.Module, card: ModelCard, members: LabelledImages, others: LabelledImages, reference: torch.Tensor
) -> dict[str, float | bool | list[float]]:
    """What attacks find in a network that learned the members by heart; the network is left as it was.

    `train_accuracy` and `other_accuracy` in [0, 1]; `loss_auc` of the margins; `tracing_auc` of the network with
    statistics re-estimated on the members, and `tracing_expected` by theory; `..._interval` of 95 % (images); `fires`:
    whether both reach LOSS_FIRES and TRACING_FIRES. `reference` uint8 (R, 3, H, W) are images that it did not learn.
    """
    cpu = torch.device("cpu")
    loss = auc(*(answers(net, card, part.images, part.labels).margins for part in (members, others)))
    inputs = inputs_of(members.images, card, cpu)
    own = moments_of(net, inputs.tensor_split(-(-len(inputs) // _BATCH))).average()
    made = with_stored(net, own)
    a, b, known = (image_moments(made, card, images) for images in (members.images, others.images, reference))
    tracing = auc(*(tracing_scores(part, released(own), known) for part in (a, b)))
    return {
        "train_accuracy": evaluate(net, card, members, cpu),
        "other_accuracy": evaluate(net, card, others, cpu),
        "loss_auc": loss.value,
        "loss_auc_interval": [*loss.interval],
        "tracing_auc": tracing.value,
        "tracing_auc_interval": [*tracing.interval],
        "tracing_expected": expected_auc(directions(known), len(members), len(known)),
        "fires": loss.value >= LOSS_FIRES and tracing.value >= TRACING_FIRES,
    }
