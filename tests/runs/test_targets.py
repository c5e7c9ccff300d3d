"""Which classes are meant."""

from __future__ import annotations

import random
from fractions import Fraction

import pytest
import torch

from ensemble.runs.targets import batch_targets, drawn_targets, parse_shares, parse_targets, spread

NAMES = ("ant", "crane", "bee", "Crane")


def test_names_and_indices() -> None:
    assert parse_targets(["Bee", 0, "1-2"], 4, NAMES) == (2, 0, 1, 2)


def test_a_text_that_is_a_name_is_no_number() -> None:
    """Of networks that were trained on folders called 1, 2, ..., 10, whose order is 1, 10, 2."""
    names = ("1", "10", "2", "1-2")
    assert parse_targets(["1", "2", "10", "1-2"], 4, names) == (0, 2, 1, 3)
    assert parse_targets("10,2", 4, names) == (1, 2)
    assert parse_targets([1, 2, "0-1", "3"], 4, names) == (1, 2, 0, 1, 3)
    assert parse_shares({"2": 3.0, "0": 1.0}, 4, names) == {2: 3.0, 0: 1.0}


def test_a_name_with_accents_apart_from_their_letters_is_that_name() -> None:
    for known, said in (("Mu\u0308ll", "M\xfcll"), ("M\xfcll", "mu\u0308ll")):
        assert parse_targets([said], 2, ("ball", known)) == (1,)


def test_two_classes_of_one_name_are_told_apart_by_their_indices() -> None:
    with pytest.raises(ValueError, match=r"classes 1 and 3 are all called 'crane'; give the index"):
        parse_targets(["crane"], 4, NAMES)
    assert parse_targets([1, "ant"], 4, NAMES) == (1, 0)


def test_what_is_no_class_is_told_with_the_nearest() -> None:
    with pytest.raises(
        ValueError, match=r"no class is called 'cranes'; did you mean 'crane'\?.*class 7 is out of range"
    ):
        parse_targets(["cranes", 7], 4, NAMES)


def test_further_names_such_as_wordnets() -> None:
    assert parse_targets(["n02", "bee", "n01"], 4, NAMES, {"n01": 0, "n02": 1}) == (1, 2, 0)
    with pytest.raises(ValueError, match=r"no class is called 'n03'"):
        parse_targets(["n03"], 4, NAMES, {"n01": 0, "n02": 1})


def test_shares_by_name_index_and_range() -> None:
    assert parse_shares({"bee": 3, "0": 1, "1-1": 2}, 4, NAMES) == {2: 3, 0: 1, 1: 2}
    with pytest.raises(ValueError, match=r"targets: class 0 \('ant'\) has two shares; give it one"):
        parse_shares({"0-2": 1, "ant": 2}, 4, NAMES)
    with pytest.raises(ValueError, match="no class is called 'be'; did you mean 'bee'"):
        parse_shares({"be": 3}, 4, NAMES)
    with pytest.raises(ValueError, match="targets: no shares given"):
        parse_shares({}, 4, NAMES)


def some_shares() -> list[dict[int, float]]:
    rng = random.Random(0)
    return [{c: float(rng.randint(1, 40)) for c in range(rng.randint(2, 7))} for _ in range(40)]


@pytest.mark.parametrize(
    "shares",
    [
        *some_shares(),
        {5: 3.0, 2: 1.0},
        {0: 1.0, 1: 1.0, 2: 1.0},
        {0: 0.1, 1: 0.2, 2: 0.7},
        {3: 7.0, 1: 5.0, 0: 0.5, 9: 11.0, 4: 2.0},
    ],
)
def test_any_first_turns_have_the_shares(shares: dict[int, float]) -> None:
    """Each class's count is its exact part, rounded up or down; and a repetition goes on as it began."""
    turns = spread(shares, 500)
    whole = sum(Fraction(str(share)) for share in shares.values())
    counts = dict.fromkeys(shares, 0)
    for i in range(1, 700):
        counts[turns[(i - 1) % len(turns)]] += 1
        assert all(abs(counts[c] - i * Fraction(str(share)) / whole) < 1 for c, share in shares.items())


def test_equal_shares_are_the_classes_in_turn() -> None:
    assert spread({4: 1.0, 2: 1.0, 7: 1.0}, 100) == (4, 2, 7)
    assert spread({4: 3.0, 2: 1.0}, 100) == (4, 4, 4, 2)
    assert len(spread({0: 0.1234567, 1: 0.7654321}, 50)) == 50


def test_batches_go_on_where_the_one_before_ended() -> None:
    batches = [batch_targets((7, 8, 9), 4, batch).tolist() for batch in range(3)]
    assert batches == [[7, 8, 9, 7], [8, 9, 7, 8], [9, 7, 8, 9]]


def test_drawn_targets_follow_their_seed() -> None:
    assert torch.equal(drawn_targets(5, 9, 1), drawn_targets(5, 9, 1))
    assert not torch.equal(drawn_targets(5, 99, 1), drawn_targets(5, 99, 2))
