"""A batch that begins from earlier batches of its run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field

from ensemble.image.parameterization import ImageParameterization
from ensemble.image.start import Noise, Start

Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class Warm(Start, kind="warm"):
    """Images of earlier batches of the run, changed; the first batch, and a share of each, begins anew.

    Of an earlier image, drawn with replacement: a square crop of `zoom` to 1 times its side, resized; mirrored half of
    the time; its hue turned by up to `hue` of the circle (a rotation of RGB about grey); with probability `mixture` the
    mean of it and another one. With probability `same_class` it is an image of the new one's target, where there is
    one, else of any: the picture is kept and its class changed.
    """

    memory: ClassVar[int] = 1024
    """All of a large dataset's would not fit into the machine's memory."""
    new: Share = 0.3
    """The share of images that begin from noise: without any the pool would collapse."""
    same_class: Share = 0.5
    zoom: Annotated[float, Field(gt=0, le=1)] = 0.6
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    mixture: Share = 0.3
    noise: Noise = Noise()

    def set(self, image: ImageParameterization, rng: torch.Generator) -> None:
        self.noise.set(image, rng)

    @torch.no_grad()
    def go_on(
        self,
        image: ImageParameterization,
        targets: torch.Tensor,
        earlier: torch.Tensor,
        earlier_targets: torch.Tensor,
        rng: torch.Generator,
    ) -> None:
        self.noise.set(image, rng)
        fresh = image().detach().cpu().double()
        taken = torch.stack([self._drawn(int(target), earlier, earlier_targets, rng) for target in targets])
        begun_anew = torch.rand(image.n, generator=rng) < self.new
        image.set_image(torch.where(begun_anew[:, None, None, None], fresh, taken).clamp(0, 1))

    def _drawn(
        self, target: int, earlier: torch.Tensor, earlier_targets: torch.Tensor, rng: torch.Generator
    ) -> torch.Tensor:
        own = torch.nonzero(earlier_targets == target)[:, 0]
        same, mixed, mirrored, side, turn = torch.rand(5, generator=rng, dtype=torch.float64).tolist()
        among = own if len(own) and same < self.same_class else torch.arange(len(earlier))
        pair = among[torch.randint(len(among), (2,), generator=rng)]
        corner = torch.rand(2, 2, generator=rng, dtype=torch.float64)
        parts = [
            _cropped(earlier[i].double(), self.zoom + (1 - self.zoom) * side, *corner[k]) for k, i in enumerate(pair)
        ]
        picture = (parts[0] + parts[1]) / 2 if mixed < self.mixture else parts[0]
        picture = _turned(picture, (2 * turn - 1) * self.hue)
        return picture.flip(2) if mirrored < 0.5 else picture


def _cropped(picture: torch.Tensor, share: float, down: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """A square of `share` of the side at that place, (3, H, W) again."""
    size = picture.shape[1]
    side = max(1, round(share * size))
    y, x = int(down * (size - side + 1)), int(right * (size - side + 1))
    part = picture[None, :, y : y + side, x : x + side]
    return F.interpolate(part, size=(size, size), mode="bilinear", align_corners=False)[0]


def _turned(picture: torch.Tensor, circle: float) -> torch.Tensor:
    """The hue turned by that part of the circle: a rotation of RGB about the axis of greys, clamped to [0, 1]."""
    angle = torch.tensor(2 * torch.pi * circle, dtype=picture.dtype)
    cos, sin = torch.cos(angle), torch.sin(angle)
    mean, cross = torch.full((3, 3), 1 / 3, dtype=picture.dtype), torch.zeros(3, 3, dtype=picture.dtype)
    cross[[0, 1, 2], [2, 0, 1]], cross[[0, 1, 2], [1, 2, 0]] = 1.0, -1.0
    rotation = cos * torch.eye(3, dtype=picture.dtype) + (1 - cos) * mean + sin * cross / 3**0.5
    return torch.einsum("rc,chw->rhw", rotation, picture).clamp(0, 1)
