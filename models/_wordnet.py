"""ImageNet's classes by WordNet's numbers, as its folders are called: n01440764 is the tench."""

from __future__ import annotations

import re
from functools import cache

from models._card import ModelCard


def wordnet_numbers(card: ModelCard, text: str) -> dict[str, int]:
    """The index of each of ImageNet-1k's classes by its WordNet number, where `card` has them and `text` one such.

    Elsewhere none: timm, which knows them, takes seconds to import.
    """
    if card.label_space != "imagenet1k" or re.search(r"\bn\d{8}\b", text) is None:
        return {}
    return dict(_numbers())


@cache
def _numbers() -> dict[str, int]:
    from timm.data import ImageNetInfo

    return {number: index for index, number in enumerate(ImageNetInfo("imagenet-1k").label_names())}
