"""Images inside a page: WebP as data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from PIL import Image

from ensemble.image.pictures import to_bytes

EXACT = 96
"""Pixels up to which a picture travels without loss."""
_LARGEST, _LARGEST_OF_MANY, _MANY = 256, 160, 200
_TILE, _SMALL = 128, 80
_MAP = 32
"""Pixels of a map at most: its values are means over an eighth of the side, so more would show no more."""
_CONFLICT, _NEITHER, _AGREEMENT = (0.78, 0.33, 0.0), (0.97, 0.97, 0.97), (0.0, 0.42, 0.70)
"""RGB at cosines of -1, 0 and 1: orange and blue, which the colour-blind tell apart too."""


def data_uris(images: torch.Tensor) -> Iterator[str]:
    """A data URI an image, of images (N, 3, H, W), RGB in [0, 1]: exact in 8 bits up to `EXACT` pixels, else lossy and
    at most as large as `side_of` says."""
    side = side_of(images)
    for pixels in to_bytes(images):
        image = Image.fromarray(pixels.numpy())
        exact = max(image.size) <= EXACT
        if not exact:
            image.thumbnail((side, side), Image.Resampling.LANCZOS)
        stream = io.BytesIO()
        if exact:
            image.save(stream, format="WEBP", lossless=True, quality=60, method=3)
        else:
            image.save(stream, format="WEBP", quality=82, method=3)
        yield "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def maps(cosines: torch.Tensor) -> Iterator[str]:
    """A data URI an image, of maps (N, H, W) of cosines: orange where they are below 0, blue above."""
    height, width = cosines.shape[1:]
    factor = min(1.0, _MAP / max(height, width))
    size = max(1, round(height * factor)), max(1, round(width * factor))
    small = F.interpolate(cosines[:, None].float(), size, mode="area").clamp(-1, 1)
    conflict, neither, agreement = (torch.tensor(c)[:, None, None] for c in (_CONFLICT, _NEITHER, _AGREEMENT))
    colours = neither + small.clamp_min(0) * (agreement - neither) - small.clamp_max(0) * (conflict - neither)
    for pixels in to_bytes(colours):
        stream = io.BytesIO()
        Image.fromarray(pixels.numpy()).save(stream, format="WEBP", quality=82, method=3)
        yield "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def side_of(images: torch.Tensor) -> int:
    """The larger side of a picture in the page: the image's own, but for large ones, and less where they are many."""
    limit = _LARGEST if len(images) <= _MANY else _LARGEST_OF_MANY
    own = max(images.shape[-2:])
    return own if own <= EXACT else min(own, limit)


def shown_width(images: torch.Tensor) -> int:
    """CSS pixels on the page; small images are enlarged by a whole factor."""
    height, width = images.shape[-2:]
    return width * max(1, round(_TILE / max(height, width))) if max(height, width) <= _SMALL else 168
