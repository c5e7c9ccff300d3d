"""A network that learned few images by heart: what attacks on membership must find."""

from __future__ import annotations

import torch
from torch import nn

from ensemble.data.labelled import LabelledImages
from ensemble.privacy.candidates import Candidate
from ensemble.privacy.membership import margins
from ensemble.privacy.moments import moments_of, with_stored
from ensemble.privacy.rates import auc
from ensemble.privacy.tracing import image_moments, released, tracing_scores
from ensemble.training.reading import evaluate
from models import ModelCard

_BATCH = 100


def stressed(
    net: nn.Module, card: ModelCard, members: LabelledImages, others: LabelledImages, reference: torch.Tensor
) -> dict[str, float]:
    """Accuracy on members and others, AUC of the loss, and of tracing with statistics re-estimated on the members."""
    a, b = (margins(net, card, part.images, part.labels) for part in (members, others))
    size = min(_BATCH, len(members) // 2)
    own = moments_of(net, Candidate().batches(members.images, card, size, 0)).average()
    cleaned = with_stored(net, own)
    known, x, y = (image_moments(cleaned, card, images) for images in (reference, members.images, others.images))
    mean = released(own)
    return {
        "train_accuracy": evaluate(net, card, members, torch.device("cpu")),
        "test_accuracy": evaluate(net, card, others, torch.device("cpu")),
        "loss_auc": auc(a, b).value,
        "tracing_auc": auc(tracing_scores(x, mean, known), tracing_scores(y, mean, known)).value,
    }
