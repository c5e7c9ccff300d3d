"""The features a classifier decides by: the input of its last layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


def find_classifier(net: nn.Module, classes: int, run: Callable[[], object]) -> tuple[str, nn.Linear | nn.Conv2d]:
    """The layer that makes the logits, and its name: the last nn.Linear or nn.Conv2d in `run()`, a forward pass.

    ValueError where that is no linear layer or 1x1 convolution with that many outputs (one, for two classes).
    """
    ran: list[tuple[str, nn.Module]] = []
    handles = [
        module.register_forward_pre_hook(lambda module, _, name=name: ran.append((name, module)))
        for name, module in net.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d))
    ]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    outputs = class_outputs(classes)
    name, last = ran[-1] if ran else ("", None)
    if isinstance(last, nn.Linear) and last.out_features in outputs:
        return name, last
    if isinstance(last, nn.Conv2d) and last.kernel_size == (1, 1) and last.out_channels in outputs:
        return name, last
    raise ValueError(
        f"features need a network that ends in an nn.Linear or a 1x1 nn.Conv2d with {classes} outputs; "
        f"the last such layer that runs is {last}"
    )


def class_outputs(classes: int) -> set[int]:
    """How many outputs a layer may have that says so many classes: one logit is two."""
    return {classes, 1} if classes == 2 else {classes}


class FeatureHook:
    """A forward pre-hook of the classifier: its input (n, D), in `caught` after each pass.

    Of a 1x1 convolution (SqueezeNet and other fully convolutional networks) the input is averaged over space; of a
    linear layer that acts at several positions, over the positions. The last call of a pass counts.
    """

    def __init__(self) -> None:
        self.caught: torch.Tensor | None = None

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = args[0] if args else kwargs["input"]
        if isinstance(module, nn.Conv2d):
            x = x.mean((2, 3))
        self.caught = x.flatten(1, -2).mean(1) if x.ndim > 2 else x

    def take(self) -> torch.Tensor:
        """What was caught last, once."""
        assert self.caught is not None, "the classifier ran in the probe, and not now"
        features, self.caught = self.caught, None
        return features
