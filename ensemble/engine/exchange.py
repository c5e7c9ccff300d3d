"""The one small tensor that all ranks add up in a step: every term's sums of every teacher, readings and flags."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ensemble.engine.reduction import Reduction, SumAcrossRanks

FLAGS = ("stop", "save")
_READINGS = 2
"""Scalars beside each teacher's sums: its accuracy, and its cells with values that are not finite."""


class Exchange:
    """Layout: per teacher the sums of each of its terms, then accuracy and bad cells; at the end the flags.

    Everything is float64 and of order 1, so that the same layout serves fixed-point sums.
    """

    def __init__(self, shapes: Sequence[Sequence[torch.Size]], device: torch.device) -> None:
        """`shapes[t][k]` is the shape of term k's sums of teacher t."""
        self.shapes = tuple(map(tuple, shapes))
        self.device = device
        self._starts: list[int] = []
        start = 0
        for of_terms in self.shapes:
            self._starts.append(start)
            start += sum(map(math.prod, of_terms)) + _READINGS
        self._flags = start
        self.size = start + len(FLAGS)
        self._total: torch.Tensor | None = None

    def open(self, reduction: Reduction, flags: Mapping[str, bool]) -> None:
        """Start a step with this rank's `flags`."""
        self._reduction = reduction
        self._total = reduction.zeros((self.size,), torch.float64, self.device)
        raised = torch.zeros(len(FLAGS), dtype=torch.float64, device=self.device)
        for i, name in enumerate(FLAGS):
            if flags.get(name, False):
                raised[i] = 1.0
        reduction.add(self._total[self._flags :], raised)

    def add(self, teacher: int, sums: Sequence[torch.Tensor], accuracy: torch.Tensor, bad: torch.Tensor) -> None:
        """Add one cell of a teacher: its terms' sums and its two readings, scalars."""
        assert self._total is not None
        parts = [part.detach().double().flatten() for part in (*sums, accuracy, bad)]
        start = self._starts[teacher]
        flat = torch.cat(parts)
        self._reduction.add(self._total[start : start + len(flat)], flat)

    def close(self, reduce: SumAcrossRanks) -> Exchanged:
        """The sums over all ranks: the step's first collective."""
        assert self._total is not None
        flat = self._reduction.result(self._total, reduce, torch.float64)
        self._total = None
        return Exchanged(self, flat)

    def parts(self, flat: torch.Tensor, teacher: int) -> list[torch.Tensor]:
        """The stretches of a tensor in this layout that hold the sums of a teacher's terms, in their shapes."""
        found, start = [], self._starts[teacher]
        for shape in self.shapes[teacher]:
            length = math.prod(shape)
            found.append(flat[start : start + length].view(shape))
            start += length
        return found


@dataclass(frozen=True)
class Exchanged:
    """What every rank knows after the exchange."""

    exchange: Exchange
    flat: torch.Tensor

    def accuracy(self, teacher: int) -> torch.Tensor:
        """Share of the images that the teacher assigns to their target."""
        return self._readings(teacher)[0]

    def bad(self, teacher: int) -> torch.Tensor:
        """Number of cells with a value that is not finite."""
        return self._readings(teacher)[1]

    def flag(self, name: str) -> bool:
        """Whether any rank raised the flag. Reads from the device."""
        return bool(self.flat[self.exchange._flags + FLAGS.index(name)] > 0)

    def _readings(self, teacher: int) -> torch.Tensor:
        exchange = self.exchange
        starts = (*exchange._starts, exchange._flags)
        return self.flat[starts[teacher + 1] - _READINGS : starts[teacher + 1]]
