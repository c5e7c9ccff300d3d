"""How images reach a network under evaluation: checked, resized, normalised, in batches."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

from models import ModelCard, network_input

_RANGE_TOLERANCE = 1e-4
_MOST, _PIXELS = 256, 2**19


def check_images(card: ModelCard, images: torch.Tensor) -> None:
    """Raises ValueError unless `images` are float RGB (N, 3, H, W) in [0, 1], N > 0."""
    if images.ndim != 4 or images.shape[1] != 3 or not len(images):
        raise ValueError(f"{card.name}: expected images of shape (N, 3, H, W), got {tuple(images.shape)}")
    if not images.is_floating_point():
        raise ValueError(f"{card.name}: expected float images in [0, 1], got {images.dtype}; divide by 255")
    low, high = images.amin().item(), images.amax().item()
    if not (low >= -_RANGE_TOLERANCE and high <= 1 + _RANGE_TOLERANCE):  # written so that NaN fails too
        raise ValueError(
            f"{card.name}: expected RGB in [0, 1], got values from {low:.4g} to {high:.4g}; "
            "give images before normalisation"
        )


def batches(net: nn.Module, card: ModelCard, images: torch.Tensor, batch_size: int | None) -> Iterator[torch.Tensor]:
    """Slices of `images` as `net` takes them: (B, C, S, S) with S the card's input size, as its card says.

    Resizing is bilinear with antialiasing and acts on both sides, so an image that is not square is
    squeezed. The slices are on the network's device and in its dtype. Without a `batch_size`, 256 on a GPU; on a CPU
    so many, 8 at least, that their feature maps stay near its caches: EfficientNet-Lite0 reads 224 pixels twice as
    fast by 10 as by 256.
    """
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    weight = next((p for p in net.parameters() if p.is_floating_point()), torch.empty(0))
    if batch_size is None:
        batch_size = _MOST if weight.is_cuda else max(8, min(_MOST, _PIXELS // card.input_size**2))
    for batch in images.split(batch_size):
        view = resized(card, batch.to(device=weight.device, dtype=torch.float32))
        yield network_input(view, card).to(weight.dtype)


def resized(card: ModelCard, images: torch.Tensor) -> torch.Tensor:
    """Images (N, 3, H, W) at the card's input size: bilinear, antialiased."""
    size = (card.input_size, card.input_size)
    if images.shape[-2:] == size:
        return images
    return F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)
