"""What a caller gives for units: checked, and completed where it stands in the place of a method's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from ensemble.config.overrides import apply_override
from ensemble.config.parsing import to_plain
from ensemble.recipe import ImageRule


def check_numbers(images_per_unit: Any, size: Any, bn_matching: Any) -> None:
    """ValueError for what are no such numbers."""
    for name, number in (("images_per_unit", images_per_unit), ("size", size)):
        if number is not None and (isinstance(number, bool) or not isinstance(number, Integral) or number < 1):
            raise ValueError(f"{name}: a whole number from 1 on, not {number!r}")
    if isinstance(bn_matching, bool) or not isinstance(bn_matching, Real):
        raise ValueError(f"bn_matching: a weight, not {bn_matching!r}")


def check_paths(real: Any, split: Any, output: Any) -> None:
    """ValueError for what are no paths, or a split of no images."""
    for name, path in (("real", real), ("output", output)):
        if path is not None and not isinstance(path, str | Path):
            raise ValueError(f"{name}: a path, not {path!r}")
    if split is not None and not isinstance(split, str):
        raise ValueError(f"split: the name of one, not {split!r}")
    if split is not None and real is None:
        raise ValueError("split: it says which of the real images are read, and none are given; add real (--real)")


def overrides_of(overrides: Any) -> list[str]:
    """One override or several, as a list; ValueError for what are none."""
    listed = [overrides] if isinstance(overrides, str) else overrides
    if not isinstance(listed, Sequence) or not all(isinstance(text, str) for text in listed):
        raise ValueError(f'overrides: one or a list of some, as "optimizer.lr=0.2", not {overrides!r}')
    return list(listed)


def image_of(given: Any, made: Mapping[str, Any]) -> Any:
    """A caller's `image` with the size and `alike` of the method's, `made`.

    ValueError where it has a size itself: views and real images have that of `size`.
    """
    if isinstance(given, ImageRule):
        unset = {"size": None, "alike": 1}
        given = {key: value for key, value in to_plain(given).items() if key not in unset or value != unset[key]}
    if not isinstance(given, Mapping):
        return given
    if "size" in given:
        raise ValueError("image.size: give size (--size) instead, which views and real images follow")
    return {key: made[key] for key in ("size", "alike")} | dict(given)


def with_image(overrides: Sequence[str], made: Mapping[str, Any]) -> list[str]:
    """The overrides, where one replaces the image with its size and `alike` after it, as in `image_of`."""
    found = []
    for text in overrides:
        image = apply_override({}, text).get("image") if text.startswith("image") else None
        completed = image_of(image, made)
        found.append(text)
        if text.startswith("image=") and isinstance(image, Mapping):
            found += [f"image.{key}={completed[key]}" for key in completed if key not in image]
    return found
