"""Where the channels of a layer's input are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from ensemble.machine.errors import is_out_of_memory


def is_norm(module: nn.Module) -> bool:
    """Whether a layer normalises: LayerNorm, GroupNorm, RMSNorm, InstanceNorm, what is made of them, and others' of
    such names."""
    return not isinstance(module, (_ConvNd, nn.Linear)) and _is_called_norm(module) and channels_of(module) is not None


def _is_called_norm(module: nn.Module) -> bool:
    """By its class or one that it is made of."""
    return any("norm" in made_of.__name__.lower() for made_of in type(module).__mro__)


def channels_of(module: nn.Module) -> int | None:
    """How many channels the input of a norm, a convolution or a linear layer has; None for any other module."""
    if isinstance(module, _ConvNd):
        return module.in_channels
    if isinstance(module, nn.Linear):
        return module.in_features
    if isinstance(module, nn.GroupNorm):
        return module.num_channels
    if isinstance(module, _NormBase):
        return module.num_features
    holds_others = any(True for child in module.children() for _ in child.parameters())
    if not _is_called_norm(module) or holds_others:
        return None
    shape = getattr(module, "normalized_shape", None)
    if isinstance(shape, tuple) and shape:
        return int(shape[0] if len(shape) == 3 else shape[-1])
    weight = getattr(module, "weight", None)
    return len(weight) if isinstance(weight, torch.Tensor) and weight.ndim == 1 else None


def channel_dim(module: nn.Module, shape: Sequence[int]) -> int | None:
    """1 or -1: where an input of that shape (N, ...) has its channels; None where neither fits.

    Of a norm whose class leaves it open (LayerNorm over tokens or over (N, C, H, W)) an input with as many columns
    as channels does not tell. Then the layer is tried on one that does.
    """
    channels = channels_of(module)
    if channels is None or len(shape) < 2:
        return None
    fits = [dim for dim in (1, -1) if shape[dim] == channels]
    if isinstance(module, nn.Linear):
        fits = [dim for dim in fits if dim == -1]
    elif isinstance(module, (_ConvNd, nn.GroupNorm, _NormBase)):
        fits = [dim for dim in fits if dim == 1]
    if len(getattr(module, "normalized_shape", ())) == 3:  # the whole of (C, H, W)
        fits = [dim for dim in fits if dim == 1]
    if len(fits) == 2 and len(shape) > 2:
        like = next(module.parameters(), torch.zeros(()))
        fits = [dim for dim in fits if runs_on(module, channels, dim, len(shape), like)] or [-1]
    return fits[-1] if fits else None


def runs_on(
    module: nn.Module, channels: int, dim: int, rank: int, like: torch.Tensor, others: Sequence[Any] = ()
) -> bool:
    """Whether the layer runs on an input of that rank, of `like`'s dtype and device, with its channels at `dim` alone.

    `others` are what else it is given. Its hooks do not run.
    """
    shape = [2, *(channels + 1 + i for i in range(rank - 1))]
    shape[dim] = channels
    try:
        with torch.no_grad():
            type(module).forward(module, like.new_zeros(shape), *others)
    except Exception as error:  # a layer may be anybody's
        if is_out_of_memory(error):
            raise
        return False
    return True
