"""Seams along rows and columns, as CutMix leaves them: a score of images, and its control."""

from __future__ import annotations

import torch
import torch.nn.functional as F

_MARGIN = 2
_LENGTH = 8
_QUANTILE = 0.99
_ANGLE = 15.0
"""Degrees: far from both axes, and small enough that the square that stays whole is large."""


def seam_scores(images: torch.Tensor) -> torch.Tensor:
    """(N,): how much sharper the sharpest straight lines between pixels are than lines beside them.

    Of the luma of images (N, 3, H, W): s_i = |x_{i+1} - x_i| less the mean of the two differences beside it, at each of
    the lines between columns (and, turned, rows), averaged over windows of 8 pixels along the line; less the same two
    lines further away; divided by the image's mean absolute deviation. What repeats every 8 or 16 lines, as a JPEG's
    blocks do, is subtracted: of the lines of one phase, where there are two at least, the smallest median over windows,
    where that is positive. The score is the 99th percentile over lines and windows in both directions.
    """
    luma = (images.double() * images.new_tensor([0.299, 0.587, 0.114], dtype=torch.float64)[:, None, None]).sum(1)
    spread = (luma - luma.mean((1, 2), keepdim=True)).abs().mean((1, 2)).clamp_min(1e-6)
    both = [_lines(luma), _lines(luma.transpose(1, 2))]
    return torch.cat([part.flatten(1) for part in both], 1).quantile(_QUANTILE, dim=1) / spread


def _lines(luma: torch.Tensor) -> torch.Tensor:
    """(N, windows, lines): how sharp each line between columns is, beside lines two pixels away."""
    step = luma.diff(dim=2).abs()
    sharp = F.avg_pool2d(step[:, None], (_LENGTH, 1), stride=1)[:, 0]
    beside = (sharp[:, :, :-4] + sharp[:, :, 4:]) / 2
    excess = sharp[:, :, 2:-2] - beside
    for period in (8, 16):
        excess = excess - _periodic(excess, period)
    return excess[:, :, _MARGIN:-_MARGIN] if excess.shape[2] > 4 * _MARGIN else excess


def _periodic(excess: torch.Tensor, period: int) -> torch.Tensor:
    """What lines of each phase have in common, at its place: their median over windows, the least of the lines."""
    made = torch.zeros_like(excess)
    typical = excess.median(dim=1).values
    for phase in range(period):
        lines = typical[:, phase::period]
        if lines.shape[1] > 1:
            made[:, :, phase::period] = lines.amin(1).clamp_min(0)[:, None, None]
    return made


def turned_control(images: torch.Tensor) -> torch.Tensor:
    """(N,): the score of images turned forth and back less that of images turned twice as far.

    Both are interpolated twice, so equally soft; only the first has its lines where they were. All squares are the
    middle that no turn empties.
    """
    return seam_scores(_turn(_turn(images, _ANGLE), -_ANGLE)) - seam_scores(_turn(_turn(images, _ANGLE), _ANGLE))


def _turn(images: torch.Tensor, degrees: float) -> torch.Tensor:
    angle = torch.tensor(degrees * torch.pi / 180)
    cos, sin = float(angle.cos()), float(angle.sin())
    theta = torch.tensor([[cos, -sin, 0.0], [sin, cos, 0.0]]).expand(len(images), 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="reflection", align_corners=False)
