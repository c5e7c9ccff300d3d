"""What members and non-members are labelled by."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_networks import CARD

from ensemble.data.labelled import LabelledImages
from ensemble.privacy.audit import _alike

NAMELESS = replace(CARD, class_names=())


def labelled(*names: str) -> LabelledImages:
    """An image of each class."""
    return LabelledImages(torch.zeros(len(names), 3, 4, 4, dtype=torch.uint8), torch.arange(len(names)), names)


def test_a_set_that_lacks_a_class_is_numbered_as_the_other() -> None:
    for order in (1, -1):
        pair = [labelled("x", "y", "z"), labelled("y", "z")][::order]
        found = _alike(*pair, NAMELESS)[::order]
        assert [part.labels.tolist() for part in found] == [[0, 1, 2], [1, 2]]


def test_sets_whose_classes_have_other_names_are_refused() -> None:
    """Each numbered by itself, the labels of one would be wrong, and look like a leak."""
    with pytest.raises(ValueError, match=r"classes differ \(dog in one alone\)"):
        _alike(labelled("cat", "horse", "ship"), labelled("cat", "dog", "ship"), NAMELESS)
    with pytest.raises(ValueError, match="name the folders"):
        _alike(labelled("a", "b", "c"), labelled("a", "b", "dog"), CARD)


def test_by_the_networks_own_names_the_order_is_its_own() -> None:
    found = _alike(labelled("c", "a"), labelled("b", "c", "a"), CARD)
    assert [part.labels.tolist() for part in found] == [[2, 0], [1, 2, 0]]
