"""Where the teachers' gradients agree in sign: a mask on their sum."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ensemble.engine.placement import Cell
from ensemble.engine.reduction import SumAcrossRanks

_UNIT = 2.0**-20
"""Weights are counted in whole units, so that no order of adding, and no placement, changes the outcome."""


class Votes:
    """The AND-mask of Parascandolo et al., "Learning explanations that are hard to vary" (ICLR 2021), section 2.2:

        m = 1 where |sum_t w_t sign(g_t)| >= threshold, else 0,

    for each colour value of each image, with weights w_t that sum to 1; there environments vote, here teachers do, each
    with its weight. g_t is what comes back through teacher t; where it is 0 the teacher abstains.

    A value of the view belongs to one image, and an image to one cell of a teacher. So a cell holds all of g_t at its
    images, its sign too, and votes add over slices, micro-batches and ranks.
    """

    def __init__(self, weights: Mapping[int, float], threshold: float, view: torch.Tensor) -> None:
        """`weights` are those of the acting teachers; `view` (N, 3, H, W) is what the gradients are of."""
        self._units = {t: round(weight / _UNIT) for t, weight in weights.items()}
        # A weight is off by half a unit at most, so all weights together by half a unit each, and all votes too.
        self._enough = threshold * sum(self._units.values()) - len(self._units)
        self._total = torch.zeros(view.shape, dtype=torch.int32, device=view.device)

    def add(self, cell: Cell, part: torch.Tensor) -> None:
        """The votes of a cell, of `part`, what came back through it."""
        signs = part.sign().nan_to_num()  # what is not a number stays so in the sum, whoever votes
        self._total[cell.start : cell.stop] += signs.to(torch.int32) * self._units[cell.teacher]

    def mask(self, reduce: SumAcrossRanks, dtype: torch.dtype) -> torch.Tensor:
        """m over all ranks, (N, 3, H, W): a factor of the gradient, so that what is not finite does not vanish."""
        reduce(self._total)
        return (self._total.abs() >= self._enough).to(dtype)
