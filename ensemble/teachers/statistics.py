"""What layers with running statistics saw: moments that add over shards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class BNLayer:
    """One execution of a layer: its name, its channels in the packed moments, its positions.

    `positions` is height x width of the layer's input, or its number of tokens: a batch of n images gives
    n * positions values a channel.
    """

    name: str
    start: int
    channels: int
    positions: int


class BNStatistics:
    """The running statistics of a teacher's BN layers, in execution order, packed along channels.

    `mean`, `var`: (C,) float64, C = sum of all layers' channels. Packed moments of a shard are (2, C): the sums of
    (x - mean) and of (x - mean)^2 over the shard's values, so the moments of shards add to those of the batch.
    The shift by the running mean, which every rank knows, keeps the variance from cancelling in fp32.
    """

    def __init__(self, layers: tuple[BNLayer, ...], mean: torch.Tensor, var: torch.Tensor) -> None:
        self._resized: dict[int, BNStatistics] = {}
        self.layers = layers
        self.mean = mean
        self.var = var
        self.positions = torch.cat([mean.new_full((layer.channels,), layer.positions) for layer in layers])
        sizes = torch.tensor([layer.channels for layer in layers])
        self._membership = torch.zeros(len(layers), len(mean), dtype=mean.dtype)
        self._membership[torch.repeat_interleave(sizes), torch.arange(len(mean))] = 1
        self._membership = self._membership.to(mean.device)
        self.mean_scale, self.var_scale = self.layer_norms(var.sqrt()), self.layer_norms(var)
        """(L,) each layer's spread: the l2 norms of its running standard deviations and variances."""
        self._kept: dict[object, torch.Tensor] = {}

    def at(self, view_size: int) -> BNStatistics:
        """What holds for views of that size."""
        return self._resized.get(view_size, self)

    def add(self, view_size: int, statistics: BNStatistics) -> None:
        """From now on `statistics` hold for views of that size: the same layers, only their positions differ."""
        statistics._membership = self._membership  # large for deep networks, and the same
        self._resized[view_size] = statistics

    def units(self, images: int) -> torch.Tensor:
        """(2, C): in these, packed moments of a batch of so many images are of order 1."""

        def make() -> torch.Tensor:
            count, var = self.positions * images, self.var + 1e-12
            return torch.stack([count * var.sqrt(), count * var])

        return self.once(("units", images), make)

    def once(self, key: object, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        """What `make` returned when it was first asked for under this key: a term's constants live with the teacher."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def distances(self, moments: torch.Tensor, images: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Per layer, (L,) each: how far a batch's mean and variance are off, in units of the layer's spread."""
        offset, var = self.batch_statistics(moments, images)
        return self.layer_norms(offset) / self.mean_scale, self.layer_norms(var - self.var) / self.var_scale

    def batch_statistics(self, moments: torch.Tensor, images: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean offset (C,) from the running mean and biased variance (C,) of a batch with those `moments` (2, C)."""
        count = self.positions * images
        offset = moments[0] / count
        return offset, moments[1] / count - offset.square()

    def layer_norms(self, per_channel: torch.Tensor) -> torch.Tensor:
        """The l2 norm over each layer's channels of a (C,) tensor: (L,), with gradient 0 where the norm is 0."""
        tiny = torch.finfo(per_channel.dtype).tiny
        return (self._membership @ per_channel.square()).clamp_min(tiny).sqrt()
