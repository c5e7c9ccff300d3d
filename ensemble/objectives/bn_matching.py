"""R_feature: the batch's statistics at each BatchNorm input, or other measured input, against those of real images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import ClassVar, Literal

import torch
from pydantic import NonNegativeFloat

from ensemble.machine.rng import generator
from ensemble.objectives.terms import Slice, TeacherTerm, Totals
from ensemble.teachers.statistics import BNStatistics
from ensemble.teachers.taps import Tap
from ensemble.teachers.teacher import Observation, Profile

_LEAST_VARIANCE = 0.05
"""Of the running variance: what is drawn is positive."""


@dataclass(frozen=True)
class BNMatching(TeacherTerm, kind="bn_matching"):
    """Distance of the batch's statistics (m, v) from the layer's own (mu, var), v biased, over layers l.

    paper:     sum_l a_l (|m - mu| + |v - var|)                              (Yin et al. 2020, eq. 4)
    relative:  sum_l a_l (|m - mu| / |sigma| + |v - var| / |var|) / sum_l 1   with sigma = sqrt(var)
    calibrated: sum_l a_l (h(|m - mu| / M_l) + h(|v - var| / V_l)) / sum_l 2  with h(r) = max(0, r - slack)

    |.| is the l2 norm over a layer's channels. In `relative` every layer is in units of its own spread and layers
    are averaged, so that one weight serves networks of any depth and width. In `calibrated` the units M_l and V_l are
    how far a batch of as many real images is (`BNStatistics.level`), and nothing pulls below `slack` times that: to be
    nearer than real images are costs variety. a_l is `first` for the layer that runs
    first, times the weight of the last matching pattern (shell patterns of layer names; 0 leaves a layer out), else 1.
    Patterns are those in `layers`, for all teachers, then those of the teacher's own entry. A layer's own statistics
    are the running ones, or those that a teacher's `statistics` file has of a layer that keeps none.

    With `drawn`, mu and var are replaced, batch by batch, by N(mu, sigma^2 s^2) and var N(1, r^2), each channel by
    itself, where s and r are a layer's sampling errors in a batch of that size (`BNStatistics.sampling_errors`).

    With `emphasis`, each batch and teacher stress other layers: a_l is multiplied by exp(N(0, emphasis^2)), scaled so
    that these factors have mean 1. After the layerwise enhancement of DSG (Zhang et al., CVPR 2021); departure: by
    batch, not by image, as the statistics are a batch's.
    """

    matches_layers: ClassVar[bool] = True
    weight: float = 1.0
    convention: Literal["calibrated", "relative", "paper"] = "calibrated"
    slack: NonNegativeFloat = 0.5
    """Of `calibrated`: the distance, in units of a real batch's, below which there is nothing to pull."""
    first: float = 1.0
    drawn: bool = False
    """Match statistics drawn for each batch, those of a random batch of real images, instead of mu and var for all."""
    emphasis: NonNegativeFloat = 0.0
    """How much the layers' weights vary from batch to batch: the deviation of their logarithm."""
    layers: dict[str, NonNegativeFloat] = field(default_factory=dict)
    """Factors by shell patterns of whole layer names (`layer1.*.bn1`, `*`)."""

    def rules(self) -> Iterator[str]:
        if self.convention != "calibrated" and self.slack != type(self).slack:
            yield f"slack: it is for `convention: calibrated`, and it is `{self.convention}`"

    def describe(self) -> str:
        factors = "".join(f", {pattern} x {factor:g}" for pattern, factor in self.layers.items())
        slack = f", slack {self.slack:g}" if self.convention == "calibrated" else ""
        slack += ", drawn" if self.drawn else ""
        slack += f", emphasis {self.emphasis:g}" if self.emphasis else ""
        return f"{self.name}[{self.convention}{slack}, first x {self.first:g}{factors}]"

    @property
    def uses_levels(self) -> bool:
        return self.convention == "calibrated" or self.drawn

    def needs(self, teacher: Profile) -> Sequence[Tap]:
        if teacher.statistics is None:
            raise ValueError(
                f"teachers: {teacher.name} has no BatchNorm layers with statistics, but bn_matching needs them; drop "
                "the teacher or the objective, or name as the teacher's `statistics` a file of invert.py calibrate"
            )
        _check(teacher.layers, teacher)
        return ()

    def check(self, teachers: Sequence[Profile]) -> None:
        super().check(teachers)
        for pattern in self.layers:
            if not any(_matches(pattern, teacher) for teacher in teachers):
                _check({pattern: 1.0}, *teachers)

    def sums(self, seen: Observation, batch: Slice) -> torch.Tensor:
        """Packed moments (2, C), in units of each channel's spread and the batch's number of values."""
        return seen.moments.double() / batch.statistics.units(batch.images)

    def loss(self, total: Totals, t: int) -> torch.Tensor:
        batch = total.batch(t)
        statistics = batch.statistics
        patterns = (*self.layers.items(), *batch.teacher.layers.items())
        weights = statistics.once(
            ("layer weights", self.first, patterns), lambda: _layer_weights(statistics, self.first, patterns)
        )
        if self.emphasis:
            weights = weights * self._stress(batch)
        offset, var = statistics.batch_statistics(total[t] * statistics.units(batch.images), batch.images)
        wanted_offset, wanted_var = self._wanted(batch)
        mean_gap = statistics.layer_norms(offset - wanted_offset)
        var_gap = statistics.layer_norms(var - wanted_var)
        if self.convention == "paper":
            return (weights * (mean_gap + var_gap)).sum()
        mean_gap, var_gap = mean_gap / statistics.mean_scale, var_gap / statistics.var_scale
        if self.convention == "calibrated":
            mean_level, var_level = statistics.level(batch.images)
            mean_gap, var_gap = (
                (gap / level - self.slack).clamp_min(0) / 2
                for gap, level in ((mean_gap, mean_level), (var_gap, var_level))
            )
        return (weights * (mean_gap + var_gap)).mean()

    def _stress(self, batch: Slice) -> torch.Tensor:
        """The factors of this batch's layers, (L,), mean 1."""

        def drawn() -> torch.Tensor:
            rng = generator(batch.seed, "emphasis", batch.teacher.name)
            normal = torch.randn(len(batch.statistics.layers), generator=rng, dtype=torch.float64)
            factors = (self.emphasis * normal).exp()
            return (factors / factors.mean()).to(batch.statistics.var)

        return batch.once(("emphasis", self.emphasis, batch.teacher.name), drawn)

    def _wanted(self, batch: Slice) -> tuple[torch.Tensor | float, torch.Tensor]:
        """The offset from mu and the variance (C,) that this batch should have."""
        statistics = batch.statistics
        if not self.drawn:
            return 0.0, statistics.var

        def drawn() -> torch.Tensor:
            rng = generator(batch.seed, "drawn", batch.teacher.name)
            normal = torch.randn(2, len(statistics.var), generator=rng, dtype=torch.float64).to(statistics.var)
            mean_spread, var_spread = statistics.sampling_errors(batch.images)
            factor = (1 + var_spread * normal[1]).clamp_min(_LEAST_VARIANCE)
            return torch.stack([mean_spread * statistics.var.sqrt() * normal[0], factor * statistics.var])

        offset, var = batch.once(("drawn", batch.teacher.name, batch.view_size), drawn)
        return offset, var


def _layer_weights(statistics: BNStatistics, first: float, patterns: tuple[tuple[str, float], ...]) -> torch.Tensor:
    """a_l, (L,)."""
    names = [layer.name for layer in statistics.layers]
    weights = [1.0] * len(names)
    for i, name in enumerate(names):
        for pattern, value in patterns:
            if fnmatchcase(name, pattern):
                weights[i] = value
    weights[0] *= first
    return statistics.mean.new_tensor(weights)


def _matches(pattern: str, teacher: Profile) -> bool:
    layers = () if teacher.statistics is None else teacher.statistics.layers
    return any(fnmatchcase(layer.name, pattern) for layer in layers)


def _check(patterns: Mapping[str, float], *teachers: Profile) -> None:
    for pattern in patterns:
        if not any(_matches(pattern, teacher) for teacher in teachers):
            known = [
                f"{teacher.name}: {', '.join(layer.name for layer in teacher.statistics.layers)}"
                for teacher in teachers
                if teacher.statistics is not None
            ]
            raise ValueError(
                f"bn_matching: no layer with statistics matches {pattern!r}; layers of {'; of '.join(known)}"
            )
