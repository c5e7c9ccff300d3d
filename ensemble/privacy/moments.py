"""Means and variances at the inputs of BatchNorm layers: what a network stores, and what batches give."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ensemble.teachers.copying import copied
from ensemble.teachers.observing import has_statistics, record_execution
from models import ModelCard, network_input


@dataclass(frozen=True)
class Moments:
    """`mean` and `var` (B, C) of B batches, float64, all layers' channels packed in the network's order; of what a
    network stores, B is 1. `layers` are names and numbers of channels; `var` is unbiased, as PyTorch stores it."""

    layers: tuple[tuple[str, int], ...]
    mean: torch.Tensor
    var: torch.Tensor
    momentum: float = 0.1
    """Of the network's running averages, the largest of its layers; 0 where they are cumulative."""

    def __len__(self) -> int:
        return len(self.mean)

    def __getitem__(self, index: Any) -> Moments:
        return replace(self, mean=self.mean[index], var=self.var[index])

    def average(self) -> Moments:
        """The mean over batches: what a cumulative average, or a very long running one, stores."""
        return replace(self, mean=self.mean.mean(0, keepdim=True), var=self.var.mean(0, keepdim=True))

    def constant(self) -> set[str]:
        """The layers whose inputs are the same in all batches, at all places: nothing can be read there."""
        return {name for (name, _), var in zip(self.layers, self.of_layers(self.var).amax(0), strict=True) if not var}

    def without(self, names: set[str]) -> Moments:
        """The other layers alone."""
        kept = [(name, n) for name, n in self.layers if name not in names]
        where = torch.cat([torch.full((n,), name not in names) for name, n in self.layers])
        return replace(self, layers=tuple(kept), mean=self.mean[:, where], var=self.var[:, where])

    def of_layers(self, per_channel: torch.Tensor) -> torch.Tensor:
        """(..., L): the mean over each layer's channels of (..., C)."""
        return torch.stack([part.mean(-1) for part in per_channel.split([n for _, n in self.layers], -1)], -1)


def bn_layers(net: nn.Module) -> dict[str, _BatchNorm]:
    """Layers that keep running statistics, by name."""
    return {name: m for name, m in net.named_modules() if isinstance(m, _BatchNorm) and has_statistics(m)}


@torch.no_grad()
def running_layers(net: nn.Module, card: ModelCard) -> list[str]:
    """Those of `bn_layers` that run when an image is read, in their order."""
    layers = bn_layers(net)
    with record_execution(layers) as calls:
        net.eval()(network_input(torch.full((2, 3, card.input_size, card.input_size), 0.5), card))
    ran = {name for name, _ in calls}
    return [name for name in layers if name in ran]


def stored(net: nn.Module, layers: Iterable[str]) -> Moments:
    """What the layers of these names store."""
    found = bn_layers(net)
    means, variances = [], []
    names = tuple(layers)
    for name in names:
        mean, var = found[name].running_mean, found[name].running_var
        assert mean is not None and var is not None
        means.append(mean.detach().double().cpu())
        variances.append(var.detach().double().cpu())
    sizes = tuple((name, len(mean)) for name, mean in zip(names, means, strict=True))
    return Moments(sizes, torch.cat(means)[None], torch.cat(variances)[None], _momentum(net))


def _momentum(net: nn.Module) -> float:
    """The largest of its layers; 0 where all are cumulative."""
    return max((layer.momentum or 0.0 for layer in bn_layers(net).values()), default=0.0)


def with_stored(net: nn.Module, moments: Moments) -> nn.Module:
    """A copy of the network that stores these moments, B = 1."""
    made = copied(net).eval()
    found = bn_layers(made)
    sizes = [n for _, n in moments.layers]
    for (name, _), mean, var in zip(
        moments.layers, moments.mean[0].split(sizes), moments.var[0].split(sizes), strict=True
    ):
        layer = found[name]
        assert layer.running_mean is not None and layer.running_var is not None
        layer.running_mean.copy_(mean)
        layer.running_var.copy_(var)
    return made


@torch.no_grad()
def moments_of(net: nn.Module, batches: Iterable[torch.Tensor]) -> Moments:
    """The moments of each batch, (n, C, H, W) as the network takes it, n > 1, at every layer that runs.

    As in training, each layer normalises by the batch itself, so that deeper layers see what they saw then; all else is
    in eval mode. A layer that runs several times counts with its last. The network is left as it was.

    Raises ValueError where no layer with running statistics runs, or there is no batch.
    """
    momentum = _momentum(net)
    net = copied(net).eval()
    layers = bn_layers(net)
    for layer in layers.values():
        layer.momentum = 1.0  # what is stored is the last batch's
        layer.num_batches_tracked = torch.zeros((), dtype=torch.long)
        layer.train()
    rows: list[Moments] = []
    for batch in batches:
        net(batch)
        ran = [name for name, layer in layers.items() if int(layer.num_batches_tracked or 0)]
        if ran:
            rows.append(stored(net, ran))
    if not rows:
        raise ValueError("no BatchNorm layer with running statistics ran, or there were fewer images than one batch")
    mean, var = (torch.cat([getattr(row, name) for row in rows]) for name in ("mean", "var"))
    return Moments(rows[0].layers, mean, var, momentum)
