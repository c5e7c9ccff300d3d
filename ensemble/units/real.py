"""What real images say of units: how much they excite them, and which do most."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from ensemble.data.labelled import any_images

TOP = 9
"""Images kept of each unit: as many as people look at."""

AT_MOST = 2000
"""So many images are read, drawn by seed 0."""


def read_real(path: str | Path, split: str | None, size: int) -> torch.Tensor:
    """Real images (M, 3, H, W), uint8, resized; ValueError where there are fewer than two, which have no deviation."""
    images = any_images(path, split, size, at_most=AT_MOST).images
    if len(images) < 2:
        raise ValueError(f"real: {path} holds one image; a mean and a deviation take two and more")
    return images


@dataclass(frozen=True, eq=False)
class RealExcitations:
    """Of M real images: mean, standard deviation and the largest of each unit, (U,), and the images that do most."""

    count: int
    mean: torch.Tensor
    std: torch.Tensor
    largest: torch.Tensor
    top: torch.Tensor
    """(U, T) indices of the images, the strongest first, T = min(TOP, M)."""

    @classmethod
    def of(cls, excitations: torch.Tensor) -> RealExcitations:
        """From (M, U), M at least 2."""
        found = excitations.double()
        top = found.topk(min(TOP, len(found)), dim=0).indices.T
        return cls(len(found), found.mean(0), found.std(0), found.max(0).values, top)
