"""R_feature: the batch's statistics at each BatchNorm input against the running ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal

import torch

from ensemble.teachers.statistics import BNStatistics

Convention = Literal["relative", "paper"]


@dataclass(frozen=True)
class BNMatching:
    """Distance of the batch's BN statistics (m, v) from the running ones (mu, var), v biased, over layers l.

    paper:     sum_l a_l (|m - mu| + |v - var|)                              (Yin et al. 2020, eq. 4)
    relative:  sum_l a_l (|m - mu| / |sigma| + |v - var| / |var|) / sum_l 1   with sigma = sqrt(var)

    |.| is the l2 norm over a layer's channels. In `relative` every layer is in units of its own spread and layers
    are averaged, so that one weight serves networks of any depth and width. a_l is `first` for the layer that runs
    first, times the weight of the last matching pattern in `layers` (shell patterns of layer names; 0 leaves a
    layer out), else 1.
    """

    weight: float = 1.0
    convention: Convention = "relative"
    first: float = 1.0
    layers: Mapping[str, float] = field(default_factory=dict)
    name: str = "bn_matching"

    def layer_weights(self, statistics: BNStatistics) -> torch.Tensor:
        """a_l, (L,). Raises ValueError for a pattern that matches no layer."""
        names = [layer.name for layer in statistics.layers]
        for pattern in self.layers:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise ValueError(f"bn_matching: no BN layer matches {pattern!r}; layers: {', '.join(names)}")
        weights = torch.ones_like(statistics.mean[: len(names)])
        for i, name in enumerate(names):
            for pattern, value in self.layers.items():
                if fnmatchcase(name, pattern):
                    weights[i] = value
        weights[0] *= self.first
        return weights

    def __call__(self, moments: torch.Tensor, statistics: BNStatistics, images: int) -> torch.Tensor:
        """The unweighted loss, a scalar, of the whole batch's packed `moments` (2, C)."""
        offset, var = statistics.batch_statistics(moments, images)
        mean_gap = statistics.layer_norms(offset)
        var_gap = statistics.layer_norms(var - statistics.var)
        weights = self.layer_weights(statistics)
        if self.convention == "paper":
            return (weights * (mean_gap + var_gap)).sum()
        mean_scale = statistics.layer_norms(statistics.var.sqrt())
        var_scale = statistics.layer_norms(statistics.var)
        return (weights * (mean_gap / mean_scale + var_gap / var_scale)).mean()
