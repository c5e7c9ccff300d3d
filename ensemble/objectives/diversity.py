"""Images of one unit that differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import PositiveInt

from ensemble.objectives.selection import parse_layer
from ensemble.objectives.terms import Slice, TeacherTerm, Totals
from ensemble.teachers.taps import Tap
from ensemble.teachers.teacher import Observation, Profile


@dataclass(frozen=True)
class Diversity(TeacherTerm, kind="diversity"):
    """Mean over pairs i, j of images of one unit of cos(G_i, G_j); 0 without pairs.

    G_i is the Gram matrix of a layer's value v_i, v_i v_i^T over positions (C, C): which channels come together, not
    where. Where the batch shows `units` units in turn, images whose numbers differ by a multiple of it are of one.

    Source: the diversity objective of Olah, Mordvintsev & Schubert, "Feature Visualization" (2017); departure: the
    mean over pairs, where theirs adds them up.
    """

    reads_taps_alone: ClassVar[bool] = True
    signed: ClassVar[bool] = True
    layer: str
    """[TEACHER/]LAYER[#CALL][.in|.out], as in `units`."""
    units: PositiveInt = 1
    weight: float = 1.0

    def rules(self) -> Iterator[str]:
        try:
            parse_layer(self.layer)
        except ValueError as error:
            yield f"layer: {error}"

    def needs(self, teacher: Profile) -> Sequence[Tap]:
        name, tap = parse_layer(self.layer)
        return [tap] if name in ("", teacher.name) else []

    def check(self, teachers: Sequence[Profile]) -> None:
        name, tap = parse_layer(self.layer)
        names = [teacher.name for teacher in teachers]
        if name and name not in names:
            raise ValueError(f"diversity: no teacher is called {name!r}; they are {', '.join(names)}")
        for teacher in teachers:
            if tap in teacher.taps and not teacher.taps[tap].positions:
                raise ValueError(
                    f"diversity: {tap} of {teacher.name} has no positions; take a layer with maps or tokens"
                )

    def sums(self, seen: Observation, batch: Slice) -> torch.Tensor:
        """The images' Gram matrices at their rows, each of l2 norm 1: (N, C * C)."""
        taps = self.needs(batch.teacher)
        if not taps:
            return seen.logits.new_zeros((batch.images, 0), dtype=torch.float64)
        value = seen.taps[taps[0]].flatten(2).double()
        return batch.placed(F.normalize((value @ value.mT).flatten(1), dim=1))

    def loss(self, total: Totals, t: int) -> torch.Tensor:
        unit = torch.arange(len(total[t]), device=total[t].device) % self.units
        pairs = (unit[:, None] == unit).triu(1)
        return ((total[t] @ total[t].T) * pairs).sum() / pairs.sum().clamp_min(1)
