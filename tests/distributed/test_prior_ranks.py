"""Phases under photographs' amplitudes, and codes of a trained generator, on one and two real processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from launch import launch
from problem import IMAGES, finished, inversion, scattered
from torch import nn

from ensemble.engine.inversion import LiveStage
from ensemble.engine.reduction import FixedPointSum
from ensemble.image.fixed_generator import CodeImage, CodeSpace
from ensemble.image.maco import MacoImage
from ensemble.image.parameterization import ImageParameterization
from ensemble.image.spectrum import PHOTOGRAPHS, read_spectrum
from ensemble.image.transforms import Compose, Noise, Zoom
from ensemble.machine.ranks import ProcessContext

STEPS = 10


def codes() -> CodeImage:
    """Of a generator of 4 x 4 pixels, for images of 8 x 8."""
    torch.manual_seed(3)
    network = nn.Sequential(nn.Linear(6, 48), nn.Sigmoid(), nn.Unflatten(1, (3, 4, 4)))
    return CodeImage(IMAGES, 8, CodeSpace(network, torch.zeros(6), torch.ones(6)))


MADE: dict[str, Callable[[], ImageParameterization]] = {
    "maco": lambda: MacoImage(IMAGES, 8, spectrum=read_spectrum(PHOTOGRAPHS, 8)),
    "codes": codes,
}


def work(context: ProcessContext) -> dict[str, Any]:
    """The images after some steps under noise."""
    made = {}
    for name, make in MADE.items():
        run = inversion(
            context, 2, scattered(context, 2), torch.float32, STEPS, image=make(), reduction=FixedPointSum()
        )
        (stage,) = run.stages
        run.stages = (LiveStage(STEPS, Compose((Zoom(0.5), Noise(0.1))), stage.optimizer),)
        made[f"{name} before"] = run.image().detach()
        made[name] = finished(run).image().detach()
    return made


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> list[list[dict[str, Any]]]:
    return [launch(work, world, tmp_path_factory.mktemp("ranks"), seconds=300) for world in (1, 2)]


@pytest.mark.parametrize("name", MADE)
def test_images_are_the_same_bits_on_one_and_two_ranks(worlds: list[list[dict[str, Any]]], name: str) -> None:
    (one,), two = worlds
    assert (one[name] - one[f"{name} before"]).abs().max() > 1e-2
    for rank in two:
        assert torch.equal(rank[name], one[name])
