"""Conflict between teachers on one, two and three real processes: one teacher on a rank, several, or a slice of one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from launch import launch
from problem import CONFLICT_CASES, CONFLICT_STEPS, IMAGES, conflicts, teacher

Runs = Callable[[int], list[dict[str, Any]]]
WORLDS = (2, 3)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """By world size, what each rank reports."""
    done: dict[int, list[dict[str, Any]]] = {}

    def at(world_size: int) -> list[dict[str, Any]]:
        if world_size not in done:
            done[world_size] = launch(conflicts, world_size, tmp_path_factory.mktemp("ranks"), seconds=300)
        return done[world_size]

    return at


@pytest.mark.parametrize("case", CONFLICT_CASES)
@pytest.mark.parametrize("world", WORLDS)
def test_masked_gradient_and_images_are_those_of_one_process(runs: Runs, world: int, case: str) -> None:
    one = runs(1)[0]
    expected = one[f"gradient/{case[0]}/None"]
    for rank in runs(world):
        found = rank[f"gradient/{case}"]
        assert float((found - expected).norm() / expected.norm()) < 1e-12
        assert float((rank[f"images/{case}"] - one[f"images/{case[0]}/None"]).abs().max()) < 1e-9


@pytest.mark.parametrize("case", CONFLICT_CASES)
@pytest.mark.parametrize("world", WORLDS)
def test_parts_and_agreement_are_those_of_one_process(runs: Runs, world: int, case: str) -> None:
    one = runs(1)[0]
    pairs = ["t0~t1"] if case[0] == "2" else ["t0~t1", "t0~t2", "t1~t2"]
    for rank in runs(world):
        expected = one[f"parts/{case[0]}/None"]
        assert float((rank[f"parts/{case}"] - expected).norm() / expected.norm()) < 1e-12
        for name in (*pairs, "maps"):
            assert float((rank[f"{name}/{case}"] - one[f"{name}/{case[0]}/None"]).abs().max()) < 1e-3
        assert any(0 < float(cosine) < 0.99 for name in pairs for cosine in rank[f"{name}/{case}"])


@pytest.mark.parametrize("case", CONFLICT_CASES)
@pytest.mark.parametrize("world", WORLDS)
def test_votes_are_a_third_sum(runs: Runs, world: int, case: str) -> None:
    exchange = sum(2 * teacher(t, torch.float64).channels + 3 for t in range(int(case[0]))) + 2
    for rank in runs(world):
        assert rank[f"sums/{case}"] == [exchange, *[IMAGES * 3 * 8 * 8] * 2] * CONFLICT_STEPS


@pytest.mark.parametrize("world", (1, *WORLDS))
def test_every_rank_holds_the_same_bits(runs: Runs, world: int) -> None:
    first, *others = runs(world)
    for other in others:
        assert first.keys() == other.keys()
        assert all(torch.equal(first[name], other[name]) for name in first if isinstance(first[name], torch.Tensor))


@pytest.mark.parametrize("world", WORLDS)
def test_fixed_point_gives_the_same_bits_on_any_number_of_ranks(runs: Runs, world: int) -> None:
    one = runs(1)[0]
    for name in ("fixed", "fixed/maps", "fixed/a~b", "fixed/a~c", "fixed/b~c"):
        assert torch.equal(runs(world)[0][name], one[name]), name
