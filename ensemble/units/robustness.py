"""Images after changes that no optimisation here makes: what is left of an excitation is not in the last bits."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from ensemble.engine import image_operators
from ensemble.image.pictures import to_eight_bits
from ensemble.image.recompression import recompressed

JPEG_QUALITY = 75
BLUR = 2 / 224
"""Deviation of the blur, of the image's side: 2 pixels of 224."""
RESCALE = 0.9


def jpeg(images: torch.Tensor) -> torch.Tensor:
    """(N, 3, H, W), RGB in [0, 1], through JPEG files of quality 75, colour at half resolution."""
    return recompressed(to_eight_bits(images), JPEG_QUALITY).float() / 255


def blur(images: torch.Tensor) -> torch.Tensor:
    """Convolved with a Gaussian of 2 pixels of 224, mirrored at the border."""
    return image_operators.blur(images, BLUR * images.shape[-1], edge_repeats=False)


def rescale(images: torch.Tensor) -> torch.Tensor:
    """Nine tenths of the size, and mirrored around: all that is in the image becomes smaller, and its area stays."""
    size = images.shape[-1]
    small = F.interpolate(images, size=max(2, round(RESCALE * size)), mode="bilinear", antialias=True)
    before = (size - small.shape[-1]) // 2
    after = size - small.shape[-1] - before
    return F.pad(small, (before, after, before, after), mode="reflect")


CHANGES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"jpeg": jpeg, "blur": blur, "rescale": rescale}
