"""Training augmentations on a batch of normalised images; labels become (first, second, first's share)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, NonNegativeInt

from ensemble.config.checked import Checked

MixedLabels = tuple[torch.Tensor, torch.Tensor, float]


@dataclass(frozen=True)
class Augmentation(Checked):
    """What is done to a training batch; every part is off at 0."""

    crop_padding: NonNegativeInt = 4
    """Largest shift, pixels."""
    crop_border: Literal["mirrored", "black"] = "mirrored"
    """What comes in at the border; black leaves a seam along it, which the statistics keep."""
    flip: bool = True
    """Mirror every other image; turn it off where left and right differ, as in digits and letters."""
    crop_scale: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Least area of a random part of each image, which is enlarged to the whole; off at 1, too."""
    cutout: NonNegativeInt = 0
    """Side of the square, pixels."""
    mixup: NonNegativeFloat = 0.0
    """Alpha of the Beta distribution."""
    cutmix: NonNegativeFloat = 0.0
    """Alpha of the Beta distribution."""
    mix_probability: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Share of the batches that mixup or CutMix acts on."""

    def rules(self) -> Iterator[str]:
        if self.mixup and self.cutmix:
            yield "mixup and cutmix exclude each other; set one of them to 0"

    def __call__(
        self, images: torch.Tensor, labels: torch.Tensor, rng: torch.Generator, black: torch.Tensor
    ) -> tuple[torch.Tensor, MixedLabels]:
        """The batch as it is seen, and whose labels count in it; a label may be anything that stands for an image's.

        `black` (3, 1, 1) is a black pixel as the network takes it.
        """
        if 0 < self.crop_scale < 1:
            images = resized_crop(images, self.crop_scale, rng)
        if self.crop_border == "black":
            images = padded_crop(images - black, self.crop_padding, self.flip, rng) + black
        else:
            images = crop_and_flip(images, self.crop_padding, self.flip, rng)
        if self.cutout:
            images = cutout(images, self.cutout, rng)
        mixed: MixedLabels = (labels, labels, 1.0)
        if (self.mixup or self.cutmix) and torch.rand(1, generator=rng) < self.mix_probability:
            if self.mixup:
                images, mixed = mixup(images, labels, self.mixup, rng)
            else:
                images, mixed = cutmix(images, labels, self.cutmix, rng)
        return images.contiguous(memory_format=torch.channels_last), mixed


def resized_crop(images: torch.Tensor, least: float, rng: torch.Generator) -> torch.Tensor:
    """A random part of each image (N, 3, H, W), enlarged to H x W (Szegedy et al. 2015, section 6).

    Its share of the area is uniform in [least, 1], the logarithm of its width over its height in that of [3/4, 4/3],
    its place anywhere inside. A side that would be longer than the image's is cut to it. Bilinear.
    """
    n, _, height, width = images.shape
    area, ratio, x, y = torch.rand(4, n, generator=rng)
    area = least + (1 - least) * area
    stretch = ((2 * ratio - 1) * math.log(4 / 3) / 2).exp()  # the square root of width over height
    to_sides = (height / width) ** 0.5
    w, h = ((area.sqrt() * part).clamp(max=1) for part in (stretch * to_sides, 1 / (stretch * to_sides)))
    theta = torch.zeros(n, 2, 3)  # in coordinates from -1 to 1
    theta[:, 0, 0], theta[:, 0, 2] = w, (1 - w) * (2 * x - 1)
    theta[:, 1, 1], theta[:, 1, 2] = h, (1 - h) * (2 * y - 1)
    grid = F.affine_grid(theta, [n, 1, height, width], align_corners=False).to(images.device, images.dtype)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def crop_and_flip(images: torch.Tensor, padding: int, mirror: bool, rng: torch.Generator) -> torch.Tensor:
    """Each image (N, 3, H, W) shifted by up to `padding` pixels (mirrored border); with `mirror`, flipped with p = 0.5.

    Draws the same numbers with and without `mirror`.
    """
    n, _, height, width = images.shape
    dy, dx = (torch.randint(0, 2 * padding + 1, (n, 1), generator=rng) for _ in range(2))
    flip = (torch.rand(n, 1, generator=rng) < 0.5) & mirror
    rows = dy + torch.arange(height)
    columns = dx + torch.where(flip, torch.arange(width).flip(0), torch.arange(width))
    padded = F.pad(images, (padding,) * 4, mode="reflect").permute(0, 2, 3, 1)
    index = torch.arange(n)[:, None, None].to(images.device)
    return padded[index, rows.to(images.device)[:, :, None], columns.to(images.device)[:, None, :]].permute(0, 3, 1, 2)


def padded_crop(images: torch.Tensor, padding: int, mirror: bool, rng: torch.Generator) -> torch.Tensor:
    """As `crop_and_flip`, by the same numbers, with zeros coming in."""
    height, width = images.shape[-2:]
    wide = crop_and_flip(F.pad(images, (padding,) * 4), padding, mirror, rng)
    return wide[:, :, padding : padding + height, padding : padding + width]


def cutout(images: torch.Tensor, side: int, rng: torch.Generator) -> torch.Tensor:
    """A square of `side` pixels set to 0 (the mean), centred anywhere (DeVries & Taylor 2017)."""
    n, _, height, width = images.shape
    cy = torch.randint(0, height, (n, 1), generator=rng)
    cx = torch.randint(0, width, (n, 1), generator=rng)
    in_rows = (torch.arange(height) >= cy - side // 2) & (torch.arange(height) < cy + (side + 1) // 2)
    in_columns = (torch.arange(width) >= cx - side // 2) & (torch.arange(width) < cx + (side + 1) // 2)
    hole = in_rows[:, None, :, None] & in_columns[:, None, None, :]
    return images.masked_fill(hole.to(images.device), 0.0)


def mixup(
    images: torch.Tensor, labels: torch.Tensor, alpha: float, rng: torch.Generator
) -> tuple[torch.Tensor, MixedLabels]:
    """x = l x_i + (1 - l) x_j with l ~ Beta(alpha, alpha), one l a batch (Zhang et al. 2018)."""
    share, other = _beta(alpha, rng), torch.randperm(len(images), generator=rng).to(images.device)
    return share * images + (1 - share) * images[other], (labels, labels[other], share)


def cutmix(
    images: torch.Tensor, labels: torch.Tensor, alpha: float, rng: torch.Generator
) -> tuple[torch.Tensor, MixedLabels]:
    """A rectangle of area 1 - l taken from another image, l ~ Beta(alpha, alpha) (Yun et al. 2019)."""
    height, width = images.shape[2:]
    area = 1 - _beta(alpha, rng)
    other = torch.randperm(len(images), generator=rng).to(images.device)
    rows, columns = rectangle(height, width, area, rng)
    mixed = images.clone()
    mixed[:, :, rows, columns] = images[other, :, rows, columns]
    cut = (rows.stop - rows.start) * (columns.stop - columns.start)
    return mixed, (labels, labels[other], 1 - cut / (height * width))


def rectangle(height: int, width: int, area: float, rng: torch.Generator) -> tuple[slice, slice]:
    """Rows and columns of a rectangle of that share of the area, centred anywhere, cut off at the border."""
    sides = []
    for size in (height, width):
        centre, half = int(torch.randint(0, size, (1,), generator=rng)), int(area**0.5 * size / 2)
        sides.append(slice(max(0, centre - half), min(size, centre + half)))
    return sides[0], sides[1]


def _beta(alpha: float, rng: torch.Generator) -> float:
    # Beta(a, a) as a ratio of gamma draws; torch's own sampler takes the global generator only.
    gammas = torch._standard_gamma(torch.full((2,), alpha, dtype=torch.float64), generator=rng)
    if gammas.max() <= torch.finfo(gammas.dtype).tiny:  # both too small for a number, so one is far below the other
        return float(torch.rand(1, generator=rng) < 0.5)
    return float(gammas[0] / gammas.sum())
