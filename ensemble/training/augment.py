"""Training augmentations on a batch of normalised images; labels become (first, second, first's share)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

MixedLabels = tuple[torch.Tensor, torch.Tensor, float]


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
    side = (1 - _beta(alpha, rng)) ** 0.5
    other = torch.randperm(len(images), generator=rng).to(images.device)
    cy, cx = (int(torch.randint(0, size, (1,), generator=rng)) for size in (height, width))
    top, bottom = max(0, cy - int(side * height / 2)), min(height, cy + int(side * height / 2))
    left, right = max(0, cx - int(side * width / 2)), min(width, cx + int(side * width / 2))
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = images[other, :, top:bottom, left:right]
    return mixed, (labels, labels[other], 1 - (bottom - top) * (right - left) / (height * width))


def _beta(alpha: float, rng: torch.Generator) -> float:
    # Beta(a, a) as a ratio of gamma draws; torch's own sampler takes the global generator only.
    gammas = torch._standard_gamma(torch.full((2,), alpha, dtype=torch.float64), generator=rng)
    return float(gammas[0] / gammas.sum())
