"""Where an optimisation starts: noise, a flat colour, an image, or a folder of images."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from pydantic import NonNegativeFloat

from ensemble.config.kinds import Kind
from ensemble.image.files import list_images, read_image
from ensemble.image.parameterization import ImageParameterization


@dataclass(frozen=True)
class Start(Kind, default="noise"):
    """The image before the first step."""

    memory: ClassVar[int] = 0
    """How many of the earlier images batches after the first begin from, by `go_on`: the last ones. 0: all by `set`."""

    @abstractmethod
    def set(self, image: ImageParameterization, rng: torch.Generator) -> None:
        """Set the images to their start, in place; draws come from `rng`."""

    def go_on(
        self,
        image: ImageParameterization,
        targets: torch.Tensor,
        earlier: torch.Tensor,
        earlier_targets: torch.Tensor,
        rng: torch.Generator,
    ) -> None:
        """Set the images, in place, from `earlier` (M, 3, H, W), RGB in [0, 1], and their targets (M,)."""
        raise NotImplementedError(f"{self.kind} looks back at no earlier images")

    def check(self, size: int) -> None:
        """ValueError for what `set` would refuse, before anything is loaded or written."""

    @property
    def paints(self) -> str:
        """What of it says what images look like, and so needs a parameterization that `takes_images`; "" if nothing."""
        return f"kind {self.kind!r}"


@dataclass(frozen=True)
class Noise(Start, kind="noise"):
    """The parameters are drawn from N(0, scale^2); images may differ further in coarse contrast and in colour."""

    scale: NonNegativeFloat = 0.3
    """Standard deviation, in units of the parameters."""
    amplitude_spread: NonNegativeFloat = 0.0
    """Each image's coarse structure is multiplied by exp(N(0, amplitude_spread^2))."""
    colour_spread: NonNegativeFloat = 0.0
    """Standard deviation of what is added to each image's red, green and blue; `fourier`: before the sigmoid."""

    @property
    def paints(self) -> str:
        return "noise with spreads" if self.amplitude_spread or self.colour_spread else ""

    def set(self, image: ImageParameterization, rng: torch.Generator) -> None:
        image.randomize(self.scale, rng)
        if self.paints:
            amplitude = torch.randn(image.n, generator=rng, dtype=torch.float64)
            colour = torch.randn(image.n, 3, generator=rng, dtype=torch.float64)
            image.vary((self.amplitude_spread * amplitude).exp(), self.colour_spread * colour)


@dataclass(frozen=True)
class Uniform(Start, kind="uniform"):
    """Red, green and blue of each pixel drawn uniformly from [0, 1]."""

    def set(self, image: ImageParameterization, rng: torch.Generator) -> None:
        image.set_image(torch.rand(image.n, 3, image.size, image.size, generator=rng, dtype=torch.float64))


@dataclass(frozen=True)
class Black(Start, kind="black"):
    """RGB 0 everywhere."""

    def set(self, image: ImageParameterization, rng: torch.Generator) -> None:
        image.set_image(torch.zeros(image.n, 3, image.size, image.size))


@dataclass(frozen=True)
class Grey(Start, kind="grey"):
    """RGB 0.5 everywhere."""

    def set(self, image: ImageParameterization, rng: torch.Generator) -> None:
        image.set_image(torch.full((image.n, 3, image.size, image.size), 0.5))


@dataclass(frozen=True)
class FromImage(Start, kind="image"):
    """One file for every image of the batch, resized (bicubic, shorter side) and centre-cropped."""

    path: str

    def files_read(self) -> Sequence[str]:
        return (self.path,)

    def check(self, size: int) -> None:
        read_image(self.path, size)

    def set(self, image: ImageParameterization, rng: torch.Generator) -> None:
        _set_files(image, [Path(self.path)])


@dataclass(frozen=True)
class FromFolder(Start, kind="folder"):
    """The images directly in a folder in the order of their names, repeated until the batch is full."""

    path: str

    def files_read(self) -> Sequence[str]:
        return (self.path,)

    def check(self, size: int) -> None:
        list_images(self.path)

    def set(self, image: ImageParameterization, rng: torch.Generator) -> None:
        _set_files(image, list_images(self.path)[: image.n])


def _set_files(image: ImageParameterization, files: Sequence[Path]) -> None:
    images = torch.stack([read_image(file, image.size) for file in files])
    image.set_image(images[torch.arange(image.n) % len(images)])
