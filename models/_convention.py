"""What goes into a network and what comes out of it, as its card says: one place for all that run networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch

from models._card import ModelCard

_LUMINANCE = (0.299, 0.587, 0.114)
"""Shares of red, green and blue in what a network of one channel sees (ITU-R BT.601)."""
_LOGITS_KEYS = ("logits", "out")
_ENOUGH = 8
"""Different values that do not lie in 0..1 by chance."""


def network_input(rgb: torch.Tensor, card: ModelCard) -> torch.Tensor:
    """(N, C, H, W) as the network takes it, (x - mean) / std, of RGB in [0, 1] (N, 3, H, W).

    x is RGB, or where the card has one channel, the luminance 0.299 R + 0.587 G + 0.114 B.
    """
    if len(card.mean) == 1:
        rgb = (rgb * _per_channel(_LUMINANCE, rgb.dtype, rgb.device)).sum(1, keepdim=True)
    mean, std = (_per_channel(tuple(values), rgb.dtype, rgb.device) for values in (card.mean, card.std))
    return (rgb - mean) / std


def _per_channel(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """(C, 1, 1), made once: on a GPU each making is a copy from the host. The compiler makes a constant of it."""
    make = _made if torch.compiler.is_compiling() else _kept
    return make(values, dtype, device)


def _made(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype, device=device)[:, None, None]


@lru_cache(maxsize=64)
def _kept(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    with torch.inference_mode(False):  # what is made inside that mode cannot take part in a gradient later
        return _made(values, dtype, device)


def network_logits(output: Any, images: int) -> torch.Tensor:
    """The logits (`images`, classes) among what a network returns.

    The first tensor of a tuple or list; `logits` or `out` of a mapping, else its first tensor. One logit z, of a
    network that ends in a sigmoid, is two classes: (-z/2, z/2), whose softmax is (1 - sigmoid(z), sigmoid(z)). A vector
    of several numbers for a single image is its logits, squeezed.

    Raises ValueError where there is no tensor of one or two dimensions.
    """
    found = first_tensor(output, _LOGITS_KEYS)
    if found is None:
        raise ValueError(f"the network returns {type(output).__name__}, in which there is no tensor; return logits")
    if found.ndim == 0 and images == 1:
        found = found[None]
    if found.ndim == 1:
        found = found[None] if images == 1 else found[:, None]
    if found.ndim != 2:
        raise ValueError(f"the network returns a tensor of shape {tuple(found.shape)}; return logits (N, classes)")
    return torch.cat([-found / 2, found / 2], dim=1) if found.shape[1] == 1 else found


def card_logits(output: Any, images: int, card: ModelCard) -> torch.Tensor:
    """`network_logits` of the card's classes; of a network that ends in probabilities their logarithms.

    Raises ValueError where they are not of so many classes.
    """
    logits = network_logits(output, images)
    if tuple(logits.shape) != (images, card.num_classes):
        raise ValueError(
            f"{card.name}: its card says {card.num_classes} classes, its output for {images} images has shape "
            f"{tuple(logits.shape)}"
        )
    # no branch, for which a GPU would be awaited
    return torch.where(are_probabilities(logits), log_of(logits), logits)


def are_probabilities(logits: torch.Tensor) -> torch.Tensor:
    """Whether every row is not negative and sums to 1 within rounding: bool, on the logits' device.

    Of probabilities that are stored in fewer bits each errs by its own share, so their sum does, whatever their number.
    A first column of zeros is that of one logit.
    """
    values = logits.detach()
    rounding = 4 * torch.finfo(logits.dtype).eps + logits.shape[1] * torch.finfo(torch.float32).eps
    sums = values.sum(1, dtype=torch.promote_types(logits.dtype, torch.float32))
    are = (values >= 0).all() & ((sums - 1).abs() <= rounding).all()
    return are & (values[:, 0] != 0).any() if logits.shape[1] == 2 else are


def are_of_sigmoid(logits: torch.Tensor) -> bool:
    """Whether a sigmoid may say these: a probability a class, or one that `network_logits` took for a logit."""
    if logits.shape[1] == 2 and torch.equal(logits[:, 0], -logits[:, 1]):
        return bool(((logits[:, 1] >= 0) & (logits[:, 1] <= 0.5)).all())
    few = logits.unique().numel() < _ENOUGH  # which may lie there by chance
    return not few and bool(((logits > 0) & (logits <= 1)).all()) and not bool(are_probabilities(logits))


def log_of(probabilities: torch.Tensor) -> torch.Tensor:
    """The logarithm, of 0 that of the smallest normal number."""
    return probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log()


def first_tensor(value: object, keys: Sequence[str] = ()) -> torch.Tensor | None:
    """The value, or the first tensor among what it holds, in mappings that of one of these keys; None for none."""
    if isinstance(value, torch.Tensor):
        return value
    if isinstance(value, Mapping):
        value = [*(value[key] for key in keys if key in value), *value.values()]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return next((found for part in value if (found := first_tensor(part, keys)) is not None), None)
    return None
