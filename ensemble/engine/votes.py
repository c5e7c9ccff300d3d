"""Where the teachers' gradients agree in sign: a mask on their sum."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ensemble.engine.placement import Cell
from ensemble.engine.reduction import SumAcrossRanks

_UNIT = 2.0**-20
"""Weights are counted in whole units, so that no order of adding, and no placement, changes the outcome."""


class Votes:
    """The AND-mask of Parascandolo et al., "Learning explanations that are hard to vary" (ICLR 2021):

        m = 1 where |sum_t w_t sign(g_t)| >= threshold, else 0,

    for each colour value of each image, with weights w_t that sum to 1. There environments vote on a network's
    parameters, one vote each; here teachers vote on the view. g_t is what comes back through teacher t; where it is 0
    the teacher abstains.

    A value of the view belongs to one image, and an image to one cell of a teacher. So a cell holds all of g_t at its
    images, its sign too, and votes add over slices, micro-batches and ranks.
    """

    def __init__(self, weights: Mapping[int, float], threshold: float, view: torch.Tensor) -> None:
        """`weights` are those of the acting teachers; `view` (N, 3, H, W) is what the gradients are of."""
        self._units = {t: round(weight / _UNIT) for t, weight in weights.items()}
        # Rounding is off by half a unit a weight at most, in the votes and in what is asked of them.
        # A vote of nothing is never enough.
        self._enough = max(1.0, threshold * sum(self._units.values()) - len(self._units))
        self._total = torch.zeros(view.shape, dtype=torch.int32, device=view.device)

    def add(self, cell: Cell, part: torch.Tensor) -> None:
        """The votes of a cell, of `part`, what came back through it."""
        signs = part.sign().nan_to_num()  # what is not a number stays so in the sum, whoever votes
        self._total[cell.start : cell.stop] += signs.to(torch.int32) * self._units[cell.teacher]

    def masked(self, total: torch.Tensor, reduce: SumAcrossRanks) -> torch.Tensor:
        """m times `total`, the sum of the parts over all ranks, (N, 3, H, W); what is not finite does not vanish."""
        reduce(self._total)
        return total * (self._total.abs() >= self._enough)
