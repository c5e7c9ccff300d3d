"""The features a classifier decides by: the input of its last layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ensemble.evaluation._inputs import batches, check_images, evaluating
from models import ModelCard


def penultimate_features(net: nn.Module, card: ModelCard, images: torch.Tensor, batch_size: int = 256) -> torch.Tensor:
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
        classifier = _find_classifier(net, card, next(batches(net, card, images[:1], 1)))
        caught: list[torch.Tensor] = []

        def catch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            caught[:] = [_pooled(module, args[0] if args else kwargs["input"])]  # the last call counts

        handle = classifier.register_forward_pre_hook(catch, with_kwargs=True)
        try:
            features = []
            for batch in batches(net, card, images, batch_size):
                net(batch)
                features.append(caught.pop().float().cpu())
        finally:
            handle.remove()
    return torch.cat(features)


def _find_classifier(net: nn.Module, card: ModelCard, image: torch.Tensor) -> nn.Linear | nn.Conv2d:
    ran: list[nn.Module] = []
    handles = [
        module.register_forward_pre_hook(lambda module, _: ran.append(module))
        for module in net.modules()
        if isinstance(module, (nn.Linear, nn.Conv2d))
    ]
    try:
        net(image)
    finally:
        for handle in handles:
            handle.remove()
    last = ran[-1] if ran else None
    if isinstance(last, nn.Linear) and last.out_features == card.num_classes:
        return last
    if isinstance(last, nn.Conv2d) and last.kernel_size == (1, 1) and last.out_channels == card.num_classes:
        return last
    raise ValueError(
        f"{card.name}: features need a network that ends in an nn.Linear or a 1x1 nn.Conv2d with "
        f"{card.num_classes} outputs; the last such layer that runs is {last}"
    )


def _pooled(classifier: nn.Module, x: torch.Tensor) -> torch.Tensor:
    if isinstance(classifier, nn.Conv2d):
        return x.mean((2, 3))
    return x.flatten(1, -2).mean(1) if x.ndim > 2 else x
