"""Images that units prefer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal

import torch
from pydantic import NonNegativeInt

from ensemble.objectives.selection import Unit, expand, parse_selection
from ensemble.objectives.terms import Slice, TeacherTerm, Totals
from ensemble.teachers.directions import read_direction
from ensemble.teachers.taps import Tap, Tapped
from ensemble.teachers.teacher import Observation, Profile

Reduction = Literal["mean", "sum", "norm", "dot_cos"]
SCALE = 1024.0
"""`sums` are divided by it: activations reach hundreds, and sums in fixed point have values of order 1."""
COSINE = 0.1
"""`dot_cos` takes cosines below it as this much, so that a gradient remains."""


@dataclass(frozen=True)
class Activation(TeacherTerm, kind="activation"):
    """-sum_i a_i, a_i how much image i excites its unit.

    A sum over images, not the mean as other terms: so an image does not depend on how many others there are. Beside a
    term of the batch, such as bn_matching, a weight of 1 / N puts all on one scale.

    `units` names them (see `selection`), and image i of the batch has the i-th, in turn. Where a_i is taken at several
    positions, `reduction` makes them one number:

    - `mean` (lucent) or `sum` (cnnpref) over positions;
    - `norm`, the l2 norm over positions (torch-dreams);
    - `dot_cos`, the mean of d.v max(0.1, cos(d, v))^`power`, v the layer's channels at a position and d the
      direction: the unit's axis, or a file's (lucid's direction objective; power 0 is the mean).

    A file with a number for each position (`mask=`) is multiplied with the value and summed; with `dot_cos`, times
    max(0.1, cos)^`power` of the whole of both: where the file is what an image makes of the layer, a caricature of it.
    Each a_i depends on its own image alone.
    """

    reads_taps_alone: ClassVar[bool] = True
    signed: ClassVar[bool] = True
    units: str | tuple[str, ...]
    weight: float = 1.0
    reduction: Reduction = "mean"
    power: NonNegativeInt = 2

    def rules(self) -> Iterator[str]:
        if not self.selections:
            yield "units: none given; as units: layer3.0:7"
        for text in self.selections:
            try:
                masked = any(part.channels.startswith("mask=") for part in parse_selection(text))
            except ValueError as error:
                yield str(error)
                continue
            if masked and self.reduction in ("norm", "sum"):
                yield f"reduction: `{self.reduction}` is of a map, and a mask makes one number; take mean or dot_cos"
        if self.reduction != "dot_cos" and self.power != type(self).power:
            yield f"power: it is for `reduction: dot_cos`, and it is `{self.reduction}`"

    def files_read(self) -> Sequence[str]:
        parts = [part for text in self.selections for part in parse_selection(text)]
        return [part.file for part in parts if part.file]

    def needs(self, teacher: Profile) -> Sequence[Tap]:
        return [part.tap for text in self.selections for part in parse_selection(text) if part.of(teacher.name)]

    def check(self, teachers: Sequence[Profile]) -> None:
        names = [teacher.name for teacher in teachers]
        for text in self.selections:
            for part in parse_selection(text):
                if part.teacher and part.teacher not in names:
                    raise ValueError(
                        f"units: {text!r}: no teacher is called {part.teacher!r}; they are {', '.join(names)}"
                    )
        named = []
        for teacher in teachers:
            units = self.units_of(teacher)
            if any(units):  # one that none are of has none, however many those of the others are
                named.append(teacher)
            for unit in (unit for several in units for unit in several if unit.file):
                _check_file(unit, teacher.taps[unit.tap])
        for text in self.selections:
            _check_as_many(text, named)

    @property
    def selections(self) -> tuple[str, ...]:
        """Each selection, as it was written."""
        return (self.units,) if isinstance(self.units, str) else self.units

    def units_of(self, teacher: Profile) -> list[tuple[Unit, ...]]:
        """What each of the units is in this teacher, summed; ValueError where it is not there."""
        taps = tuple(teacher.taps.items())
        return _units(self.selections, teacher.name, taps, teacher.card.class_names)

    def names(self, teachers: Sequence[Profile]) -> list[str]:
        """What each unit is called, in their order: as its selection would be for it alone.

        A class has its number, and where teachers have it at several, its name.
        """
        found = []
        for text in self.selections:
            parts = parse_selection(text)
            own = [
                [expand(part, t.taps[part.tap], t.card.class_names) for t in teachers if part.of(t.name)]
                for part in parts
            ]
            for k in range(max(len(first) for first, *_ in own)):
                words = ""
                for part, of_teachers in zip(parts, own, strict=True):
                    unit, *others = (units[k % len(units)] for units in of_teachers)
                    sign = (" - " if unit.factor < 0 else " + ") if words else ("-" if unit.factor < 0 else "")
                    alike = all(other.channels == unit.channels for other in others)
                    words += sign + unit.text(part.teacher, numbered=alike)
                found.append(words)
        return found

    def excitations(self, seen: Observation, teacher: Profile, which: Sequence[int]) -> torch.Tensor:
        """a_i of each image seen, for the unit of that number, (n,), float64."""
        units = self.units_of(teacher)
        mine = [units[k % len(units)] for k in which]  # of a teacher that none are of, there is one that is empty
        found = seen.logits.new_zeros(len(mine), dtype=torch.float64)
        for tap, value in seen.taps.items():
            entries = [(row, unit) for row, several in enumerate(mine) for unit in several if unit.tap == tap]
            if entries:
                found = found + self._excited(value, entries, teacher.taps[tap], len(mine))
        return found

    def sums(self, seen: Observation, batch: Slice) -> torch.Tensor:
        """The images' a_i / SCALE at their rows: (N, 1)."""
        count = len(self.units_of(batch.teacher))
        which = [i % count for i in range(batch.start, batch.stop)]
        return batch.placed(self.excitations(seen, batch.teacher, which)[:, None] / SCALE)

    def per_image(self, total: Totals, t: int) -> torch.Tensor:
        """The images' parts of the loss, which is their sum: (N,)."""
        return -SCALE * total[t][:, 0]

    def loss(self, total: Totals, t: int) -> torch.Tensor:
        return self.per_image(total, t).sum()

    def describe(self) -> str:
        return f"activation of {self._text} ({self.reduction})"

    @property
    def _text(self) -> str:
        first, *rest = self.selections
        return f"{first} and {len(rest)} more" if rest else first

    def _excited(
        self, value: torch.Tensor, entries: Sequence[tuple[int, Unit]], at: Tapped, images: int
    ) -> torch.Tensor:
        """What `entries`, of one tap, add to the images' a_i: (images,), float64. `value` is (n, C, ...)."""
        flat = value.flatten(2) if value.ndim > 2 else value[:, :, None]
        at = at._replace(positions=tuple(value.shape[2:]))
        groups: dict[tuple[str, str], list[tuple[int, int, float]]] = {}
        for row, unit in entries:
            for channel in unit.channels or (-1,):
                key = unit.position, f"{'mask' if unit.whole else 'dir'}={unit.file}" if unit.file else ""
                groups.setdefault(key, []).append((row, channel, unit.factor))
        found = flat.new_zeros(images, dtype=torch.float64)
        for (position, file), triples in groups.items():
            rows, channels, factors = zip(*triples, strict=True)
            places = Unit(entries[0][1].tap, position=position).places(at)
            each = self._of_group(flat, torch.tensor(rows), torch.tensor(channels), places, file)
            onto = flat.new_zeros((images, len(rows)), dtype=torch.float64)
            onto[torch.tensor(rows), torch.arange(len(rows))] = onto.new_tensor(factors)
            found = found + onto @ each.double()
        return found

    def _of_group(
        self,
        flat: torch.Tensor,
        rows: torch.Tensor,
        channels: torch.Tensor,
        places: list[int] | None,
        file: str,
    ) -> torch.Tensor:
        """The number of each entry, (R,), of `flat` (n, C, P)."""
        if file.startswith("mask="):
            weights = read_direction(file.partition("=")[2]).to(flat)
            if weights.numel() != flat[0].numel():
                shape = " x ".join(str(n) for n in weights.shape)
                raise ValueError(f"{file}: {shape} weights for {flat.shape[1]} channels of {flat.shape[2]} positions")
            weights = weights.reshape(flat.shape[1:])
            dot = (flat[rows] * weights).sum((1, 2))
            if self.reduction != "dot_cos":
                return dot
            lengths = flat[rows].flatten(1).norm(dim=1) * weights.norm()
            return dot * (dot / lengths.clamp_min(torch.finfo(dot.dtype).eps)).clamp_min(COSINE) ** self.power
        if file:
            direction = read_direction(file.partition("=")[2]).to(flat)
            picked = torch.einsum("rcp,c->rp", flat[rows], direction)
            size = direction.norm()
        else:
            picked, size = flat[rows, channels], flat.new_ones(())
        if places is not None:
            picked = picked[:, places]
        match self.reduction:
            case "sum":
                return picked.sum(1)
            case "norm":
                return picked.square().sum(1).clamp_min(torch.finfo(picked.dtype).tiny).sqrt()
            case "dot_cos":
                lengths = flat[rows].norm(dim=1)
                lengths = lengths if places is None else lengths[:, places]
                cosine = picked / (lengths * size).clamp_min(torch.finfo(picked.dtype).eps)
                return (picked * cosine.clamp_min(COSINE) ** self.power).mean(1)
            case _:
                return picked.mean(1)


@lru_cache(maxsize=256)
def _units(
    selections: tuple[str, ...], teacher: str, taps: tuple[tuple[Tap, Tapped], ...], class_names: Sequence[str]
) -> list[tuple[Unit, ...]]:
    layouts = dict(taps)
    found = []
    for text in selections:
        parts = parse_selection(text)
        own = [expand(part, layouts[part.tap], class_names) for part in parts if part.of(teacher)]
        length = max((len(units) for units in own), default=1)
        if any(len(units) not in (1, length) for units in own):
            raise ValueError(
                f"units: {text!r} adds {' and '.join(str(len(u)) for u in own)} units; let them be as many"
            )
        found += [tuple(units[k % len(units)] for units in own) for k in range(length)]
    return found


def _check_as_many(text: str, teachers: Sequence[Profile]) -> None:
    """ValueError where a selection is not as many units of each of these; of one that it does not name it is one."""
    each = [_units((text,), t.name, tuple(t.taps.items()), t.card.class_names) for t in teachers]
    counts = sorted({len(units) for units in each})
    others = [t.name for t, units in zip(teachers, each, strict=True) if not any(units)]
    if others and counts[-1] > 1:
        raise ValueError(
            f"units: {text!r} are {counts[-1]} units, and none of {', '.join(others)}, which others are of; name them "
            "one by one"
        )
    if len(counts) > 1:
        raise ValueError(
            f"units: {text!r} are {' and '.join(map(str, counts))} units of the teachers; let them be as many of each"
        )


def _check_file(unit: Unit, at: Tapped) -> None:
    """ValueError where a direction or mask has another shape than the layer's value."""
    shape, wanted = (
        tuple(read_direction(unit.file).shape),
        (at.channels, *at.positions) if unit.whole else (at.channels,),
    )
    if shape != wanted:
        raise ValueError(f"units: {unit.file} holds numbers of shape {shape}; {unit.tap} has {wanted}")
