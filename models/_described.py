"""Entries of a network's card that are said elsewhere: their check, and the card with them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from models._card import ModelCard


def described(card: ModelCard, says: Mapping[Any, Any], where: str) -> ModelCard:
    """`card` with what `says` holds instead: input_size, mean, std, class_names, label_space.

    What is known of real batches (`Weights.levels`) holds for one input size, mean and std, and goes with them.
    A mean or std has a number for each of the card's channels, or one for all. Class names without a label space (and
    the reverse) clear the other where they differ from the card's.
    Raises ValueError that begins with `where` and tells all unknown or malformed entries, and another number of
    classes than the card's.
    """
    said: dict[str, Any] = {}
    wrong = []
    channels = len(card.mean)
    for key, value in says.items():
        if key not in _KINDS:
            wrong.append(f"unknown entry {show(key)} (known: {', '.join(_KINDS)})")
            continue
        wanted, convert = _KINDS[key]
        said[key] = convert(value, channels)
        if said[key] is None:
            wrong.append(f"{key} must be {wanted.format(channels)}, got {show(value)}")
    wrong += _other_classes(card, said)
    if wrong:
        raise ValueError(f"{where}: {'; '.join(wrong)}")
    said.pop("num_classes", None)
    if said.get("class_names", card.class_names) != card.class_names:
        said.setdefault("label_space", "")
    if said.get("label_space", card.label_space) != card.label_space:
        said.setdefault("class_names", ())
    other = replace(card, **said)
    if other.input_convention != card.input_convention:
        other = replace(other, weights={tag: replace(known, levels={}) for tag, known in card.weights.items()})
    return other


def _other_classes(card: ModelCard, said: Mapping[str, Any]) -> list[str]:
    names, classes = said.get("class_names"), said.get("num_classes")
    wrong = []
    if classes is not None and classes != card.num_classes:
        wrong.append(
            f"num_classes is {classes}, {card.name} has {card.num_classes} (ask for {card.name}:num_classes={classes})"
        )
    if names and len(names) != card.num_classes:
        wrong.append(
            f"{len(names)} class names for {card.num_classes} classes"
            f" (ask for {card.name}:num_classes={len(names)}, or give as many names as classes)"
        )
    return wrong


def show(value: Any, limit: int = 80) -> str:
    """`value` for a message: its representation, cut short."""
    text = repr(value)
    return text if len(text) <= limit else text[:limit] + "…"


def _positive(value: Any, _: int) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _each(value: Any, channels: int) -> tuple[float, ...] | None:
    numbers = value if isinstance(value, list) else [value] * channels
    if len(numbers) != channels or not all(type(v) in (int, float) and math.isfinite(v) for v in numbers):
        return None
    return tuple(float(v) for v in numbers)


def _each_positive(value: Any, channels: int) -> tuple[float, ...] | None:
    numbers = _each(value, channels)
    return numbers if numbers is not None and min(numbers) > 0 else None


def _names(value: Any, _: int) -> tuple[str, ...] | None:
    return tuple(value) if isinstance(value, list) and all(isinstance(v, str) and v for v in value) else None


def _text(value: Any, _: int) -> str | None:
    return value if isinstance(value, str) else None


_KINDS: dict[str, tuple[str, Callable[[Any, int], Any]]] = {
    "input_size": ("a positive whole number", _positive),
    "mean": ("a number for each channel ({}), or one for all", _each),
    "std": ("a positive number for each channel ({}), or one for all", _each_positive),
    "class_names": ("a list of names (YAML wants numbers, yes and no in quotes)", _names),
    "label_space": ("a name", _text),
    "num_classes": ("a positive whole number", _positive),
}
"""What an entry must be, in words, and its conversion for so many channels, which gives None for anything else."""
