"""Figures of a network that do not depend on the order of its channels, for a classifier of networks."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ensemble.privacy.moments import Moments

_DEAD = 1e-3
_SINGULAR = 8


def statistics_features(stored: Moments, plain: Moments) -> torch.Tensor:
    """(4 L,) float64: four figures of each of L layers, of what it stores beside the same network's plain statistics.

    With stored mean mu and variance s, and m and v of unaugmented images (averages over batches), over channels: the
    mean of log(s / v), its root mean square, the mean of (mu - m)^2 / v, and that of (mu - m) / sqrt(v). Variances of
    less than a thousandth of the layer's mean v count as that.

    Raises ValueError where the layers are not the same.
    """
    if stored.layers != plain.layers:
        raise ValueError("the stored and the plain statistics are of different layers; take both of one network")
    sizes = [n for _, n in plain.layers]
    about = plain.average()
    each = zip(*(part[0].split(sizes) for part in (stored.mean, stored.var, about.mean, about.var)), strict=True)
    return torch.cat([_beside(*layer) for layer in each])


def _beside(mu: torch.Tensor, s: torch.Tensor, m: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """(4,) of one layer's (C,)."""
    least = _DEAD * v.mean()
    s, v = s.clamp_min(least), v.clamp_min(least)
    ratio, shift = (s / v).log(), (mu - m) / v.sqrt()
    return torch.stack([ratio.mean(), ratio.square().mean().sqrt(), shift.square().mean(), shift.mean()])


@torch.no_grad()
def weight_features(net: nn.Module) -> torch.Tensor:
    """(F,) float64: figures of the weights, of layers in the network's order.

    Of each norm layer that has weights: mean and standard deviation (over n, not n - 1) of weight and of bias. Of the
    classifier, which is the last linear layer or, without one, the last 1 x 1 convolution: Frobenius norm, the 8
    largest singular values (0 for those that it lacks) and the bias's norm. Of every other convolution: the logarithm
    of its Frobenius norm. A bias that is not there counts as 0.

    Raises ValueError for a network without such a classifier.
    """
    modules = list(net.modules())
    classifier = _classifier(modules)
    parts = []
    for module in modules:
        if isinstance(module, (_BatchNorm, nn.GroupNorm, nn.LayerNorm)) and module.weight is not None:
            parts += [_mean_and_deviation(module.weight), _mean_and_deviation(module.bias)]
    matrix = classifier.weight.double().flatten(1)
    singular = torch.linalg.svdvals(matrix)[:_SINGULAR]
    parts += [matrix.norm()[None], singular, matrix.new_zeros(_SINGULAR - len(singular)), _norm(classifier.bias)[None]]
    convolutions = [m for m in modules if isinstance(m, nn.Conv2d) and m is not classifier]
    parts += [_norm(m.weight).clamp_min(1e-12).log()[None] for m in convolutions]
    return torch.cat([part.cpu() for part in parts])


def _classifier(modules: list[nn.Module]) -> nn.Linear | nn.Conv2d:
    linear = [m for m in modules if isinstance(m, nn.Linear)]
    if linear:
        return linear[-1]
    pointwise = [m for m in modules if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)]
    if not pointwise:
        raise ValueError("the network has neither a linear layer nor a 1 x 1 convolution that could be its classifier")
    return pointwise[-1]


def _mean_and_deviation(values: torch.Tensor | None) -> torch.Tensor:
    if values is None:
        return torch.zeros(2, dtype=torch.float64)
    return torch.stack([values.double().mean(), values.double().std(correction=0)])


def _norm(values: torch.Tensor | None) -> torch.Tensor:
    return torch.zeros((), dtype=torch.float64) if values is None else values.double().norm()
