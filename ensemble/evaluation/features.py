"""The features a classifier decides by: the input of its last layer."""

from __future__ import annotations

import torch
from torch import nn

from ensemble.evaluation._inputs import batches, check_images
from ensemble.teachers.features import FeatureHook, find_classifier
from models import ModelCard, evaluating


def penultimate_features(
    net: nn.Module, card: ModelCard, images: torch.Tensor, batch_size: int | None = None
) -> torch.Tensor:
    """Features (N, D), float32 on the CPU: the input of the layer that makes the logits.

    That layer is the last nn.Linear or nn.Conv2d that runs, found by a probe with one image. Of a 1x1
    convolution (SqueezeNet and other fully convolutional networks) the input is averaged over space; of a
    linear layer that acts at several positions, over the positions.

    `images` float (N, 3, H, W), RGB in [0, 1], are resized and normalised as the card says. No hook is left
    behind, also after an error.

    Raises ValueError where images do not fit the card, or no such layer makes the card's `num_classes`.
    """
    check_images(card, images)
    with evaluating(net):
        probe = next(batches(net, card, images[:1], 1))
        try:
            _, classifier = find_classifier(net, card.num_classes, lambda: net(probe))
        except ValueError as error:
            raise ValueError(f"{card.name}: {error}") from None
        hook = FeatureHook()
        handle = classifier.register_forward_pre_hook(hook, with_kwargs=True)
        try:
            features = []
            for batch in batches(net, card, images, batch_size):
                net(batch)
                features.append(hook.take().float().cpu())
        finally:
            handle.remove()
    return torch.cat(features)
