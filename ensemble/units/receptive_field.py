"""Which pixels a unit can see."""

from __future__ import annotations

import torch

from ensemble.machine.rng import generator
from ensemble.units.excitation import Readers

DRAWS = 3


def receptive_field(readers: Readers, unit: int, size: int) -> tuple[int, int, int, int]:
    """(top, left, bottom, right), ends excluded, of the smallest box with all pixels that the unit's gradient reaches.

    Of three noise images, uniform in [0, 1], the pixels where red, green or blue has a gradient in any. Units at one
    position see a part of the image; others see it whole. (0, 0, 0, 0) where no pixel has any.

    Source: the masks of cnnpref (Kamitani Lab, 2018); departures: their noise is of integers less the mean.
    """
    rng = generator(0, "receptive field")
    images = torch.rand(DRAWS, 3, size, size, generator=rng).requires_grad_()
    excited = readers.differentiable(images, [unit] * DRAWS).sum()
    if not excited.requires_grad:
        return 0, 0, 0, 0
    (gradient,) = torch.autograd.grad(excited, images)
    reached = (gradient != 0).any(0).any(0)
    rows, columns = (torch.nonzero(reached.any(dim))[:, 0] for dim in (1, 0))
    if not len(rows):
        return 0, 0, 0, 0
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1
