"""Views of the images: (images, generator) -> images, differentiable.

All draws come from a CPU generator, in a fixed order, and their number depends on the batch size alone, in Noise on the
images' size too: neither the device nor an earlier draw's value changes what is drawn next.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Transform = Callable[[Tensor, torch.Generator], Tensor]
"""Images (N, 3, H, W) and a CPU generator to images (N, 3, H', W')."""


@dataclass(frozen=True)
class Jitter:
    """Shift by (dy, dx), uniform integers in [-pixels, pixels]; positive values move content down and right.

    What leaves one edge comes back at the opposite one (`wrap`), or the image is mirrored beyond its edge
    without repeating the edge pixel (`reflect`). One shift for the batch, or one for each image.

    Raises ValueError for negative pixels, an unknown mode, or a reflection longer than the image.
    """

    pixels: int
    mode: Literal["wrap", "reflect"]
    per_image: bool

    def __post_init__(self) -> None:
        if self.pixels < 0:
            raise ValueError(f"jitter: pixels must be >= 0, not {self.pixels}")
        if self.mode not in ("wrap", "reflect"):
            raise ValueError(f"jitter: unknown mode {self.mode!r}; use 'wrap' or 'reflect'")

    def __call__(self, images: Tensor, rng: torch.Generator) -> Tensor:
        n, _, height, width = images.shape
        if self.mode == "reflect" and self.pixels >= min(height, width):
            raise ValueError(f"jitter: reflecting {self.pixels} pixels needs larger images than {height} x {width}")
        shifts = self.shifts(n, rng)
        if self.per_image:
            return _shift_each(images, shifts, self.mode)
        dy, dx = shifts[0].tolist()
        if self.mode == "wrap":
            return torch.roll(images, (dy, dx), (2, 3))
        return _shift_reflected(_shift_reflected(images, dy, 2), dx, 3)

    def shifts(self, n: int, rng: torch.Generator) -> Tensor:
        """What is drawn for n images: (1 or n, 2), how far down and right."""
        return torch.randint(-self.pixels, self.pixels + 1, (n if self.per_image else 1, 2), generator=rng)


@dataclass(frozen=True)
class Flip:
    """Mirror left and right with the given probability: the whole batch, or each image on its own draw.

    Raises ValueError if the probability is outside [0, 1].
    """

    probability: float
    per_image: bool

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError(f"flip: probability must lie in [0, 1], not {self.probability}")

    def __call__(self, images: Tensor, rng: torch.Generator) -> Tensor:
        flipped = torch.rand(len(images) if self.per_image else 1, generator=rng) < self.probability
        if self.per_image:
            return torch.where(flipped.to(images.device)[:, None, None, None], images.flip(3), images)
        return images.flip(3) if bool(flipped) else images


@dataclass(frozen=True)
class Zoom:
    """A square part of each image, at its full size again: the side uniform between `smallest` and 1 times the whole.

    The part lies anywhere within the image. A x B^T for each image and channel, with matrices of linear interpolation
    between pixel centres: a product, whose gradient is deterministic on CUDA. With `smallest` 1 images pass unchanged.

    Source: the random resized crops of SRe2L (Yin et al., NeurIPS 2023). Departures: by the side, not by the area; no
    change of proportions.

    Raises ValueError if `smallest` is outside (0, 1].
    """

    smallest: float

    def __post_init__(self) -> None:
        if not 0 < self.smallest <= 1:
            raise ValueError(f"zoom: the smallest part must lie in (0, 1], not {self.smallest}")

    def __call__(self, images: Tensor, rng: torch.Generator) -> Tensor:
        drawn = torch.rand(len(images), 3, generator=rng, dtype=torch.float64)
        if self.smallest == 1:
            return images
        drawn = drawn.to(images.device)  # the matrices, much larger than the draws, are made there
        side = self.smallest + (1 - self.smallest) * drawn[:, 0]
        rows, columns = (
            _magnifying(length, side, drawn[:, k]).to(images) for k, length in enumerate(images.shape[2:], 1)
        )
        return rows[:, None] @ images @ columns[:, None].mT


def _magnifying(length: int, side: Tensor, place: Tensor) -> Tensor:
    """(N, length, length): how much of each old position a new one takes, of parts of `side` times the length.

    `place` 0 is the first such part, 1 the last. Beyond the first and last centre the image goes on as it is there.
    """
    positions = torch.arange(length, device=side.device)
    centres = side[:, None] * (positions + 0.5) + ((1 - side) * place)[:, None] * length - 0.5
    centres = centres.clamp(0, length - 1)
    return (1 - (centres[:, :, None] - positions).abs()).clamp_min(0)


@dataclass(frozen=True)
class Resize:
    """Resize to size x size: the mean over blocks where a square shrinks by an integer factor, else bilinear.

    Bilinear is antialiased, as in PIL. Images of that size already pass unchanged. Draws nothing.

    Raises ValueError if size is below 1.
    """

    size: int

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"resize: size must be at least 1, not {self.size}")

    def __call__(self, images: Tensor, rng: torch.Generator) -> Tensor:
        height, width = images.shape[2:]
        if height == width == self.size:
            return images
        if height == width and height % self.size == 0:
            return F.avg_pool2d(images, height // self.size)
        return resize_bilinear(images, self.size)


def resize_bilinear(images: Tensor, size: int) -> Tensor:
    """Images (N, C, H, W) to (N, C, size, size), bilinear with antialiasing, as in PIL: A x B^T for each channel.

    The matrices are what torch's resampling makes of the unit matrix. Its own gradient is not deterministic on CUDA,
    that of a product is.
    """
    rows, columns = (_resampling(length, size, images) for length in images.shape[2:])
    return rows @ images @ columns.T


def _resampling(length: int, size: int, like: Tensor) -> Tensor:
    """(size, length): how much of each old position a new one takes."""
    unit = torch.eye(length, dtype=like.dtype, device=like.device)[None, None]
    return F.interpolate(unit, (size, length), mode="bilinear", antialias=True)[0, 0]


@dataclass(frozen=True)
class Noise:
    """Add N(0, deviation^2) to every colour value. With deviation 0 images pass unchanged, and nothing is drawn.

    Raises ValueError for a negative deviation.
    """

    deviation: float

    def __post_init__(self) -> None:
        if not self.deviation >= 0:
            raise ValueError(f"noise: the deviation must be >= 0, not {self.deviation}")

    def __call__(self, images: Tensor, rng: torch.Generator) -> Tensor:
        if not self.deviation:
            return images
        drawn = torch.randn(images.shape, generator=rng, dtype=torch.float64)
        return images + (self.deviation * drawn).to(images)


@dataclass(frozen=True)
class Compose:
    """The transforms one after the other, on one generator."""

    transforms: tuple[Transform, ...]

    def __call__(self, images: Tensor, rng: torch.Generator) -> Tensor:
        for transform in self.transforms:
            images = transform(images, rng)
        return images

    def shifts(self, n: int, rng: torch.Generator) -> Tensor | None:
        """By how much n images are shifted around their edges, (1 or n, 2), down and right.

        None where they are shifted otherwise. A shift is the first thing that is drawn.
        """
        jitter = next((transform for transform in self.transforms if isinstance(transform, Jitter)), None)
        return None if jitter is None or jitter.mode != "wrap" else jitter.shifts(n, rng)


def _shift_reflected(images: Tensor, shift: int, dim: int) -> Tensor:
    # Reflect-pad and crop, as slices: unlike the padding operator, their gradient is deterministic on CUDA.
    length = images.shape[dim]
    if shift > 0:
        border = images.narrow(dim, 1, shift).flip(dim)
        return torch.cat([border, images.narrow(dim, 0, length - shift)], dim)
    if shift < 0:
        border = images.narrow(dim, length - 1 + shift, -shift).flip(dim)
        return torch.cat([images.narrow(dim, -shift, length + shift), border], dim)
    return images


def _shift_each(images: Tensor, shifts: Tensor, mode: str) -> Tensor:
    """Image n shifted by (dy, dx) = shifts[n], (N, 2): one gather over the flattened pixels."""
    n, channels, height, width = images.shape
    shifts = shifts.to(images.device)
    rows = _sources(height, shifts[:, 0], mode)
    columns = _sources(width, shifts[:, 1], mode)
    index = (rows[:, :, None] * width + columns[:, None, :]).reshape(n, 1, -1)
    return images.flatten(2).gather(2, index.expand(-1, channels, -1)).view_as(images)


def _sources(length: int, shifts: Tensor, mode: str) -> Tensor:
    """(N, length): the position each output position reads from."""
    positions = torch.arange(length, device=shifts.device)[None, :] - shifts[:, None]
    if mode == "wrap":
        return positions % length
    positions = positions.abs()
    return (length - 1) - ((length - 1) - positions).abs()
