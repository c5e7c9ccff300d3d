"""Operators of gradient descent on images, (N, C, H, W); each acts on every image by itself.

Source: the reference code of cnnpref (Kamitani Lab, 2018), after Yosinski et al. 2015 (clippings, blur) and Mahendran &
Vedaldi 2015 (p-norm, total variation); formulas only.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_TRUNCATE = 4.0
"""Deviations after which the Gaussian is cut off."""
_FLOOR = 1e-5
"""What a total variation's square is at least, where its exponent would divide by it."""


def unit_mean(gradient: Tensor) -> Tensor:
    """g / mean|g| of each image; zeros stay zeros. (N, ...)"""
    size = gradient.abs().flatten(1).mean(1)
    return gradient / _broadcast(torch.where(size > 0, size, 1.0), gradient)


def p_norm_gradient(x: Tensor, p: float) -> Tensor:
    """Of sum |x|^p: p |x|^(p - 1) sign(x), at 0 taken for 0."""
    return torch.where(x == 0, 0.0, p * x.abs() ** (p - 1) * x.sign())


def tv_gradient(x: Tensor, beta: float) -> Tensor:
    """Of sum (d1^2 + d2^2)^(beta / 2), d1 and d2 forward differences down and right, 0 in the last row and column.

    The sum's terms count as at least 1e-5, whatever beta: below 2 it divides by them.
    """
    down, right = torch.zeros_like(x), torch.zeros_like(x)
    down[:, :, :-1] = x[:, :, 1:] - x[:, :, :-1]
    right[:, :, :, :-1] = x[:, :, :, 1:] - x[:, :, :, :-1]
    value = (down**2 + right**2) ** (beta / 2)
    factor = value.clamp_min(_FLOOR) ** (2 * (beta / 2 - 1) / beta)
    down, right = factor * down, factor * right
    found = -down - right
    found[:, :, 1:] += down[:, :, :-1]
    found[:, :, :, 1:] += right[:, :, :, :-1]
    return beta * found


def clip_extreme(x: Tensor, percent: float) -> Tensor:
    """Values of each image within its percentiles `percent` / 2 and 100 - `percent` / 2."""
    bounds = _percentiles(x.flatten(1), percent / 2, 100 - percent / 2)
    low, high = (_broadcast(bound, x) for bound in bounds)
    return torch.minimum(torch.maximum(x, low), high)


def clip_small(x: Tensor, size: Tensor, percent: float) -> Tensor:
    """`x` with 0 in all channels of the pixels whose `size` (N, H, W) is below its percentile."""
    (bound,) = _percentiles(size.flatten(1), percent)
    return torch.where((size < _broadcast(bound, size))[:, None], 0.0, x)


def blur(x: Tensor, sigma: float, edge_repeats: bool = True) -> Tensor:
    """Each channel convolved with a Gaussian, cut off after 4 `sigma`, mirrored at the border, whose edge repeats or
    not."""
    radius = int(_TRUNCATE * sigma + 0.5)
    if radius == 0:
        return x
    place = torch.arange(-radius, radius + 1, dtype=torch.float64)
    kernel = torch.exp(-0.5 * (place / sigma) ** 2)
    kernel = (kernel / kernel.sum()).to(x)
    for dim in (2, 3):
        index = _mirrored(x.shape[dim], radius, edge_repeats).to(x.device)
        wide = x.index_select(dim, index)
        shape = [1, 1, 1, 1]
        shape[dim] = len(kernel)
        x = F.conv2d(wide, kernel.view(shape).expand(x.shape[1], -1, -1, -1), groups=x.shape[1])
    return x


def _mirrored(length: int, radius: int, edge_repeats: bool) -> Tensor:
    """Indices of -radius to length + radius - 1 in a line that is mirrored at its ends, which are repeated or not."""
    last = 2 * length - (1 if edge_repeats else 2)  # where 0 comes again, going back
    place = torch.arange(-radius, length + radius) % max(1, last + edge_repeats)
    return torch.where(place < length, place, last - place)


def _percentiles(values: Tensor, *percents: float) -> list[Tensor]:
    """Of each row, interpolated linearly: (N,) each."""
    ordered = values.sort(1).values
    found = []
    for percent in percents:
        place = percent / 100 * (values.shape[1] - 1)
        low = min(int(place), values.shape[1] - 1)
        high = min(low + 1, values.shape[1] - 1)
        found.append(ordered[:, low] + (place - low) * (ordered[:, high] - ordered[:, low]))
    return found


def _broadcast(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.ndim - 1))
