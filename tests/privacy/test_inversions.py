"""Inversions with classes: as many as are asked for, of classes that are spread over all."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from small_networks import CARD, small_net
from torch import nn

from ensemble.privacy import inversions
from ensemble.privacy.inversions import class_inversions

MANY = replace(CARD, num_classes=10, class_names=tuple("abcdefghij"))


@pytest.mark.parametrize(
    ("images", "classes", "targets", "made"),
    [
        (7, 3, [0, 1, 2, 0, 1, 2, 0], 9),
        (3, 3, [0, 1, 2], 3),
        (10, 10, [*range(10)], 10),
        (4, 10, [0, 2, 5, 7], 4),
        (2, 3, [0, 1], 2),
    ],
)
def test_no_more_images_are_made_than_classes_need(
    images: int, classes: int, targets: list[int], made: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, card, counted = small_net(), CARD if classes == 3 else MANY, []
    net[-1] = nn.Linear(16, classes)  # type: ignore[operator]
    inverted = inversions.invert

    def counting(*arguments: Any, **options: Any) -> Any:
        found = inverted(*arguments, **options)
        counted.append(len(found.images))  # type: ignore[union-attr]
        return found

    monkeypatch.setattr(inversions, "invert", counting)
    found, of = class_inversions([(net, card)], images, 1, 0)
    assert of.tolist() == targets and found.shape == (images, 3, 16, 16) and torch.isfinite(found).all()
    assert counted == [made]
