"""Levels of real batches, against batches that are drawn."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from ensemble.teachers.calibration import measure_levels
from ensemble.teachers.teacher import Teacher
from models import ModelCard, Weights


def small(weights: Weights | None = None) -> Teacher:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, stride=2), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.BatchNorm2d(5),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4),
    )  # fmt: skip
    with torch.no_grad():
        net.train()(3 * torch.randn(256, 3, 12, 12) + 1)
    tags = {"own": weights} if weights else {}
    card = ModelCard(
        "small", "test", 12, 4, mean=(0.5,) * 3, std=(0.25,) * 3, weights=tags, default_weights=next(iter(tags), None)
    )
    return Teacher("small", net, card)


def photographs(n: int, seed: int) -> torch.Tensor:
    """Images that differ in brightness and contrast, with neighbours alike."""
    rng = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 3, 4, 4, generator=rng)
    smooth = nn.functional.interpolate(coarse, size=12, mode="bilinear")
    return (smooth * torch.rand(n, 1, 1, 1, generator=rng)).clamp(0, 1)


@pytest.mark.parametrize("size", [10, 40, 200])
def test_the_level_is_the_distance_of_batches_that_are_drawn(size: int) -> None:
    teacher = small()
    statistics = teacher.statistics
    assert statistics is not None
    statistics.calibrate(measure_levels(teacher, photographs(1500, 1).split(100)))
    drawn = photographs(size * 200, 2).split(size)
    with torch.no_grad():
        gaps = [torch.stack(statistics.distances(teacher.observe(batch).moments.double(), size)) for batch in drawn]
    expected = torch.stack(gaps).square().mean(0).sqrt()
    found = torch.stack(statistics.level(size))
    assert torch.allclose(found, expected, rtol=0.1), (found, expected)


def test_where_real_images_are_all_alike_the_sampling_error_stands_in() -> None:
    """Images that wake a layer which is dead on real ones are far, not infinitely far."""
    statistics, plain = small().statistics, small().statistics
    assert statistics is not None and plain is not None
    first, second = statistics.keys
    statistics.calibrate({first: (0.1, 1.0, 0.2, 2.0), second: (0.3, 0.0, 0.0, 1e-12)})
    for own, sampled in zip(statistics.sampling_errors(50), plain.sampling_errors(50), strict=True):
        assert torch.equal(own[6:], sampled[6:]) and not torch.equal(own[:6], sampled[:6])


def test_without_images_it_is_the_sampling_error() -> None:
    statistics = small().statistics
    assert statistics is not None and not statistics.levels_measured
    mean, var = statistics.level(50)
    positions = torch.tensor([36.0, 16.0], dtype=torch.float64)
    independent = positions / (4 + positions / 12)
    assert torch.allclose(mean, 1 / (50 * independent).sqrt())
    assert torch.allclose(var, (2 / (50 * independent)).sqrt())


def test_a_card_brings_levels_and_stages_of_other_sizes_keep_them() -> None:
    levels = {"1": (0.1, 0.2, 0.3, 0.4), "4": (0.0, 1.0, 0.0, 2.0)}
    teacher = small(Weights("file", levels=levels))
    teacher.admit(24, 24 * 2)
    assert teacher.statistics is not None
    # positions 36 and 16, at half the size 9 and 1: as many independent values as p / (4 + p / 12)
    fewer = [math.sqrt((36 / 7) / (9 / 4.75)), math.sqrt((16 / (4 + 4 / 3)) / (1 / (4 + 1 / 12)))]
    for statistics, (a, b) in ((teacher.statistics, (1.0, 1.0)), (teacher.statistics.at(24), fewer)):
        mean, var = statistics.level(4)
        assert statistics.levels_measured
        assert mean.tolist() == pytest.approx([math.sqrt(0.01 + 0.04 / 4 * a * a), 0.5 * b])
        assert var.tolist() == pytest.approx([math.sqrt(0.09 + 0.16 / 4 * a * a), 1.0 * b])


def test_levels_of_another_network_are_refused() -> None:
    with pytest.raises(ValueError, match="levels: none for 4; measure them again"):
        small(Weights("file", levels={"1": (0.0, 1.0, 0.0, 1.0)}))


def test_a_layer_that_runs_twice_has_two_levels() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.fc = nn.BatchNorm2d(3), nn.Linear(3, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(self.norm(self.norm(x).relu()).mean((2, 3)))

    teacher = Teacher("twice", Twice(), ModelCard("twice", "test", 8, 4, mean=(0.5,) * 3, std=(0.25,) * 3))
    assert list(measure_levels(teacher, torch.rand(6, 3, 8, 8).split(3))) == ["norm", "norm#2"]


def test_mistakes() -> None:
    with pytest.raises(ValueError, match="give at least two"):
        measure_levels(small(), [torch.rand(1, 3, 12, 12)])
    bare = Teacher(
        "bare",
        nn.Sequential(nn.Flatten(), nn.Linear(48, 4)),
        ModelCard("bare", "test", 4, 4, mean=(0.5,) * 3, std=(0.25,) * 3),
    )
    with pytest.raises(ValueError, match="bare has no BatchNorm layers"):
        measure_levels(bare, [torch.rand(2, 3, 4, 4)])
