"""Where folders' names stand among a network's classes."""

from __future__ import annotations

from collections.abc import Sequence

from models._card import ModelCard
from models._wordnet import wordnet_numbers


def class_indices(card: ModelCard, names: Sequence[str]) -> dict[str, int]:
    """The index of each of the network's classes by its names: its own, WordNet's, or the number itself.

    WordNet's only where `names` have such; numbers, 0 to classes - 1, where all of `names` are numbers and none is a
    class's own name.
    """
    named = {name: index for index, name in reversed(list(enumerate(card.class_names)))}
    if named.keys().isdisjoint(names) and all(name.isdecimal() and name.isascii() for name in names):
        return {str(index): index for index in range(card.num_classes)}
    return {**wordnet_numbers(card, " ".join(names)), **named}


def as_many_in_order(card: ModelCard, names: Sequence[str]) -> bool:
    """Whether names that say nothing of the classes are as many; numbers say something, if not from where."""
    numbers = all(name.isdecimal() for name in names)
    return len(names) == card.num_classes and not numbers and not set(names) & set(card.class_names)
