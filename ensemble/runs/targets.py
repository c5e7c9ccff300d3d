"""Which classes to invert: `all`, `random`, indices, ranges and names -> class indices."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence

import torch

from ensemble.machine.rng import generator

_RANGE = re.compile(r"(-?\d+)-(-?\d+)")


def parse_targets(
    spec: str | Sequence[int | str],
    num_classes: int,
    class_names: Sequence[str],
    numbers: Mapping[str, int] | None = None,
) -> tuple[int, ...] | None:
    """Class indices in the order given, or None for `random`. A text may list several, separated by commas.

    `numbers` are further names of classes, such as WordNet's.
    Raises ValueError with every item that is out of range or no class's name.
    """
    if spec == "all":
        return tuple(range(num_classes))
    if spec == "random":
        return None
    items = spec.split(",") if isinstance(spec, str) else list(spec)
    names: dict[str, list[int]] = {}
    for i, name in enumerate(class_names):
        names.setdefault(name.lower(), []).append(i)
    names |= {name: [i] for name, i in (numbers or {}).items()}
    indices: list[int] = []
    problems: list[str] = []
    for item in items:
        text = str(item).strip()
        found: Sequence[int]
        if (match := _RANGE.fullmatch(text)) is not None:
            first, last = int(match[1]), int(match[2])
            found = range(first, last + 1)
            if last < first:
                problems.append(f"range {text} runs backwards")
        elif re.fullmatch(r"-?\d+", text):
            found = [int(text)]
        elif len(names.get(text.lower(), ())) > 1:
            several = " and ".join(map(str, names[text.lower()]))
            problems.append(f"classes {several} are all called {text!r}; give the index")
            continue
        elif text.lower() in names:
            found = names[text.lower()]
        else:
            near = difflib.get_close_matches(text.lower(), names, n=1)
            hint = f"; did you mean {class_names[names[near[0]][0]]!r}?" if near else ""
            if not names:
                hint = f"; the first teacher names none, give indices 0..{num_classes - 1}, or its class names"
            problems.append(f"no class is called {text!r}{hint}")
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


def batch_targets(
    classes: tuple[int, ...] | None, num_classes: int, per_class: int, batch_size: int | None, seed: int
) -> torch.Tensor:
    """The targets of one batch, int64 (N,).

    N = batch_size, or len(classes) * per_class. Classes repeat in turn (0, 1, .., 0, 1, ..), so that every
    slice of the batch is as balanced as can be. `classes` None draws each target uniformly (without a batch
    size: num_classes * per_class of them).
    """
    if classes is None:
        size = batch_size or num_classes * per_class
        return torch.randint(num_classes, (size,), generator=generator(seed, "targets"))
    size = batch_size or len(classes) * per_class
    return torch.tensor(classes)[torch.arange(size) % len(classes)]
