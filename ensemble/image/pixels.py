"""Images as their own pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ensemble.image.parameterization import ImageParameterization, Parameterization, coarse_part, drawn_normal
from models import ModelCard

_CAFFE = (123 / 255, 117 / 255, 104 / 255), (1 / 255,) * 3
"""Mean and deviation with which normalised values are grey levels less ImageNet's mean colour, red, green and blue."""


@dataclass(frozen=True)
class Pixels(Parameterization, kind="pixels"):
    """The pixels themselves, in RGB or in the first teacher's normalised space."""

    space: Literal["rgb", "normalised", "caffe"] = "rgb"
    """What a step of the optimiser means; published recipes step in the normalised space. `caffe`: in grey levels of
    256, less the mean colour of ImageNet."""
    clip: bool = True
    """Keep RGB in [0, 1] after each step."""

    def make(self, n: int, size: int, *, card: ModelCard, dtype: torch.dtype, device: torch.device | str) -> PixelImage:
        spaces = {"rgb": None, "normalised": (card.mean, card.std), "caffe": _CAFFE}
        normalised = spaces[self.space]
        return PixelImage(n, size, clip=self.clip, normalised=normalised, dtype=dtype, device=device)


class PixelImage(ImageParameterization):
    """Images as their own pixels p: x = p, or where `normalised` gives (mean, std), x = std p + mean per channel.

    `pixels`: (N, 3, H, W). With `clip`, `project` clips p to where x lies in [0, 1]. A new image is mid grey.

    Raises ValueError for n or size below 1, or a dtype other than float32 and float64.
    """

    def __init__(
        self,
        n: int,
        size: int,
        *,
        clip: bool,
        normalised: tuple[Sequence[float], Sequence[float]] | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(n, size, dtype)
        self.clip = clip
        self.mean: Tensor
        self.std: Tensor
        for name, value in zip(("mean", "std"), normalised or ([0.0] * 3, [1.0] * 3), strict=True):
            constant = torch.tensor(value, dtype=dtype, device=device)[:, None, None]
            self.register_buffer(name, constant, persistent=False)
        self._centre = 0.5 if normalised is None else 0.0
        grey = (0.5 - self.mean) / self.std
        self.pixels = nn.Parameter(grey.expand(n, 3, size, size).clone())

    def forward(self) -> Tensor:
        return self.pixels * self.std + self.mean

    def bounds(self) -> tuple[Tensor, Tensor] | None:
        """Where RGB lies in [0, 1], if `clip`: (3, 1, 1) each."""
        return (-self.mean / self.std, (1 - self.mean) / self.std) if self.clip else None

    @torch.no_grad()
    def project(self) -> None:
        """Clip the pixels in place to their bounds."""
        if (bounds := self.bounds()) is not None:
            self.pixels.clamp_(*bounds)

    @torch.no_grad()
    def set_image(self, image: Tensor) -> None:
        image = self._checked(image)
        self.pixels.copy_((image - self.mean.cpu().double()) / self.std.cpu().double())

    @torch.no_grad()
    def randomize(self, scale: float, rng: torch.Generator) -> None:
        """Draw the pixels, not clipped: 0.5 + N(0, scale^2), or N(0, scale^2) in the normalised space."""
        self.pixels.copy_(self._centre + drawn_normal(self.pixels, scale, rng))

    @torch.no_grad()
    def vary(self, amplitude: Tensor, colour: Tensor) -> None:
        """Not clipped; `colour` is in units of the pixels, as the scale of `randomize`."""
        pixels = self.pixels.detach().cpu().double()
        coarse = torch.fft.irfft2(torch.fft.rfft2(pixels) * coarse_part(self.size), s=pixels.shape[2:])
        varied = pixels + (amplitude[:, None, None, None] - 1) * coarse + colour[:, :, None, None]
        self.pixels.copy_(varied)
