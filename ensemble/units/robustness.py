"""Images after changes that no optimisation here makes: what is left of an excitation is not in the last bits."""

from __future__ import annotations

import io
from collections.abc import Callable

import torch
import torch.nn.functional as F
from PIL import Image

from ensemble.image.pictures import to_bytes

JPEG_QUALITY = 75
BLUR = 2 / 224
"""Deviation of the blur, of the image's side: 2 pixels of 224."""
RESCALE = 0.9


def jpeg(images: torch.Tensor) -> torch.Tensor:
    """(N, 3, H, W), RGB in [0, 1], through JPEG files of quality 75, colour at half resolution."""
    found = []
    for pixels in to_bytes(images):
        file = io.BytesIO()
        Image.fromarray(pixels.numpy()).save(file, format="JPEG", quality=JPEG_QUALITY)
        decoded = torch.frombuffer(bytearray(Image.open(file).tobytes()), dtype=torch.uint8)
        found.append(decoded.view(pixels.shape).permute(2, 0, 1))
    return torch.stack(found).float() / 255


def blur(images: torch.Tensor) -> torch.Tensor:
    """Convolved with a Gaussian of 2 pixels of 224, mirrored at the border."""
    sigma = max(BLUR * images.shape[-1], 1e-3)
    radius = max(1, int(4 * sigma + 0.5))
    place = torch.arange(-radius, radius + 1, dtype=images.dtype)
    kernel = torch.exp(-0.5 * (place / sigma) ** 2)
    kernel = (kernel / kernel.sum()).expand(3, 1, -1)
    padded = F.pad(images, (radius, radius, radius, radius), mode="reflect")
    rows = F.conv2d(padded, kernel[:, :, :, None], groups=3)
    return F.conv2d(rows, kernel[:, :, None, :], groups=3)


def rescale(images: torch.Tensor) -> torch.Tensor:
    """Nine tenths of the size, and mirrored around: all that is in the image becomes smaller, and its area stays."""
    size = images.shape[-1]
    small = F.interpolate(images, size=max(2, round(RESCALE * size)), mode="bilinear", antialias=True)
    before = (size - small.shape[-1]) // 2
    after = size - small.shape[-1] - before
    return F.pad(small, (before, after, before, after), mode="reflect")


CHANGES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"jpeg": jpeg, "blur": blur, "rescale": rescale}
