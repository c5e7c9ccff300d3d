"""What layers with statistics saw: moments that add over shards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

ROUNDING = 1e-6
"""Of a layer's spread: what differs by less is alike."""


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
    measured: bool = False
    """Whether its statistics were measured on real images; else the network keeps them itself."""


class BNStatistics:
    """The statistics of a teacher's layers, running or measured, in execution order, packed along channels.

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
        self.levels = _from_sampling(layers).to(mean)
        """(4, L): see `level`."""
        self.levels_measured = False
        """Whether they are those of real images; else they are what sampling errors are in general."""
        self._kept: dict[object, torch.Tensor] = {}

    @property
    def keys(self) -> list[str]:
        """A name for each execution of a layer: `NAME`, and from the second on `NAME#2`."""
        names = [layer.name for layer in self.layers]
        count = [names[:i].count(name) for i, name in enumerate(names)]
        return [f"{name}#{n + 1}" if n else name for name, n in zip(names, count, strict=True)]

    def calibrate(self, levels: Mapping[str, Sequence[float]]) -> None:
        """Take `levels` by `keys`, four numbers each, as those of real images; ValueError where a layer lacks them.

        Where real images do not differ (a layer that none of them wakes) the error of sampling stands in: no image
        that wakes it is then infinitely far.
        """
        if missing := [key for key in self.keys if key not in levels]:
            raise ValueError(f"levels: none for {missing[0]}; measure them again with this network")
        found = self.mean.new_tensor([list(levels[key]) for key in self.keys]).T.contiguous()
        sampling, spreads = _from_sampling(self.layers).to(found), [1, 3]
        found[spreads] = torch.where(found[spreads] < ROUNDING, sampling[spreads], found[spreads])
        self.levels = found
        self.levels_measured = True

    def level(self, images: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(L,) each: how far mean and variance of a batch of so many real images are, as `distances` counts.

        level_mean(n)^2 = r[0]^2 + r[1]^2 / n        level_var(n)^2 = r[2]^2 + r[3]^2 / n        r = levels
        """
        floor_mean, spread_mean, floor_var, spread_var = self.levels.square()
        return (floor_mean + spread_mean / images).sqrt(), (floor_var + spread_var / images).sqrt()

    def sampling_errors(self, images: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(C,) each: the part of `level` that falls with the batch, of each channel in units of sigma and of var."""
        mean, var = self.levels[[1, 3]] / images**0.5 @ self._membership
        return mean, var

    def at(self, view_size: int) -> BNStatistics:
        """What holds for views of that size."""
        return self._resized.get(view_size, self)

    def add(self, view_size: int, statistics: BNStatistics) -> None:
        """From now on `statistics` hold for views of that size: the same layers, only their positions differ."""
        statistics._membership = self._membership  # large for deep networks, and the same
        if self.levels_measured:  # sampling errors grow as positions become fewer
            ours, theirs = (_from_sampling(layers)[[1, 3]].to(self.mean) for layers in (self.layers, statistics.layers))
            statistics.levels = self.levels.clone()
            statistics.levels[[1, 3]] *= theirs / ours
            statistics.levels_measured = True
        self._resized[view_size] = statistics

    def units(self, images: int) -> torch.Tensor:
        """(2, C): in these, packed moments of a batch of so many images are of order 1.

        A channel that was nearly dead counts with a hundredth of its layer's variance: images may wake it.
        """

        def make() -> torch.Tensor:
            sizes = self._membership.sum(1)
            typical = self._membership.T @ ((self._membership @ self.var) / sizes)
            count, var = self.positions * images, torch.maximum(self.var, typical / 100) + 1e-12
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


def _from_sampling(layers: Sequence[BNLayer]) -> torch.Tensor:
    """`levels` of layers of which nobody measured any: the errors of n p independent values a channel.

    The mean of m values is off by sigma / sqrt(m), the variance of Gaussian ones by var sqrt(2 / m). Neighbouring
    positions are alike: of P positions p = P / (4 + P / 12) count as independent, from 1 of 4 to 12 of many, which
    describes the project's CIFAR networks (docs/diversity.md). What sampling cannot know stays 0: how far the running
    statistics themselves are from those of all images.
    """
    positions = torch.tensor([layer.positions for layer in layers], dtype=torch.float64)
    independent = positions / (4 + positions / 12)
    zero = torch.zeros_like(positions)
    return torch.stack([zero, independent.rsqrt(), zero, (2 / independent).sqrt()])
