"""NAdam."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import PositiveFloat

from ensemble.engine.optimizers import Beta, Optimizer


@dataclass(frozen=True)
class NAdam(Optimizer, kind="nadam"):
    """Adam with Nesterov's momentum (Dozat 2016), as torch has it."""

    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8

    def make(self, parameters: list[torch.nn.Parameter], steps: int) -> torch.optim.Optimizer:
        moved = [parameter for parameter in parameters if parameter.requires_grad]
        return torch.optim.NAdam(moved, lr=self.lr, betas=self.betas, eps=self.eps)
