"""Features in which plain, pasted, blended and erased images differ: sharp lines, flat squares, contrast."""

from __future__ import annotations

import torch
import torch.nn.functional as F

_TO_LUMA_AND_CHROMA = ((0.299, 0.587, 0.114), (-0.169, -0.331, 0.5), (0.5, -0.419, -0.081))
_LENGTHS = (4, 8, 14)
"""Of a line, in 32nds of the image's side."""
_TOP = (0.0, 0.01, 0.03, 0.1)
"""Places in the falling order of a map's values."""
_FLAT = (4, 6, 9)
"""Sides of squares, in 32nds."""
_SMALLEST = 16
_LEAST = 0.01
"""A difference of 1 in 100 counts as none: below it are noise and rounding."""


def mix_features(images: torch.Tensor) -> torch.Tensor:
    """(N, 207) of images (N, 3, H, W), RGB in [0, 1]. Of luma and two chromas each, with d = log of the difference of
    neighbours:

    - how much sharper lines are than those beside them (`_lines`): the largest values and the mean, along rows and
      along columns, the larger of the two first. Where an image is pasted into another, all pixels of a line differ.
    - the least mean of d in squares of three sizes: what was erased is flat.
    - mean and deviation of d in both directions, the log deviation of the values, and their mean: blends have less
      contrast.

    Raises ValueError for images of fewer than 16 pixels a side.
    """
    size = min(images.shape[-2:])
    if size < _SMALLEST:
        raise ValueError(f"images have {size} pixels a side; lines are looked for in {_SMALLEST} at least")
    channels = torch.einsum("kc,nchw->nkhw", images.new_tensor(_TO_LUMA_AND_CHROMA), images)
    across, down = (_log_steps(part) for part in (channels, channels.transpose(2, 3)))
    one, other = _lines(across, size), _lines(down, size)
    lines = torch.cat([torch.maximum(one, other), torch.minimum(one, other)], 1)
    both = (across[..., :-1, :] + down.transpose(2, 3)[..., :-1]) / 2
    flat = torch.cat([F.avg_pool2d(both, side * size // 32, 1).flatten(2).amin(2) for side in _FLAT], 1)
    steps = [part.flatten(2) for part in (across, down)]
    spread = (channels.flatten(2).std(2) + _LEAST).log()
    contrast = [figure for part in steps for figure in (part.mean(2), part.std(2))]
    return torch.cat([lines, flat, *contrast, spread, channels.mean((2, 3))], 1)


def _log_steps(channels: torch.Tensor) -> torch.Tensor:
    """(N, 3, H, W - 1): log |x_{i+1} - x_i|."""
    return (channels.diff(dim=3).abs() + _LEAST).log()


def _lines(log_steps: torch.Tensor, size: int) -> torch.Tensor:
    """(N, 90): how much sharper lines between columns are than both lines one, or two, pixels beside them.

    A line's value is the mean of its log differences, so that one that is sharp in all its pixels counts more than one
    that is very sharp in some.
    """
    made = []
    for length in _LENGTHS:
        line = F.avg_pool2d(log_steps, (length * size // 32, 1), stride=1)
        for gap in (1, 2):
            beside = torch.maximum(line[..., : -2 * gap], line[..., 2 * gap :])
            excess = (line[..., gap:-gap] - beside).flatten(2)
            places = [int(share * excess.shape[2]) for share in _TOP]
            made += [excess.topk(places[-1] + 1, dim=2).values[..., places].flatten(1), excess.mean(2)]
    return torch.cat(made, 1)
