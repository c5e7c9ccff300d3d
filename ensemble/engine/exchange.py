"""The one small tensor that all ranks add up in a step: moments, loss scalars and flags of all teachers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ensemble.engine.reduction import Reduction, SumAcrossRanks
from ensemble.objectives import LogitsObjective
from ensemble.teachers.teacher import Observation

FLAGS = ("stop", "save")


@dataclass(frozen=True)
class _Field:
    start: int
    channels: int

    def moments(self, flat: torch.Tensor) -> torch.Tensor:
        return flat[self.start : self.start + 2 * self.channels].view(2, self.channels)

    def scalars(self, flat: torch.Tensor, count: int) -> torch.Tensor:
        first = self.start + 2 * self.channels
        return flat[first : first + count]


class Exchange:
    """Layout: per teacher its packed moments (2 x C_t), its logits terms, correct images and bad cells; then flags.

    Everything is float64 and in units that make it of order 1 (`units` (C_t,): a channel's spread), so that the
    same layout serves fixed-point sums.
    """

    def __init__(
        self,
        statistics: Sequence[tuple[torch.Tensor, torch.Tensor] | None],
        terms: Sequence[LogitsObjective],
        images: int,
        device: torch.device,
    ) -> None:
        """`statistics[t]` is (positions (C,), var (C,)) of teacher t, or None without BN layers."""
        self.terms = tuple(terms)
        self.images = images
        self.device = device
        self._scalars = len(self.terms) + 2
        self._fields: list[_Field] = []
        self._units: list[torch.Tensor] = []
        start = 0
        for entry in statistics:
            channels = 0 if entry is None else len(entry[0])
            self._fields.append(_Field(start, channels))
            start += 2 * channels + self._scalars
            if entry is None:
                self._units.append(torch.ones(2, 0, dtype=torch.float64, device=device))
            else:
                count, var = entry[0].double() * images, entry[1].double() + 1e-12
                self._units.append(torch.stack([count * var.sqrt(), count * var]).to(device))
        self._flags = start
        self.size = start + len(FLAGS)
        self._total: torch.Tensor | None = None

    def open(self, reduction: Reduction, flags: dict[str, bool]) -> None:
        """Start a step with this rank's `flags`."""
        self._reduction = reduction
        self._total = reduction.zeros((self.size,), torch.float64, self.device)
        raised = torch.zeros(len(FLAGS), dtype=torch.float64, device=self.device)
        for i, name in enumerate(FLAGS):
            if flags.get(name, False):
                raised[i] = 1.0
        reduction.add(self._total[self._flags :], raised)

    def add(self, teacher: int, observation: Observation, targets: torch.Tensor) -> None:
        """Add one cell: a teacher's observation of a slice of the batch with these `targets`."""
        assert self._total is not None
        field, logits = self._fields[teacher], observation.logits.detach().double()
        moments = observation.moments.detach().double() / self._units[teacher]
        losses = [term.share(logits, targets, self.images) for term in self.terms]
        correct = (logits.argmax(1) == targets).sum().double() / self.images
        bad = ~(torch.isfinite(moments).all() & torch.isfinite(logits).all())
        scalars = torch.stack([*losses, correct, bad.double()])
        self._reduction.add(field.moments(self._total), moments)
        self._reduction.add(field.scalars(self._total, self._scalars), scalars)

    def close(self, reduce: SumAcrossRanks) -> Totals:
        """The sums over all ranks: the step's first collective."""
        assert self._total is not None
        flat = self._reduction.result(self._total, reduce, torch.float64)
        self._total = None
        return Totals(self, flat)

    def _read(self, flat: torch.Tensor, teacher: int) -> tuple[torch.Tensor, torch.Tensor]:
        field = self._fields[teacher]
        return field.moments(flat) * self._units[teacher], field.scalars(flat, self._scalars)


@dataclass(frozen=True)
class Totals:
    """What every rank knows after the exchange."""

    exchange: Exchange
    flat: torch.Tensor

    def moments(self, teacher: int) -> torch.Tensor:
        """Packed moments (2, C) of the whole batch."""
        return self.exchange._read(self.flat, teacher)[0]

    def losses(self, teacher: int) -> torch.Tensor:
        """The unweighted logits terms, one scalar each."""
        return self.exchange._read(self.flat, teacher)[1][:-2]

    def accuracy(self, teacher: int) -> torch.Tensor:
        """Share of the images that the teacher assigns to their target."""
        return self.exchange._read(self.flat, teacher)[1][-2]

    def bad(self, teacher: int) -> torch.Tensor:
        """Number of cells with a value that is not finite."""
        return self.exchange._read(self.flat, teacher)[1][-1]

    def flag(self, name: str) -> bool:
        """Whether any rank raised the flag. Reads from the device."""
        return bool(self.flat[self.exchange._flags + FLAGS.index(name)] > 0)
