"""What real images say of units: how much they excite them, and which do most."""

from __future__ import annotations

from dataclasses import dataclass

import torch

TOP = 9
"""Images kept of each unit: as many as people look at."""


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
