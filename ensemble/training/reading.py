"""What a network that is trained, or that teaches one, makes of images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ensemble.data.labelled import LabelledImages
from models import ModelCard, card_logits, network_input


def inputs_of(images: torch.Tensor, card: ModelCard, device: torch.device) -> torch.Tensor:
    """Images uint8 (N, 3, H, W) as the network takes them."""
    return network_input(images.float() / 255, card).to(device, memory_format=torch.channels_last)


def black_pixel(card: ModelCard) -> torch.Tensor:
    """(C, 1, 1): black as the network takes it."""
    return network_input(torch.zeros(1, 3, 1, 1), card)[0]


def forward_logits(net: Callable[[torch.Tensor], Any], batch: torch.Tensor, card: ModelCard) -> torch.Tensor:
    """`card_logits` of a batch as the network takes it."""
    return card_logits(net(batch), len(batch), card)


@torch.no_grad()
def evaluate(net: nn.Module, card: ModelCard, data: LabelledImages, device: torch.device) -> float:
    """Top-1 accuracy in [0, 1], in fp32."""
    net.eval()
    correct = 0
    for images, labels in zip(data.images.split(500), data.labels.split(500), strict=True):
        logits = forward_logits(net, inputs_of(images, card, device), card)
        correct += int((logits.argmax(1).cpu() == labels).sum())
    return correct / len(data)


@torch.no_grad()
def recalibrate_bn(net: nn.Module, inputs: torch.Tensor, batch_size: int = 500) -> None:
    """Set the running statistics of every BatchNorm, of any rank, to those of `inputs`, as the network takes them.

    The inputs are cut into as few batches of at most `batch_size` as there can be, equal up to one image. The mean
    is that of the batches' means, the variance that of their unbiased variances: with equal batches the first is
    exact and the second differs from the whole set's by the variance between batch means.
    """
    layers = [m for m in net.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # cumulative average
    net.eval()  # what draws at random, or changes with use, rests
    for layer in layers:
        layer.train()
    for batch in inputs.tensor_split(-(-len(inputs) // batch_size)):
        net(batch)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    net.eval()
