"""Whether a part of an image shows another class than the whole: what two images in one would look like to a judge."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ensemble.training.reading import forward_logits
from models import ModelCard, network_input

_AT_ONCE = 50


@torch.no_grad()
def second_class(
    net: nn.Module, card: ModelCard, images: torch.Tensor, targets: torch.Tensor | None = None
) -> torch.Tensor:
    """(N,): max over windows w and classes k != t of p(k | w), by the judge `net`, in eval mode.

    Of images (N, 3, H, W), RGB in [0, 1]. Windows have half the sides and lie a quarter apart, 3 x 3 of them, and are
    enlarged to the judge's input (bilinear). t are `targets` (N,), or without them the first class of the whole image.

    Raises ValueError for images of fewer than 4 pixels a side.
    """
    if min(images.shape[-2:]) < 4:
        raise ValueError(f"images of {images.shape[-2]} x {images.shape[-1]} pixels have no windows; 4 a side at least")
    net.eval()
    parts = images.split(_AT_ONCE)
    known = [None] * len(parts) if targets is None else targets.split(_AT_ONCE)
    return torch.cat([_second(net, card, part, target) for part, target in zip(parts, known, strict=True)])


def _second(net: nn.Module, card: ModelCard, images: torch.Tensor, targets: torch.Tensor | None) -> torch.Tensor:
    if targets is None:
        targets = _probabilities(net, card, images).argmax(1)
    p = _probabilities(net, card, windows(images).flatten(0, 1)).unflatten(0, (len(images), -1))
    others = p.scatter(2, targets[:, None, None].expand(-1, p.shape[1], 1), -torch.inf)
    return others.amax((1, 2))


def windows(images: torch.Tensor) -> torch.Tensor:
    """(N, 9, 3, H // 2, W // 2): the parts of images (N, 3, H, W), row by row."""
    height, width = images.shape[-2:]
    rows, columns = ([k * size // 4 for k in range(3)] for size in (height, width))
    return torch.stack([images[..., y : y + height // 2, x : x + width // 2] for y in rows for x in columns], 1)


def _probabilities(net: nn.Module, card: ModelCard, images: torch.Tensor) -> torch.Tensor:
    """(N, classes) of images of any size."""
    size = (card.input_size, card.input_size)
    enlarged = F.interpolate(images.float(), size=size, mode="bilinear", align_corners=False)
    return forward_logits(net, network_input(enlarged, card), card).double().softmax(1)
