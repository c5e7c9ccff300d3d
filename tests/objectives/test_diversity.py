"""Images of one unit that differ: a NumPy twin over slices, and images made with and without."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ensemble import invert
from ensemble.config.mistakes import ConfigError
from ensemble.objectives.diversity import Diversity
from ensemble.objectives.terms import Slice, Totals
from ensemble.teachers.taps import Tap, Tapped
from ensemble.teachers.teacher import Observation, Profile
from models import ModelCard

CARD = ModelCard("tiny", "test", 8, 4, mean=(0.5, 0.4, 0.45), std=(0.2, 0.25, 0.3))
TAP = Tap("layer")
PROFILE = Profile("t", CARD, None, taps={TAP: Tapped(3, (2, 2)), Tap("flat"): Tapped(3)})


def value(term: Diversity, maps: torch.Tensor, cuts: tuple[int, ...] = ()) -> torch.Tensor:
    n = len(maps)

    def part(a: int, b: int) -> Slice:
        return Slice(a, b, n, torch.zeros(b - a, dtype=torch.int64), PROFILE, 8)

    def seen(a: int, b: int) -> Observation:
        return Observation(torch.zeros(b - a, 4), torch.zeros(2, 0), torch.zeros(b - a, 0), {TAP: maps[a:b]})

    sums = [term.sums(seen(a, b), part(a, b)) for a, b in pairwise([0, *cuts, n])]
    return term.loss(Totals({0: sum(sums[1:], sums[0])}, [part(0, n)]), 0)


def twin(maps: np.ndarray, units: int) -> float:
    grams = [(m.reshape(len(m), -1) @ m.reshape(len(m), -1).T).ravel() for m in maps]
    pairs = [(i, j) for i in range(len(maps)) for j in range(i) if i % units == j % units]
    cosines = [grams[i] @ grams[j] / np.linalg.norm(grams[i]) / np.linalg.norm(grams[j]) for i, j in pairs]
    return float(np.mean(cosines)) if cosines else 0.0


@pytest.mark.parametrize("units", [1, 2, 6])
@pytest.mark.parametrize("cuts", [(), (1, 4)])
def test_against_numpy(units: int, cuts: tuple[int, ...]) -> None:
    maps = torch.randn(6, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = value(Diversity("layer", units=units), maps, cuts)
    assert float(found) == pytest.approx(twin(maps.numpy(), units))


def test_gradient() -> None:
    maps = torch.randn(4, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(lambda m: value(Diversity("layer", units=2), m), maps)


def test_it_makes_images_of_a_unit_differ() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()

    def made(weight: float) -> torch.Tensor:
        unit: dict[str, Any] = {"kind": "activation", "units": "4:1"}
        results = invert(
            [(net, CARD)],
            objectives=[unit, {"kind": "diversity", "layer": "1", "weight": weight}],
            **{"targets": [0], "image": {"batch_size": 4}, "stages": [{"iterations": 60}], "progress": False},
        )
        assert results is not None
        return net[:2]((results.images - 0.45) / 0.25).detach()

    assert twin(made(1.0).numpy(), 1) < twin(made(0.0).numpy(), 1) - 0.02


def test_what_has_no_gram_matrix_is_refused() -> None:
    with pytest.raises(ValueError, match="diversity: flat of t has no positions"):
        Diversity("flat").check([PROFILE])
    with pytest.raises(ValueError, match="diversity: no teacher is called 'u'; they are t"):
        Diversity("u/layer").check([PROFILE])
    with pytest.raises(ConfigError, match="layer: 'a#0' is no layer"):
        Diversity("a#0")
