"""Mislabelled images: as many as asked, each of another class, and nothing else is touched."""

from __future__ import annotations

import pytest
import torch

from ensemble.data.labelled import LabelledImages
from ensemble.privacy.study.canaries import mislabelled


def data(n: int, classes: int = 4) -> LabelledImages:
    images = torch.arange(n, dtype=torch.uint8)[:, None, None, None].expand(n, 3, 2, 2)
    return LabelledImages(images, torch.arange(n) % classes, tuple("abcdefgh"[:classes]))


def test_canaries_alone_have_another_class() -> None:
    given = data(200)
    made, canaries = mislabelled(given, 90, seed=3)
    assert int(canaries.sum()) == 90
    assert torch.equal(made.labels != given.labels, canaries)
    assert int(made.labels.min()) >= 0 and int(made.labels.max()) < 4
    assert torch.equal(made.images, given.images) and torch.equal(given.labels, data(200).labels)


def test_every_other_class_is_as_likely() -> None:
    given = data(4000)
    made, canaries = mislabelled(given, 3000, seed=0)
    moved = ((made.labels - given.labels) % 4)[canaries].bincount(minlength=4)
    assert moved[0] == 0 and bool((moved[1:] - 1000).abs().max() < 100)  # four deviations: 26 each


def test_the_seed_decides() -> None:
    found = [mislabelled(data(100), 20, seed)[0].labels for seed in (0, 0, 1)]
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_none_may_be_asked_and_too_many_not() -> None:
    made, canaries = mislabelled(data(5, classes=1), 0, seed=0)
    assert not canaries.any() and torch.equal(made.labels, data(5, classes=1).labels)
    with pytest.raises(ValueError, match="ask for fewer"):
        mislabelled(data(5), 6, seed=0)
    with pytest.raises(ValueError, match="second class"):
        mislabelled(data(5, classes=1), 1, seed=0)
