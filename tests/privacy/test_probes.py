"""Probes of networks that are known functions of their input."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from ensemble.privacy.study.probes import probe_scores
from models import ModelCard

CARD = ModelCard("brightness", "test", 16, 2, mean=(0.5,) * 3, std=(0.5,) * 3)


class Shares(nn.Module):
    """Says white, class 1, with the probability that is the image's share of white."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        share = ((x.mean((1, 2, 3)) + 1) / 2).clamp(1e-9, 1 - 1e-9)
        return torch.stack([1 - share, share], 1).log()


class Majority(nn.Module):
    """Is sure of what most of the image is."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        white = (x.mean((1, 2, 3)) > 0).float()
        return 50 * torch.stack([1 - white, white], 1)


class Silent(nn.Module):
    """Knows nothing."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.new_zeros(len(x), 2)


def black_and_white(n: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.arange(n) % 2
    return (255 * labels)[:, None, None, None].expand(n, 3, 16, 16).to(torch.uint8).contiguous(), labels


def test_a_network_that_answers_with_shares_has_slopes_of_one() -> None:
    found = probe_scores(Shares(), CARD, *black_and_white(), seed=0)
    assert found["composite"] == pytest.approx(1, abs=1e-4)
    assert found["blend"] == pytest.approx(1, abs=1e-4)
    assert found["entropy"] == pytest.approx(0, abs=1e-5)
    assert found["confidence"] == pytest.approx(1, abs=1e-5)


def test_a_grey_square_costs_what_its_share_says() -> None:
    """The square of 8 x 8 is cut off at the border: between a quarter of it and all of it is inside."""
    found = probe_scores(Shares(), CARD, *black_and_white(400), seed=0)["erased"]
    inside = torch.tensor([min(c + 4, 16) - max(c - 4, 0) for c in range(16)]).double()
    expected = -(1 - inside[:, None] * inside / 512).log().mean()  # half of what is grey goes to the other class
    assert found == pytest.approx(float(expected), rel=0.05)


def test_a_network_that_is_sure_of_the_larger_part_has_the_slope_of_a_step() -> None:
    """Blends: p is 0 for .1 to .4, at .5 a tie of black, 1 for .6 to .9; the same sums by hand."""
    found = probe_scores(Majority(), CARD, *black_and_white(), seed=0)
    shares = [k / 10 - 0.5 for k in range(1, 10)]
    step = sum(a for a in shares if a > 0.01) / sum(a * a for a in shares)
    assert found["blend"] == pytest.approx(step, rel=0.02)
    assert found["composite"] > 1.4


def test_a_network_that_knows_nothing_has_no_slopes() -> None:
    found = probe_scores(Silent(), CARD, *black_and_white(), seed=0)
    assert found["entropy"] == pytest.approx(math.log(2))
    assert found["confidence"] == pytest.approx(0.5)
    assert [found[key] for key in ("composite", "blend", "erased")] == pytest.approx([0, 0, 0], abs=1e-12)


def test_one_seed_asks_the_same() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    images, labels = torch.randint(256, (30, 3, 16, 16)).to(torch.uint8), torch.arange(30) % 2
    found = [probe_scores(net, CARD, images, labels, seed) for seed in (0, 0, 1)]
    assert found[0] == found[1] and found[0] != found[2]


def test_images_of_one_class_are_refused() -> None:
    with pytest.raises(ValueError, match="all images are of one"):
        probe_scores(Silent(), CARD, torch.zeros(3, 3, 16, 16, dtype=torch.uint8), torch.zeros(3, dtype=torch.long), 0)
