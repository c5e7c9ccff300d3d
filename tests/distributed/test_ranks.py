"""One, two, three and four real processes: the same gradient, the same images, two sums a step."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from launch import launch
from problem import CARD, IMAGES, MICRO_BATCHES, STEPS, TEACHERS, network, teacher, work

WORLDS = (1, 2, 3, 4)
CASES = [f"{teachers}/{micro_batch}" for teachers, micro_batch in itertools.product(TEACHERS, MICRO_BATCHES)]

Runs = Callable[[int], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """By world size, what each rank reports."""

    done: dict[int, list[dict[str, Any]] | Exception] = {}

    def at(world_size: int) -> list[dict[str, Any]]:
        if world_size not in done:
            try:
                done[world_size] = launch(work, world_size, tmp_path_factory.mktemp("ranks"))
            except RuntimeError as error:  # remembered: what hangs once is not waited for again
                done[world_size] = error
        result = done[world_size]
        if isinstance(result, Exception):
            raise result
        return result

    return at


def error(value: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative, in the l2 norm."""
    return float((value.double() - expected.double()).norm() / expected.double().norm())


def reference(case: str) -> str:
    """The same teachers on one rank, each batch whole."""
    return f"{case.split('/')[0]}/None"


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("world", WORLDS)
def test_gradient_is_that_of_one_process(runs: Runs, world: int, case: str) -> None:
    one = runs(1)[0]
    for rank in runs(world):
        expected = one[f"gradient/{reference(case)}"]
        assert error(rank[f"gradient/{case}"], expected) < 1e-12
        assert error(rank[f"loss/{case}"], one[f"loss/{reference(case)}"]) < 1e-12
        assert error(rank[f"gradient32/{case}"], expected) < 1e-5


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("world", WORLDS)
def test_terms_that_draw_and_read_features(runs: Runs, world: int, case: str) -> None:
    expected = runs(1)[0][f"varied/{reference(case)}"]
    assert expected.any()
    for rank in runs(world):
        assert error(rank[f"varied/{case}"], expected) < 1e-12


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("world", WORLDS)
def test_a_term_that_reads_several_teachers(runs: Runs, world: int, case: str) -> None:
    """Against one graph over all teachers and the whole batch, written in plain torch."""
    teachers = int(case.split("/")[0])
    view = torch.rand(IMAGES, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    leaf = view.requires_grad_()
    mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (CARD.mean, CARD.std))
    networks = [copy.deepcopy(network(t)).double().eval() for t in range(teachers)]
    logs = [net((leaf - mean) / std).log_softmax(1) for net in networks]
    total = torch.zeros((), dtype=torch.float64) * leaf.sum()
    for t in range(teachers):
        for u in range(teachers):
            gap = ((logs[t] - logs[u]) ** 2).sum(1).mean()
            total = total + 0.3 * (1 + t) / sum(range(1, teachers + 1)) * gap
    (expected,) = torch.autograd.grad(total, leaf)
    for rank in runs(world):
        if teachers == 1:
            assert not rank[f"coupled/{case}"].any()
        else:
            assert error(rank[f"coupled/{case}"], expected) < 1e-12


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("world", WORLDS)
def test_images_are_those_of_one_process(runs: Runs, world: int, case: str) -> None:
    expected = runs(1)[0][f"images/{reference(case)}"]
    for rank in runs(world):
        assert float((rank[f"images/{case}"] - expected).abs().max()) < 1e-9


@pytest.mark.parametrize("world", WORLDS)
def test_every_rank_holds_the_same_bits(runs: Runs, world: int) -> None:
    first, *others = runs(world)
    for other in others:
        assert first.keys() == other.keys()
        for name in first:
            if isinstance(first[name], torch.Tensor):
                assert torch.equal(first[name], other[name]), name


@pytest.mark.parametrize("teachers", TEACHERS)
@pytest.mark.parametrize("world", WORLDS)
def test_fixed_point_images_are_the_same_bits_on_any_number_of_ranks(runs: Runs, world: int, teachers: int) -> None:
    for rank in runs(world):
        for name in (f"fixed/{teachers}", f"fixed_best/{teachers}"):
            assert torch.equal(rank[name], runs(1)[0][name])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("world", WORLDS)
def test_two_sums_a_step(runs: Runs, world: int, case: str) -> None:
    """The exchange (moments, a loss, accuracy and a flag per teacher; two flags), then the gradient."""
    teachers = int(case.split("/")[0])
    exchange = sum(2 * teacher(t, torch.float64).channels + 3 for t in range(teachers)) + 2
    for rank in runs(world):
        assert rank[f"sums/{case}"] == [exchange, IMAGES * 3 * 8 * 8] * STEPS


@pytest.mark.parametrize("world", WORLDS)
def test_one_rank_asks_and_all_save_and_stop(runs: Runs, world: int) -> None:
    for rank in runs(world):
        assert rank["stop/stopped"]
        assert rank["stop/step"] == 4
        assert rank["stop/saved"] == [2, 4]


@pytest.mark.parametrize("world", WORLDS)
def test_one_rank_breaks_and_all_say_so(runs: Runs, world: int) -> None:
    for rank in runs(world):
        assert "of teacher t1 is not finite at step 0" in rank["broken/message"]
        assert rank["broken/untouched"]


@pytest.mark.parametrize("world", WORLDS)
def test_gather_keeps_the_order_of_ranks(runs: Runs, world: int) -> None:
    for rank in runs(world):
        assert rank["gathered"] == [f"rank {i}" for i in range(world)]


@pytest.mark.parametrize("world", WORLDS)
def test_the_owner_steps_for_ranks_that_round_differently(runs: Runs, world: int) -> None:
    """Without an owner they drift apart; with one they hold the image of one process alone."""
    one = runs(1)[0]["rounded/True"][0]
    mixed, own = runs(world)[0]["rounded/True"], runs(world)[0]["rounded/False"]
    assert len(set(mixed)) == 1 and abs(mixed[0] - one) < 1e-9
    assert world == 1 or len(set(own)) == 2
