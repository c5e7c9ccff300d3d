"""Which classes to invert: `all`, `random`, indices, ranges, names and shares -> class indices."""

from __future__ import annotations

import heapq
import math
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction

import torch

from ensemble.machine.rng import generator
from ensemble.teachers.class_names import ClassNames

_FEW = 20
"""Classes that a message names all of."""
_RANGE = re.compile(r"(-?\d+)-(-?\d+)")
_NUMBERS = re.compile(r"[\d-]+")


def parse_targets(
    spec: str | Sequence[int | str],
    num_classes: int,
    class_names: Sequence[str],
    numbers: Mapping[str, int] | None = None,
) -> tuple[int, ...] | None:
    """Class indices in the order given, or None for `random`. A text may list several, separated by commas.

    An integer is an index. A text of digits is the class of that name, where one is called so, else an index or a
    range: of classes called 1, 10, 2 the text "1" is the first, the integer 1 the second. `numbers` are further names
    of classes, such as WordNet's.
    Raises ValueError with every item that is out of range or no class's name.
    """
    if spec == "all":
        return tuple(range(num_classes))
    if spec == "random":
        return None
    items = spec.split(",") if isinstance(spec, str) else list(spec)
    names = ClassNames(class_names, numbers)
    unnamed = f"the first teacher names none, give indices 0..{num_classes - 1}, or its class names"
    few = f"the classes are {', '.join(class_names)}" if 0 < len(class_names) <= _FEW else ""
    otherwise = few if class_names or numbers else unnamed
    indices: list[int] = []
    problems: list[str] = []
    for item in items:
        text = str(item).strip()
        found: Sequence[int]
        if isinstance(item, str) and _NUMBERS.fullmatch(text) and class_names.count(text) == 1:
            found = [class_names.index(text)]
        elif (match := _RANGE.fullmatch(text)) is not None:
            first, last = int(match[1]), int(match[2])
            found = range(first, last + 1)
            if last < first:
                problems.append(f"range {text} runs backwards")
        elif re.fullmatch(r"-?\d+", text):
            found = [int(text)]
        else:
            try:
                found = [names.index(text, f"no class is called {text!r}", otherwise)]
            except ValueError as error:
                problems.append(str(error))
                continue
        ends = (found[0], found[-1]) if found else ()
        outside = [i for i in ends if not 0 <= i < num_classes]  # the ends only: a range can be very long
        if outside:
            problems.append(f"class {outside[0]} is out of range 0..{num_classes - 1}")
        else:
            indices += found
    if problems:
        raise ValueError("targets: " + "; ".join(problems))
    if not indices:
        raise ValueError("targets: none given; use 'all', 'random', indices, ranges such as 0-15, or class names")
    return tuple(indices)


def parse_shares(
    shares: Mapping[str, float],
    num_classes: int,
    class_names: Sequence[str],
    numbers: Mapping[str, int] | None = None,
) -> dict[int, float]:
    """Each class's share by its index, in the order given; a range gives its share to every class in it.

    Raises ValueError as `parse_targets` does, and where a class has two shares, or none is given.
    """
    found: dict[int, float] = {}
    for name, share in shares.items():
        for index in parse_targets([name], num_classes, class_names, numbers) or ():
            if index in found:
                raise ValueError(f"targets: class {index} ({name!r}) has two shares; give it one")
            found[index] = share
    if not found:
        raise ValueError("targets: no shares given; use class=share, as cat=3,dog=1")
    return found


def spread(shares: Mapping[int, float], length: int) -> tuple[int, ...]:
    """The keys of `shares` in turns: of the first i, each has i times its part of all shares, rounded up or down.

    `length` of them, or fewer where they repeat from there on. The k-th turn of a key with the part w lies from
    place floor(k / w) on and before place ceil((k + 1) / w), counted from 0; of those whose time has come, the one
    with the earliest end is next.

    Source: Baruah, Cohen, Plaxton & Varvel (1996), "Proportionate progress", for one processor.
    """
    fractions = [Fraction(repr(share)) for share in shares.values()]
    scale = math.lcm(*(part.denominator for part in fractions))
    counts = [int(part * scale) for part in fractions]
    counts = [count // math.gcd(*counts) for count in counts]
    total = sum(counts)
    waiting = [(0, c, 0) for c in range(len(counts))]
    """(first place, key, turn)"""
    ready: list[tuple[int, int, int]] = []
    """(end, key, turn)"""
    keys, turns = list(shares), []
    for place in range(min(length, total)):
        while waiting and waiting[0][0] <= place:
            _, c, k = heapq.heappop(waiting)
            heapq.heappush(ready, (-(-(k + 1) * total // counts[c]), c, k))
        _, c, k = heapq.heappop(ready)
        turns.append(keys[c])
        heapq.heappush(waiting, ((k + 1) * total // counts[c], c, k + 1))
    return tuple(turns)


def batch_targets(turns: Sequence[int], size: int, batch: int) -> torch.Tensor:
    """The targets of one batch of `size` images, int64 (size,): the classes take turns, from batch to batch.

    So every slice of a batch, and all batches together, are as balanced as can be.
    """
    return torch.tensor(turns)[torch.arange(batch * size, (batch + 1) * size) % len(turns)]


def drawn_targets(num_classes: int, size: int, seed: int) -> torch.Tensor:
    """`size` targets drawn uniformly, int64 (size,)."""
    return torch.randint(num_classes, (size,), generator=generator(seed, "targets"))
