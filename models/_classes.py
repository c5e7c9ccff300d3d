"""Where folders' names stand among a network's classes."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

from models._card import ModelCard
from models._wordnet import wordnet_numbers


def class_indices(card: ModelCard, names: Sequence[str]) -> dict[str, int]:
    """The index of each of the network's classes by its names: its own, WordNet's, or the number itself.

    Its own also as `names` spell them: in another case, accents and letters apart, or with `_` or `-` for a space.
    WordNet's only where `names` have such; numbers, 0 to classes - 1, where all of `names` are numbers and none is a
    class's own name.
    """
    named = {name: index for index, name in reversed(list(enumerate(card.class_names)))}
    if named.keys().isdisjoint(names) and all(name.isdecimal() and name.isascii() for name in names):
        return {str(index): index for index in range(card.num_classes)}
    count = Counter(map(_spelled_plainly, named))
    plain = {_spelled_plainly(name): index for name, index in named.items() if count[_spelled_plainly(name)] == 1}
    spelled = {name: plain[_spelled_plainly(name)] for name in names if _spelled_plainly(name) in plain}
    return {**wordnet_numbers(card, " ".join(names)), **spelled, **named}


def as_many_in_order(card: ModelCard, names: Sequence[str]) -> bool:
    """Whether names that say nothing of the classes are as many; numbers say something, if not from where."""
    numbers = all(name.isdecimal() for name in names)
    known = set(map(_spelled_plainly, card.class_names))
    return len(names) == card.num_classes and not numbers and known.isdisjoint(map(_spelled_plainly, names))


def _spelled_plainly(name: str) -> str:
    """NFC, for some systems store the letters of a folder's name and their accents apart."""
    return re.sub(r"[\s_-]+", " ", unicodedata.normalize("NFC", name)).strip().casefold()
