"""Starts of an optimisation: dead leaves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from ensemble.image.parameterization import ImageParameterization
from ensemble.image.start import Start

_AT_ONCE = 256
"""Discs that are drawn and laid together; part of what a seed means."""


@dataclass(frozen=True)
class DeadLeaves(Start, kind="dead_leaves"):
    """Discs of random colours that cover each other, an image of its own for each of the batch; needs no pictures."""

    smallest: Annotated[float, Field(ge=1 / 256)] = 1 / 32
    """Radius, as a fraction of the image's size."""
    largest: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Radius, as a fraction of the image's size."""

    def rules(self) -> Iterator[str]:
        if self.smallest >= self.largest:
            yield f"smallest: {self.smallest:g} must be below largest, {self.largest:g}"

    def set(self, image: ImageParameterization, rng: torch.Generator) -> None:
        size = image.size
        image.set_image(dead_leaves(image.n, size, self.smallest * size, self.largest * size, rng))


def dead_leaves(n: int, size: int, smallest: float, largest: float, rng: torch.Generator) -> Tensor:
    """n images, RGB in [0, 1], (N, 3, H, W), float64, of discs that occlude each other.

    A pixel has the colour of the first disc over its centre. Radii in pixels have density ~ r^-3 (`radii`), centres are
    uniform in the image and `largest` around it, so borders are as the middle; colours are uniform in RGB.

    Source: Lee, Mumford & Huang, "Occlusion Models for Natural Images" (IJCV 2001), whose r^-3 makes it look alike
    at all scales; Baradad et al., "Learning to See by Looking at Noise" (NeurIPS 2021), who train on such images.
    Departures: laid from the front until no pixel is left (Kendall & Thönnes 1999), which is exact, where the others
    stop after so many discs from the back; no texture on the discs.
    """
    return torch.stack([_one(size, smallest, largest, rng) for _ in range(n)])


def radii(count: int, smallest: float, largest: float, rng: torch.Generator) -> Tensor:
    """(count,) draws from the density ~ r^-3 between `smallest` and `largest`, by the inverse of its distribution."""
    low, high = smallest**-2, largest**-2
    return (low - (low - high) * torch.rand(count, generator=rng, dtype=torch.float64)) ** -0.5


def _one(size: int, smallest: float, largest: float, rng: torch.Generator) -> Tensor:
    """One image, (3, H, W)."""
    pixels = torch.zeros(size * size, 3, dtype=torch.float64)
    centres = torch.arange(size)[:, None] + 0.5
    bare = torch.arange(size * size)
    while len(bare):
        radius, x, y, colour = _discs(size, smallest, largest, rng)
        across, reach = (centres - x).square(), radius.square() - (centres - y).square()
        covered = across[bare % size] < reach[bare // size]
        hit = covered.any(1)
        pixels[bare[hit]] = colour[covered[hit].to(torch.uint8).argmax(1)]
        bare = bare[~hit]
    return pixels.T.reshape(3, size, size)


def _discs(size: int, smallest: float, largest: float, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The next discs from the front that may be seen: radius, x and y, each (K,), and colour, (K, 3)."""
    radius = radii(_AT_ONCE, smallest, largest, rng)
    draws = torch.rand(_AT_ONCE, 5, generator=rng, dtype=torch.float64)
    x, y = (draws[:, :2] * (size + 2 * largest) - largest).unbind(1)
    inside = (torch.stack([x, y]) - size / 2).abs().amax(0) < size / 2 + radius
    return radius[inside], x[inside], y[inside], draws[inside, 2:]
