"""Priors on the view itself: smoothness and size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from ensemble.objectives.terms import ImageTerm

Over = Literal["batch", "image"]


@dataclass(frozen=True)
class TotalVariation(ImageTerm, kind="tv"):
    """Differences d of neighbours in four directions: right, down and both diagonals.

    order 2: sum over directions of |d|, the l2 norm over the whole batch, or the mean of its images' norms
    order 1: sum over directions of the mean of |d|

    The four directions follow the published settings of Yin et al. (2020). A side of one pixel has no neighbours.
    """

    weight: float = 1e-3
    order: Literal[1, 2] = 2
    over: Over = "batch"

    @property
    def name(self) -> str:
        return f"tv_l{self.order}"

    def __call__(self, view: torch.Tensor) -> torch.Tensor:
        differences = (
            view[:, :, :, :-1] - view[:, :, :, 1:],
            view[:, :, :-1] - view[:, :, 1:],
            view[:, :, 1:, :-1] - view[:, :, :-1, 1:],
            view[:, :, :-1, :-1] - view[:, :, 1:, 1:],
        )
        if self.order == 1:
            return sum((d.abs().mean() for d in differences if d.numel()), start=view.new_zeros(()))
        return sum((_l2_norm(d, self.over) for d in differences), start=view.new_zeros(()))


@dataclass(frozen=True)
class L2Prior(ImageTerm, kind="l2"):
    """|x|, the l2 norm over the whole batch, or the mean of its images' norms."""

    weight: float = 1e-5
    over: Over = "batch"

    def __call__(self, view: torch.Tensor) -> torch.Tensor:
        return _l2_norm(view, self.over)


def _l2_norm(x: torch.Tensor, over: Over) -> torch.Tensor:
    return x.norm() if over == "batch" else x.flatten(1).norm(dim=1).mean()
