"""What real images are like to a network: statistics of layers that keep none, and how far batches are from them.

That distance, the level, is what there is nothing below to match.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import chain
from typing import Any
from warnings import warn_explicit

import torch
from torch import nn

from ensemble.teachers.channels import channel_dim, channels_of, is_norm
from ensemble.teachers.measured import Levels, MeasuredLayer, Measurement, identity_of
from ensemble.teachers.observing import has_statistics, shown
from ensemble.teachers.statistics import ROUNDING, BNStatistics
from ensemble.teachers.teacher import Teacher
from models import ModelCard

_PILOTS = 8
"""Images that say roughly where a layer's values lie, so that its variance does not cancel in fp32."""


@torch.no_grad()
def measure_levels(teacher: Teacher, images: Iterable[torch.Tensor]) -> dict[str, Levels]:
    """Four numbers a layer (`BNStatistics.calibrate`), in units of its spread, from parts (n, 3, H, W) of real images.

    With m_i the mean over image i's positions and q_i that of the square, both of x - mu:

        mean of a batch      (1/n) sum m_i,              in expectation at  |E m|^2 + tr Cov(m) / n          (exactly)
        variance of a batch  (1/n) sum q_i - (mean)^2,   in expectation at  |v - var|^2 + tr Cov(q - 2 m E m) / n

    from the running ones (squared distances). The second is to first order in 1 / n where v, the variance of all
    images, is near var: -2 (v - var) Var(m) / n is left out, so where it is far the level is too high. So the four
    numbers are |E m|, sqrt(tr Cov(m)), |v - var| and sqrt(tr Cov(q - 2 m E m)): two distances that no batch size takes
    away, estimated without the bias of as few images, and two that fall as 1 / sqrt(n).

    ValueError for a network without BN layers, or fewer than two images.
    """
    statistics = teacher.statistics
    if statistics is None:
        raise ValueError(f"{teacher.name} has no BatchNorm layers with statistics, so there are no levels to measure")
    return _levels(statistics, _look(teacher, statistics, images), statistics)


@torch.no_grad()
def measure(
    net: nn.Module,
    card: ModelCard,
    images: Iterable[torch.Tensor],
    *,
    layers: Sequence[str] = (),
    model: str = "",
    data: str = "",
    device: torch.device | str = "cpu",
) -> Measurement:
    """The measurement of a network by parts (n, 3, H, W) of real images, RGB in [0, 1], of its input size.

    Levels of all layers that keep running statistics. Besides, mean, variance and levels of the inputs of norms,
    convolutions and linear layers whose names match `layers` (shell patterns); without `layers`, of all norms of a
    network in which no layer keeps statistics:

        mu = E m        var = E q - mu^2        m, q: mean and mean square over an image's positions, E over images

    All in one pass. A layer whose input does not differ between images is left out, with a warning.

    Raises ValueError where there is nothing to measure, a pattern matches nothing, or images are fewer than two.
    """
    parts = iter(images)
    first = next(parts, torch.empty(0))
    if not len(first):
        _check_count(0)
    plain = Teacher(model or card.name, net, card, device=device)
    pilots, left_out = _pilots(plain, _chosen(plain, layers), first[:_PILOTS])
    rough = Measurement(
        model=plain.name,
        identity=identity_of(net, card),
        input_size=card.input_size,
        images=0,
        data=data,
        layers=pilots,
        levels={},
        weights=card.loaded.sha256 if card.loaded else None,
    )
    teacher = Teacher(plain.name, net, card, device=device, measured=rough)
    found = rough if teacher.statistics is None else _measured(teacher, rough, chain([first], parts))
    left_out |= {name: "its input does not differ between images" for name in pilots if name not in found.layers}
    if not found.levels:
        raise ValueError(f"{plain.name}: no layer can be measured; {shown(left_out) or 'it has no norm; name layers'}")
    if left_out:
        warn_explicit(f"{plain.name}: not measured: {shown(left_out)}", UserWarning, "<calibration>", 1)
    return found


def _measured(teacher: Teacher, rough: Measurement, images: Iterable[torch.Tensor]) -> Measurement:
    """What `rough` is of, with its layers' statistics and all levels, but for layers to which all images are alike."""
    about = teacher.statistics
    assert about is not None
    seen = _look(teacher, about, images)
    exact = _settled(about, seen)
    levels = _levels(exact, seen, about)
    rows = zip(exact.layers, exact.var_scale.tolist(), levels.values(), strict=True)
    alike = {layer.name for layer, scale, row in rows if layer.measured and _is_alike(scale, row)}
    layers: dict[str, MeasuredLayer] = {}
    for layer in exact.layers:
        if layer.measured and layer.name not in alike:
            span = slice(layer.start, layer.start + layer.channels)
            dim = rough.layers[layer.name].dim
            layers[layer.name] = MeasuredLayer(dim, exact.mean[span].cpu(), exact.var[span].cpu())
    names = [layer.name for layer in exact.layers]
    kept = {key: row for name, (key, row) in zip(names, levels.items(), strict=True) if name not in alike}
    return replace(rough, images=seen.images, layers=layers, levels=kept)


def _check_count(images: int) -> None:
    if images < 2:
        raise ValueError(f"levels: {images} image; give at least two, a thousand are plenty")


# --- which layers ---------------------------------------------------------------------------------------------


def _chosen(teacher: Teacher, patterns: Sequence[str]) -> dict[str, nn.Module]:
    """Layers of the teacher's network to measure, by name; ValueError for a pattern that matches none."""
    named = {
        name: module
        for name, module in teacher.net.named_modules()
        if name and not has_statistics(module) and channels_of(module) is not None
    }
    if not patterns:
        return {} if teacher.statistics is not None else {name: m for name, m in named.items() if is_norm(m)}
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in named):
            known = ", ".join([*named][:3]) or "none"
            raise ValueError(
                f"layers: no norm without running statistics, convolution or linear layer of {teacher.name} matches "
                f"{pattern!r}; there are {len(named)}: {known}{', ..' if len(named) > 3 else ''}"
            )
    return {name: m for name, m in named.items() if any(fnmatchcase(name, pattern) for pattern in patterns)}


def _pilots(
    teacher: Teacher, modules: dict[str, nn.Module], images: torch.Tensor
) -> tuple[dict[str, MeasuredLayer], dict[str, str]]:
    """Where the channels of each layer are and roughly its mean, of a few images; why the others cannot be measured."""
    pilots = {name: _Pilot(len(images)) for name, module in modules.items()}
    handles = [module.register_forward_pre_hook(pilots[name]) for name, module in modules.items()]
    try:
        teacher.observe(images.to(teacher.device, teacher.wide))
    finally:
        for handle in handles:
            handle.remove()
    left_out = {name: pilot.trouble for name, pilot in pilots.items() if pilot.trouble}
    return {name: pilot.layer() for name, pilot in pilots.items() if not pilot.trouble}, left_out


class _Pilot:
    """A hook that looks at a layer's input."""

    def __init__(self, images: int) -> None:
        self.images = images
        self.trouble = "it never runs in eval mode"
        self.dim: int | None = None
        self.total, self.count = torch.zeros(()), 0

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        x = inputs[0] if inputs else None
        if not isinstance(x, torch.Tensor) or not x.is_floating_point():
            self.trouble = "its input is no tensor of floating-point numbers, or passed by its name"
            return
        dim = channel_dim(module, x.shape)
        if dim is None or self.dim not in (None, dim) or x.numel() % self.images:
            self.trouble = f"its input of shape {tuple(x.shape[1:])} has its channels elsewhere, or not of each image"
            return
        self.dim = dim
        if not self.count:
            self.trouble = ""
        values = x.double().movedim(dim, -1).flatten(0, -2)
        self.total = self.total.to(x.device) + values.sum(0)
        self.count += len(values)

    def layer(self) -> MeasuredLayer:
        assert self.dim is not None
        mean = (self.total / self.count).float().double()
        return MeasuredLayer(self.dim, mean, torch.ones_like(mean))


# --- what is measured -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Seen:
    """Of each channel, (C,) each, over images: the means of m and q, and their unbiased variances and covariance."""

    images: int
    m: torch.Tensor
    q: torch.Tensor
    var_m: torch.Tensor
    var_q: torch.Tensor
    covariance: torch.Tensor


def _look(teacher: Teacher, statistics: BNStatistics, images: Iterable[torch.Tensor]) -> _Seen:
    """One pass over the images, about the means in `statistics`. ValueError for fewer than two images."""
    count = 0
    origin = sums = products = torch.zeros(())
    for image in (image for part in images for image in part):
        view = image[None].to(teacher.device, teacher.wide)
        both = teacher.observe(view).moments.double() / statistics.positions
        if not count:  # differences from it do not cancel
            origin, sums, products = both, torch.zeros_like(both), both.new_zeros(3, both.shape[1])
        count += 1
        m, q = both - origin
        sums = sums + torch.stack([m, q])
        products = products + torch.stack([m * m, q * q, m * q])
    _check_count(count)
    m, q = sums / count
    var_m, var_q, covariance = (products - count * torch.stack([m * m, q * q, m * q])) / (count - 1)
    return _Seen(count, origin[0] + m, origin[1] + q, var_m.clamp_min(0), var_q.clamp_min(0), covariance)


def _settled(about: BNStatistics, seen: _Seen) -> BNStatistics:
    """The statistics where those of measured layers are what was seen; of several runs of one, of all its values."""
    mean, var = about.mean.clone(), about.var.clone()
    spans: dict[str, list[tuple[slice, int]]] = {}
    for layer in about.layers:
        if layer.measured:
            spans.setdefault(layer.name, []).append((slice(layer.start, layer.start + layer.channels), layer.positions))
    for runs in spans.values():
        total = sum(positions for _, positions in runs)
        m, q = (sum((values[span] * n for span, n in runs), torch.zeros(())) / total for values in (seen.m, seen.q))
        for span, _ in runs:
            mean[span] = (about.mean[span] + m).float().double()
            var[span] = (q - m.square()).clamp_min(0).float().double()
    return BNStatistics(about.layers, mean, var)


def _levels(statistics: BNStatistics, seen: _Seen, about: BNStatistics) -> dict[str, Levels]:
    """By `keys`: see `measure_levels`; `seen` is about the means in `about`."""
    gaps = seen.m - (statistics.mean - about.mean), seen.q - seen.m.square() - statistics.var
    spread = seen.var_q - 4 * seen.m * seen.covariance + 4 * seen.m.square() * seen.var_m  # of q - 2 m E m
    rows = []
    for gap, squares, scale in zip(
        gaps, (seen.var_m, spread.clamp_min(0)), (statistics.mean_scale, statistics.var_scale), strict=True
    ):
        spreads = statistics.layer_norms(squares.sqrt())
        squared = statistics.layer_norms(gap).square() - spreads.square() / seen.images
        rows += [squared.clamp_min(0).sqrt() / scale, spreads / scale]
    return {key: _four(row) for key, row in zip(statistics.keys, torch.stack(rows, 1).tolist(), strict=True)}


def _four(row: Sequence[float]) -> Levels:
    mean_floor, mean_spread, var_floor, var_spread = row
    return mean_floor, mean_spread, var_floor, var_spread


def _is_alike(var_scale: float, levels: Levels) -> bool:
    """Whether all images have the same mean or the same variance there, up to rounding."""
    return var_scale < 1e-30 or min(levels[1], levels[3]) < ROUNDING
