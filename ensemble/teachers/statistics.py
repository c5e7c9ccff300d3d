"""What a BatchNorm layer saw: moments that add over shards, and the module that emits them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from ensemble.teachers.kernels import Form, affine_with_moments


@dataclass(frozen=True)
class BNLayer:
    """One execution of a BatchNorm layer: its name, its channels in the packed moments, its positions.

    `positions` is height x width of the layer's input: a batch of n images gives n * positions values a channel.
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


class EmittingBatchNorm(nn.Module):
    """A BatchNorm2d in eval mode that also emits the moments of its input.

    y = weight (x - running_mean) / sqrt(running_var + eps) + bias, as one multiply-add in at least fp32; the
    moments, accumulated in at least fp32, are appended to `sink`. `form` is what the layer does besides: the relu and
    the residual sum that the network has after it may be its own (see `ensemble.teachers.rewriting`). `activation` is
    what else a fused layer (timm's BatchNormAct2d) applies afterwards.
    """

    def __init__(self, norm: nn.BatchNorm2d, name: str, dtype: torch.dtype, sink: list[torch.Tensor]) -> None:
        super().__init__()
        assert norm.running_mean is not None and norm.running_var is not None
        mean, var = norm.running_mean.double(), norm.running_var.double()
        scale = (var + norm.eps).rsqrt()
        shift = -mean * scale
        if norm.affine:
            scale = scale * norm.weight.detach().double()
            shift = shift * norm.weight.detach().double() + norm.bias.detach().double()
        wide = torch.promote_types(dtype, torch.float32)
        self.name = name
        self.running_mean: torch.Tensor
        self.scale: torch.Tensor
        self.shift: torch.Tensor
        self.register_buffer("running_mean", mean.to(wide))
        self.register_buffer("running_var", var.to(wide))
        self.register_buffer("scale", scale.to(wide))
        self.register_buffer("shift", shift.to(wide))
        after = _activation(norm)
        self.form = Form.RELU if type(after) is nn.ReLU else Form.AFFINE
        self.activation = after if self.form == Form.AFFINE else nn.Identity()
        self.sink = sink

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        y, moments = affine_with_moments(x, self.scale, self.shift, self.running_mean, self.form, residual)
        self.sink.append(moments)
        return self.activation(y)


def _activation(norm: nn.BatchNorm2d) -> nn.Module:
    parts = [part for part in (getattr(norm, "drop", None), getattr(norm, "act", None)) if part is not None]
    parts = [part for part in parts if not isinstance(part, nn.Identity)]
    if len(parts) == 1:
        return parts[0]
    return nn.Sequential(*parts) if parts else nn.Identity()


def replace_batch_norm(net: nn.Module, dtype: torch.dtype, sink: list[torch.Tensor]) -> dict[str, EmittingBatchNorm]:
    """Every BatchNorm2d of `net` (subclasses too) replaced in place by a module that emits; by name.

    A layer shared under several names becomes one module. Layers without running statistics stay as they are:
    they hold nothing to match.
    """
    replaced: dict[int, EmittingBatchNorm] = {}
    for name, module in list(net.named_modules(remove_duplicate=False)):
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            emitting = replaced.setdefault(id(module), EmittingBatchNorm(module, name, dtype, sink))
            if not name:
                raise ValueError("a network that is itself one BatchNorm layer cannot be a teacher")
            net.set_submodule(name, emitting)
    return {module.name: module for module in replaced.values()}


@contextmanager
def record_execution(modules: dict[str, EmittingBatchNorm]) -> Iterator[list[tuple[str, torch.Size]]]:
    """While open, the list grows by (name, input shape) each time one of `modules` runs."""
    calls: list[tuple[str, torch.Size]] = []
    handles = []
    for name, module in modules.items():

        def hook(_: nn.Module, inputs: tuple[torch.Tensor, ...], name: str = name) -> None:
            calls.append((name, inputs[0].shape))

        handles.append(module.register_forward_pre_hook(hook))
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def probe(
    run: Callable[[], object], modules: dict[str, EmittingBatchNorm]
) -> tuple[BNStatistics | None, tuple[str, ...]]:
    """BN layers in the order in which `run()` executes them, and the names of those it never does.

    The first element is None where no layer runs. A layer that runs twice is listed twice.
    """
    with record_execution(modules) as calls:
        run()
    layers, start = [], 0
    for name, shape in calls:
        layers.append(BNLayer(name, start, shape[1], shape[2] * shape[3]))
        start += shape[1]
    idle = tuple(sorted(set(modules) - {name for name, _ in calls}))
    if not layers:
        return None, idle
    mean = torch.cat([modules[layer.name].running_mean for layer in layers]).double()
    var = torch.cat([modules[layer.name].get_buffer("running_var") for layer in layers]).double()
    return BNStatistics(tuple(layers), mean, var), idle
