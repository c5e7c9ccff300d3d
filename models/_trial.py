"""Whether a network can read images at all, told in one line before work begins."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from models._card import ModelCard
from models._convention import network_input, network_logits


def reason_of(error: BaseException) -> str:
    """What an error of a network's own code says, on one line; its kind where that says more."""
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, RuntimeError | ValueError) and text else f"{type(error).__name__} {text}".strip()


@contextmanager
def evaluating(net: nn.Module, *, gradients: bool = False) -> Iterator[None]:
    """Eval mode inside, by default without gradients; afterwards every module is in the mode it was in."""
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        with torch.set_grad_enabled(gradients):
            yield
    finally:
        for module, training in modes:
            module.training = training


def check_reads(name: str, net: nn.Module, card: ModelCard, *, learns: bool = False) -> None:
    """ValueError where the network cannot read two images as its card says, in eval mode.

    `learns`: nor give its weights a gradient. The network is left in the mode it was in. One in fp16 on the CPU is not
    tried: it may be meant for a GPU.
    """
    weight = next((p for p in net.parameters() if p.is_floating_point()), torch.empty(0))
    if weight.dtype == torch.float16 and weight.device.type == "cpu":
        return
    size = card.input_size
    try:
        with evaluating(net, gradients=learns):
            blank = torch.full((2, 3, size, size), 0.5, device=weight.device)
            logits = network_logits(net(network_input(blank, card).to(weight.dtype)), len(blank))
    except Exception as error:  # a network may be anybody's
        if type(error).__name__ in ("OutOfMemoryError", "MemoryError") or "can't allocate memory" in str(error):
            raise
        raise ValueError(f"{name}: its forward pass fails on images of {size} x {size}: {reason_of(error)}") from error
    if tuple(logits.shape) != (2, card.num_classes):
        raise ValueError(
            f"{name}: its card says {card.num_classes} classes, its output for 2 images has shape {tuple(logits.shape)}"
        )
    if learns and not logits.requires_grad:
        raise ValueError(f"{name}: no gradient reaches its weights (no_grad, detach or numpy in its forward?)")
