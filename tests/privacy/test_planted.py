"""Planted means of a known number of images lie where theory has them."""

from __future__ import annotations

import math

import pytest
import torch
from small_networks import CARD, small_net, textured

from ensemble.privacy.study.planted import theory_line


def test_planted_means_are_on_the_theory_line() -> None:
    line = theory_line(small_net(), CARD, textured(1500, 1), textured(1000, 2), counts=(50, 100, 250), repeats=6)
    assert [row.n for row in line] == [50, 100, 250]
    for row in line:
        assert row.low - 0.01 < row.expected < row.high + 0.01, row
        assert row.low - 0.01 < row.of_lengths < row.high + 0.01, row
    assert line[0].auc > line[1].auc > line[2].auc > 0.55


def test_one_repeat_has_no_interval_and_images_must_suffice() -> None:
    (row,) = theory_line(small_net(), CARD, textured(60, 1), textured(100, 2), counts=(30,), repeats=1)
    assert math.isnan(row.low) and row.d == 10 and 0 < row.auc <= 1
    with pytest.raises(ValueError, match="take 60 images, not 59"):
        theory_line(small_net(), CARD, torch.zeros(59, 3, 16, 16, dtype=torch.uint8), textured(20), counts=(30, 10))
