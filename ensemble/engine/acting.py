"""Who acts at a step."""

from __future__ import annotations

from typing import Literal

import torch

from ensemble.machine.rng import generator

Acting = Literal["all", "turn", "random"]
Per = Literal["step", "batch"]


def acting_teachers(acting: Acting, count: int, per: Per, *, teachers: int, seed: int, step: int) -> list[int]:
    """The teachers that act at a step, in their order: all, one in turn, or `count` drawn.

    They are drawn anew at each step or, `per` batch, once; then they depend on the batch's `seed` alone.
    """
    if acting == "all":
        return list(range(teachers))
    if acting == "turn":
        return [step % teachers]
    drawn = torch.randperm(teachers, generator=generator(seed, "acting", step if per == "step" else "batch"))
    return sorted(drawn[:count].tolist())
