"""Who computes what: teachers x ranks -> cells. Pure arithmetic."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """Images [start, stop) of the batch, as seen by one teacher."""

    teacher: int
    start: int
    stop: int

    @property
    def images(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Placement:
    """`cells[rank]`: what each rank computes. Every teacher sees every image exactly once."""

    images: int
    cells: tuple[tuple[Cell, ...], ...]

    @property
    def world_size(self) -> int:
        return len(self.cells)

    def teachers_of(self, rank: int) -> tuple[int, ...]:
        return tuple(sorted({cell.teacher for cell in self.cells[rank]}))

    def load(self, costs: Sequence[float]) -> tuple[float, ...]:
        """Each rank's cost, given each teacher's cost per image."""
        return tuple(sum(costs[c.teacher] * c.images for c in cells) for cells in self.cells)


def place(
    costs: Sequence[float],
    images: int,
    world_size: int,
    ranks: Sequence[int | None] | None = None,
    *,
    alternate: bool = False,
) -> Placement:
    """A balanced placement of teachers with `costs` per image over `world_size` ranks.

    With at least as many teachers as ranks, teachers stay whole: the costliest first, each to the least loaded
    rank. With more ranks than teachers, each teacher gets one rank and each further rank goes to the teacher
    whose cost per rank is highest; a teacher's batch is cut into slices that differ by at most one image.
    `ranks[t]` fixes the number of ranks of teacher t (their sum must then fit the world size).
    Teachers that `alternate` do not wait for each other: each is cut over all ranks, unless ranks are fixed or the
    batch has fewer images than there are ranks.

    Raises ValueError where the numbers do not fit.
    """
    teachers = len(costs)
    assert teachers and images > 0 and world_size > 0
    fixed = list(ranks or [None] * teachers)
    if alternate and not any(fixed) and images >= world_size:
        cut = [_cut(Cell(t, 0, images), world_size) for t in range(teachers)]
        return Placement(images, tuple(zip(*cut, strict=True)))
    if any(count is not None for count in fixed) or world_size > teachers:
        return _split(_ranks_per_teacher(costs, images, world_size, fixed), images)
    bins: list[list[int]] = [[] for _ in range(world_size)]
    loads = [0.0] * world_size
    for teacher in sorted(range(teachers), key=lambda t: (-costs[t], t)):
        rank = min(range(world_size), key=lambda r: (loads[r], len(bins[r]), r))
        bins[rank].append(teacher)
        loads[rank] += costs[teacher]
    return Placement(images, tuple(tuple(Cell(t, 0, images) for t in sorted(b)) for b in bins))


def _ranks_per_teacher(costs: Sequence[float], images: int, world_size: int, fixed: Sequence[int | None]) -> list[int]:
    counts = [1 if count is None else count for count in fixed]
    if any(count < 1 or count > images for count in counts):
        raise ValueError(f"placement: a teacher's ranks must lie between 1 and the {images} images of the batch")
    free = [t for t, count in enumerate(fixed) if count is None]
    if sum(counts) > world_size or (not free and sum(counts) != world_size):
        raise ValueError(
            f"placement: {len(costs)} teachers on {counts} ranks do not fit {world_size} processes; "
            f"start {sum(counts)} or change 'ranks'"
        )
    for _ in range(world_size - sum(counts)):
        open_to_more = [t for t in free if counts[t] < images]
        if not open_to_more:
            raise ValueError(f"placement: {world_size} processes are more than {len(costs)} teachers x {images} images")
        counts[max(open_to_more, key=lambda t: (costs[t] / counts[t], -t))] += 1
    return counts


def _split(counts: Sequence[int], images: int) -> Placement:
    whole = [Cell(teacher, 0, images) for teacher in range(len(counts))]
    return Placement(images, tuple((part,) for cell, n in zip(whole, counts, strict=True) for part in _cut(cell, n)))


def place_cells(
    costs: Sequence[float], images: int, world_size: int, cell_size: int, *, alternate: bool = False
) -> Placement:
    """Cells of at most `cell_size` images, fixed by the arguments but `world_size`, dealt out whole.

    The costliest first, each to the least loaded rank; where teachers `alternate`, to the rank with the least of this
    teacher. A rank may get none.
    """
    cells = [cell for t in range(len(costs)) for cell in slices(Cell(t, 0, images), cell_size)]
    bins: list[list[Cell]] = [[] for _ in range(world_size)]
    loads = [0.0] * world_size
    for cell in sorted(cells, key=lambda c: (-costs[c.teacher] * c.images, c.teacher, c.start)):
        own = [sum(c.images for c in held if c.teacher == cell.teacher) if alternate else 0 for held in bins]
        rank = min(range(world_size), key=lambda r: (own[r], loads[r], r))
        bins[rank].append(cell)
        loads[rank] += costs[cell.teacher] * cell.images
    return Placement(images, tuple(tuple(sorted(b, key=lambda c: (c.teacher, c.start))) for b in bins))


def slices(cell: Cell, size: int | None) -> list[Cell]:
    """The cell in micro-batches of at most `size` images, as even as possible."""
    return _cut(cell, 1 if size is None else -(-cell.images // size))


def _cut(cell: Cell, count: int) -> list[Cell]:
    """The cell in so many parts, which differ by one image at most."""
    bounds = [cell.start + cell.images * i // count for i in range(count + 1)]
    return [Cell(cell.teacher, a, b) for a, b in itertools.pairwise(bounds)]
