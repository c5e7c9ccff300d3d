"""Images whose phases alone are free; their amplitudes are those of photographs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import PositiveFloat
from torch import Tensor, nn

from ensemble.image.fourier import colour_root, imaginary_mask, pixels_of, real_columns
from ensemble.image.parameterization import ImageParameterization, Parameterization, drawn_normal
from ensemble.image.spectrum import PHOTOGRAPHS, RadialSpectrum, read_spectrum
from ensemble.image.steady import standardised
from ensemble.machine.files import user_path
from models import ModelCard

SMALLEST = 4
"""Pixels: smaller images have hardly a frequency with a phase."""


@dataclass(frozen=True)
class Maco(Parameterization, kind="maco"):
    """The phases of a spectrum whose amplitudes are those of photographs (MACO)."""

    spectrum: str | None = None
    """A folder of images, which are measured, or a table of demos/measure_spectrum.py; default: of photographs."""
    deviation: PositiveFloat = 1.0
    """Of the phases, in radians. At 1, as published, images start bright around the corners; at 2 they do not."""

    takes_images: ClassVar[bool] = False

    def make(self, n: int, size: int, *, card: ModelCard, dtype: torch.dtype, device: torch.device | str) -> MacoImage:
        spectrum = self._measured(size)
        return MacoImage(n, size, spectrum=spectrum, deviation=self.deviation, dtype=dtype, device=device)

    def files_read(self) -> Sequence[str]:
        return () if self.spectrum is None else (self.spectrum,)

    def check(self, size: int) -> None:
        _check_size(size)
        self._measured(size)

    def _measured(self, size: int) -> RadialSpectrum:
        return read_spectrum(PHOTOGRAPHS if self.spectrum is None else user_path(self.spectrum), size)


class MacoImage(ImageParameterization):
    """Images as the phases p of a spectrum of given amplitudes A, and a sigmoid:

        phi = deviation (p - mean p) / std p                over all numbers of an image
        x = sigmoid(M irfft2(a A exp(i phi)))

    `phase`: (N, 3, H, W // 2 + 1). A (3, H, W // 2 + 1) is `spectrum` at this size, of decorrelated colours; M is the
    root of their covariance, as in FourierImage; a is chosen so that values before M have unit variance over pixels and
    colours. Phases are standardised, so what an optimiser's step turns them by is lr / (the scale of the start).

    Where the half spectrum has a frequency and its mirror image (columns 0 and size / 2), the second takes the first
    one's phase, negated; a frequency that is its own mirror image has no phase, and the amplitude 0. So |rfft2| of the
    values is a A whatever p is. While all phases of an image are equal it has no structure: it is mid grey.

    When phases are drawn with deviation d, exp(-d^2) of the variance is common to all images: light around the corners,
    where all waves begin. That is 37 % at 1, and 2 % at 2.

    Source: Fel et al., "Unlocking Feature Visualization for Deeper Networks with MAgnitude Constrained Optimization"
    (NeurIPS 2023). Departures: radial amplitudes, in cycles an image; 0 at frequency 0, whose sign would be a colour
    cast; mirror images as above, where theirs lose amplitude; and with these the image's standardisation is the
    constant a.

    Raises ValueError for n below 1, a size below 4, or a dtype other than float32 and float64.
    """

    def __init__(
        self,
        n: int,
        size: int,
        *,
        spectrum: RadialSpectrum,
        deviation: float = 1.0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(n, size, dtype)
        _check_size(size)
        self.deviation = deviation
        self.phase = nn.Parameter(torch.zeros(n, 3, size, size // 2 + 1, dtype=dtype, device=device))
        self.amplitude: Tensor
        self.imaginary: Tensor
        self.colour: Tensor
        constants = {"amplitude": _amplitudes(spectrum, size), "imaginary": imaginary_mask(size)}
        for name, value in {**constants, "colour": colour_root()}.items():
            self.register_buffer(name, value.to(self.phase), persistent=False)

    def forward(self) -> Tensor:
        structured = self.phase.amax((1, 2, 3)) > self.phase.amin((1, 2, 3))
        phase = self.deviation * self._mirrored(standardised(self.phase))
        amplitude = self.amplitude * structured[:, None, None, None]
        spectrum = torch.stack([amplitude * phase.cos(), amplitude * phase.sin()], -1)
        values = pixels_of(spectrum, self.imaginary, self.size)
        return torch.sigmoid(torch.einsum("rc,nchw->nrhw", self.colour, values))

    def set_image(self, image: Tensor) -> None:
        raise ValueError("start: kind 'maco' cannot be set to an image, whose amplitudes are others; use kind 'noise'")

    @torch.no_grad()
    def randomize(self, scale: float, rng: torch.Generator) -> None:
        """Draw the phases from N(0, scale^2), before they are standardised; ValueError for scale 0."""
        if not scale:
            raise ValueError("start: with scale 0 all phases are equal, and the image stays grey; use scale 1")
        self.phase.copy_(drawn_normal(self.phase, scale, rng))

    def _mirrored(self, phase: Tensor) -> Tensor:
        """`phase` where columns of real signals have a frequency's phase at the mirrored one too, negated."""
        columns = list(phase.split(1, -1))
        twice = (self.size - 1) // 2  # rows 1 .. twice have mirror images, which come last, in reverse
        for i in real_columns(self.size):
            first = columns[i][:, :, : self.size - twice]
            columns[i] = torch.cat([first, -columns[i][:, :, 1 : twice + 1].flip(2)], 2)
        return torch.cat(columns, -1)


def _amplitudes(spectrum: RadialSpectrum, size: int) -> Tensor:
    """a A of the orthonormal transform, (3, H, W // 2 + 1): values of unit variance over pixels and colours."""
    amplitude, columns = spectrum.at(size), real_columns(size)
    for row in columns:
        amplitude[:, row, columns] = 0  # their own mirror images: they have no phase
    power = torch.full((size // 2 + 1,), 2.0, dtype=torch.float64)  # each stands for its mirror image too
    power[columns] = 1.0
    rows = (power * amplitude.square()).sum(-1)  # threads share out one large sum, and round differently
    return amplitude / torch.sqrt(rows.sum() / (3 * size**2))


def _check_size(size: int) -> None:
    if size < SMALLEST:
        raise ValueError(f"image.parameterization: maco makes images of {SMALLEST} pixels or more, not {size}")
