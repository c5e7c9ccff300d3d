"""Who computes what: every placement covers the batch once, and is as even as it can be."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest

from ensemble.engine.placement import Cell, Placement, place, place_cells, slices

IMAGES = 10
CASES = [(world, teachers, seed) for world in range(1, 10) for teachers in range(1, 6) for seed in range(3)]


def draw_costs(teachers: int, seed: int) -> list[float]:
    rng = random.Random(1000 * teachers + seed)
    return [rng.choice([0.1, 1.0, 1.0, 3.0]) * rng.uniform(0.5, 2) for _ in range(teachers)]


def seen(placement: Placement) -> Counter[tuple[int, int]]:
    """How often each (teacher, image) is computed."""
    shares = [share for rank in placement.cells for share in rank]
    return Counter((s.teacher, image) for s in shares for image in range(s.start, s.stop))


@pytest.mark.parametrize(("world", "teachers", "seed"), CASES)
def test_each_teacher_sees_each_image_once(world: int, teachers: int, seed: int) -> None:
    placement = place(draw_costs(teachers, seed), IMAGES, world)
    assert placement.world_size == world and placement.images == IMAGES
    assert seen(placement) == Counter(itertools.product(range(teachers), range(IMAGES)))
    assert all(share.images > 0 for rank in placement.cells for share in rank)
    for rank in range(world):
        assert placement.teachers_of(rank) == tuple(sorted({s.teacher for s in placement.cells[rank]}))


@pytest.mark.parametrize(("world", "teachers", "seed"), CASES)
def test_balance(world: int, teachers: int, seed: int) -> None:
    """No worse than the best placement of its kind: within 4/3 of it for whole teachers, exact for slices."""
    costs = draw_costs(teachers, seed)
    placement = place(costs, IMAGES, world)
    load = placement.load(costs)
    assert sum(load) == pytest.approx(sum(costs) * IMAGES)
    if world <= teachers:
        assignments = itertools.product(range(world), repeat=teachers)
        best = min(
            max(sum(c for c, r in zip(costs, a, strict=True) if r == k) for k in range(world)) for a in assignments
        )
        assert best * IMAGES <= max(load) * (1 + 1e-12)
        assert max(load) <= best * IMAGES * (4 / 3 - 1 / (3 * world)) + 1e-9  # Graham 1969, longest first
    else:
        counts = [sum(t in placement.teachers_of(r) for r in range(world)) for t in range(teachers)]
        cuts = itertools.product(range(1, world + 1), repeat=teachers)
        best = min(max(c / k for c, k in zip(costs, cut, strict=True)) for cut in cuts if sum(cut) == world)
        assert max(c / k for c, k in zip(costs, counts, strict=True)) == pytest.approx(best)
        for teacher in range(teachers):
            sizes = [s.images for rank in placement.cells for s in rank if s.teacher == teacher]
            assert max(sizes) - min(sizes) <= 1


def test_equal_teachers_are_dealt_evenly() -> None:
    assert place([1.0] * 4, 6, 2).load([1.0] * 4) == (12.0, 12.0)
    assert place([1.0, 1.0], 6, 4).cells == (
        (Cell(0, 0, 3),),
        (Cell(0, 3, 6),),
        (Cell(1, 0, 3),),
        (Cell(1, 3, 6),),
    )


def test_free_teachers_leave_no_rank_idle() -> None:
    assert all(place([0.0, 0.0, 0.0], 4, 3).cells)


def test_the_same_numbers_give_the_same_placement() -> None:
    assert place([1.0, 1.0, 2.0], 5, 2) == place([1.0, 1.0, 2.0], 5, 2)


def test_fixed_ranks_are_kept() -> None:
    placement = place([1.0, 100.0, 1.0], 9, 6, ranks=[3, None, 1])
    assert [s.teacher for rank in placement.cells for s in rank] == [0, 0, 0, 1, 1, 2]
    assert seen(placement) == Counter(itertools.product(range(3), range(9)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0], 3, 4), "4 processes are more than 1 teachers x 3 images"),
        (([1.0, 1.0], 5, 2, [0, None]), "between 1 and the 5 images"),
        (([1.0, 1.0], 5, 8, [6, None]), "between 1 and the 5 images"),
        (([1.0, 1.0], 5, 3, [3, 3]), r"start 6 or change 'ranks'"),
        (([1.0, 1.0], 5, 3, [1, 1]), r"start 2 or change 'ranks'"),
        (([1.0, 1.0], 5, 2, [2, None]), r"start 3 or change 'ranks'"),
    ],
)
def test_numbers_that_do_not_fit(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        place(*arguments)


@pytest.mark.parametrize("size", [None, 1, 2, 3, 4, 7, 8, 100])
def test_slices(size: int | None) -> None:
    share = Cell(2, 5, 12)
    parts = slices(share, size)
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(5, 12))
    assert {part.teacher for part in parts} == {2}
    sizes = [part.images for part in parts]
    assert max(sizes) - min(sizes) <= 1 and min(sizes) > 0
    assert max(sizes) <= (size or 7)
    assert len(parts) == (1 if size is None else -(-7 // size))


@pytest.mark.parametrize(("world", "teachers", "seed"), CASES)
def test_teachers_that_alternate_are_each_even_over_all_ranks(world: int, teachers: int, seed: int) -> None:
    costs = draw_costs(teachers, seed)
    cut, dealt = place(costs, IMAGES, world, alternate=True), place_cells(costs, IMAGES, world, 1, alternate=True)
    for placement in (cut, dealt):
        assert seen(placement) == Counter(itertools.product(range(teachers), range(IMAGES)))
        for teacher in range(teachers):
            sizes = [sum(c.images for c in rank if c.teacher == teacher) for rank in placement.cells]
            assert max(sizes) - min(sizes) <= 1


def test_fixed_ranks_and_batches_smaller_than_the_world_are_placed_as_ever() -> None:
    assert place([1.0, 1.0], 4, 3, [2, None], alternate=True) == place([1.0, 1.0], 4, 3, [2, None])
    assert place([1.0, 1.0], 2, 3, alternate=True) == place([1.0, 1.0], 2, 3)
