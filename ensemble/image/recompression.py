"""Images through JPEG files."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image


def recompressed(images: torch.Tensor, quality: int) -> torch.Tensor:
    """Images uint8 (N, 3, H, W) through JPEG of this quality, colour at half resolution."""
    made = []
    for image in images:
        stream = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(stream, format="JPEG", quality=quality)
        made.append(torch.from_numpy(np.array(Image.open(stream))).permute(2, 0, 1))
    return torch.stack(made)
