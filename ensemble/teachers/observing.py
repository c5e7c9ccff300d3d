"""Layers with statistics of their input, made to emit the moments of what they see.

A layer that keeps them itself has `running_mean` and `running_var`, whatever its class and the rank of its input. Where
it is an affine map and an activation, it is replaced by the module that computes both at once; that is tried on what
the network computes, layer by layer. Elsewhere its own forward stays, and its input's moments are taken beside it, as
with every layer whose statistics were measured.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from ensemble.machine.errors import is_out_of_memory
from ensemble.teachers.channels import runs_on
from ensemble.teachers.kernels import Activation, Form, activation_of, affine_with_moments
from ensemble.teachers.measured import MeasuredLayer
from ensemble.teachers.statistics import BNLayer, BNStatistics

_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
"""How far a replaced layer may be from its own forward, relative to the output's l2 norm: rounding."""
_FAR = 100.0
"""How many standard deviations inputs are also spread, to see what a layer does where few images come."""


class EmittingBatchNorm(nn.Module):
    """A BatchNorm in eval mode that also emits the moments of its input, (N, C) or (N, C, ...).

    y = weight (x - running_mean) / sqrt(running_var + eps) + bias, as one multiply-add in at least fp32; the
    moments, accumulated in at least fp32, are appended to `sink`. `form` is what the layer does besides: the activation
    and the residual sum that the network has after it may be its own (see `ensemble.teachers.rewriting`).
    `activation` is what else a fused layer (timm's BatchNormAct2d) applies afterwards.
    """

    def __init__(
        self, norm: nn.Module, name: str, channels: int, sink: list[torch.Tensor], activation: nn.Module
    ) -> None:
        """`norm`'s first `channels` statistics count."""
        super().__init__()
        mean, var = (norm.get_buffer(key)[:channels].double() for key in ("running_mean", "running_var"))
        scale = (var + getattr(norm, "eps", 1e-5)).rsqrt()
        shift = -mean * scale
        weight, bias = (getattr(norm, key, None) for key in ("weight", "bias"))
        if weight is not None:
            scale, shift = scale * weight.detach().double(), shift * weight.detach().double()
        if bias is not None:
            shift = shift + bias.detach().double()
        wide = torch.promote_types(norm.get_buffer("running_mean").dtype, torch.float32)
        self.name = name
        self.running_mean: torch.Tensor
        self.scale: torch.Tensor
        self.shift: torch.Tensor
        for key, value in (("running_mean", mean), ("running_var", var), ("scale", scale), ("shift", shift)):
            self.register_buffer(key, value.to(wide))
        known = activation_of(activation)
        self.form, self.parameter = known or Activation(Form.AFFINE)
        self.activation = activation if known is None else nn.Identity()
        self.sink = sink

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        shape = x.shape
        if len(shape) != 4:
            x = x.reshape(shape[0], shape[1], -1, 1)
        y, moments = affine_with_moments(
            x, self.scale, self.shift, self.running_mean, self.form, residual, self.parameter
        )
        self.sink.append(moments)
        return self.activation(y if len(shape) == 4 else y.reshape(shape))


def _activation(norm: nn.Module) -> nn.Module:
    parts = [part for part in (getattr(norm, "drop", None), getattr(norm, "act", None)) if isinstance(part, nn.Module)]
    parts = [part for part in parts if not isinstance(part, nn.Identity)]
    if len(parts) == 1:
        return parts[0]
    return nn.Sequential(*parts) if parts else nn.Identity()


class Beside:
    """A hook that emits the moments of a layer's input, whose own forward stays."""

    def __init__(self, mean: torch.Tensor, dim: int, sink: list[torch.Tensor]) -> None:
        self.mean, self.dim, self.sink = mean, dim, sink

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        x = inputs[0].movedim(self.dim, -1).flatten(0, -2)
        centred = x.to(self.mean.dtype) - self.mean
        self.sink.append(torch.stack([centred.sum(0), centred.square().sum(0)]))


@dataclass(frozen=True)
class Watched:
    """A layer that emits moments: `module` stands in the network, `mean` and `var` (C,) are its statistics."""

    name: str
    module: nn.Module
    mean: torch.Tensor
    var: torch.Tensor
    measured: bool = False
    """Its statistics are not its own; `module` is an ordinary part of the network."""
    replaced: nn.Module | None = None
    """The layer in whose place `module` stands, if it is another."""


@dataclass(frozen=True)
class Watch:
    """All layers with running statistics of a network: those that emit, by name, and why the others do not."""

    layers: dict[str, Watched]
    left_out: dict[str, str] = field(default_factory=dict)


def has_statistics(module: nn.Module) -> bool:
    """Whether the layer keeps a running mean and variance."""
    return all(isinstance(module._buffers.get(key), torch.Tensor) for key in ("running_mean", "running_var"))


def _statistics_of(module: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    return module.get_buffer("running_mean"), module.get_buffer("running_var")


def watch(
    net: nn.Module, sink: list[torch.Tensor], run: Callable[[], object], images: int, replace: bool = True
) -> Watch:
    """Make every layer of `net` that keeps running statistics emit the moments of its input, in place.

    `run()` is a forward pass of `images` images, at least two, by which the layers are tried. A layer that is an
    affine map and an activation is replaced; with `replace` False none is. A layer under several names is one. A
    network that also keeps its layers where torch does not look (a plain list) runs them there: those stay, too.
    """
    named = {id(m): (name, m) for name, m in reversed(list(net.named_modules())) if has_statistics(m)}
    trials = {key: _Trial(name, module, images) for key, (name, module) in named.items()}
    handles = [trial.module.register_forward_hook(trial) for trial in trials.values()]
    functional = _FunctionalNorms({trial.module.get_buffer("running_mean").data_ptr() for trial in trials.values()})
    try:
        with functional:
            run()
    finally:
        for handle in handles:
            handle.remove()
    watch, decided = Watch({}), []
    for _, module in list(net.named_modules(remove_duplicate=False)):
        trial = trials.pop(id(module), None)
        if trial is not None:
            trial.decide(net, sink, watch, replace)
            decided.append(trial)
    if any(layer.replaced is not None for layer in watch.layers.values()):
        runs = _runs_of(watch, run)
        for trial in decided:
            layer = watch.layers.get(trial.name)
            if layer is not None and layer.replaced is not None and runs[trial.name] < trial.calls:
                watch.layers[trial.name] = restored(net, layer, sink)
    for i in range(functional.calls):
        watch.left_out[f"batch_norm call {i + 1}"] = "a function with statistics of no layer; use nn.BatchNorm"
    return watch


def _runs_of(watch: Watch, run: Callable[[], object]) -> Counter[str]:
    """How often each layer that is watched runs; none does where the pass fails, as where a network reads what a layer
    holds, which another in its place has not."""
    try:
        with record_execution({name: layer.module for name, layer in watch.layers.items()}) as calls:
            run()
    except Exception as error:  # a network may be anybody's
        if is_out_of_memory(error):
            raise
        return Counter()
    return Counter(name for name, _ in calls)


def watch_measured(
    net: nn.Module,
    layers: Mapping[str, MeasuredLayer],
    sink: list[torch.Tensor],
    run: Callable[[], object],
    dtype: torch.dtype,
    device: torch.device,
) -> dict[str, Watched]:
    """Make `layers` of `net`, by name, emit the moments of their inputs too, in `dtype`, in place.

    `run()` is a forward pass. ValueError where an input has other channels than were measured.
    """
    modules = {name: net.get_submodule(name) for name in layers}
    with record_execution(modules) as calls:
        run()
    for name, shape in calls:
        channels = len(layers[name].mean)
        if shape[layers[name].dim] != channels:
            raise ValueError(f"statistics: {channels} channels were measured of {name}, which sees {tuple(shape[1:])}")
    watched = {}
    for name, layer in layers.items():
        modules[name].register_forward_pre_hook(Beside(layer.mean.to(device, dtype), layer.dim, sink))
        mean, var = (values.to(device) for values in (layer.mean, layer.var))
        watched[name] = Watched(name, modules[name], mean, var, measured=True)
    return watched


class _FunctionalNorms(TorchFunctionMode):
    """Counts calls of batch_norm whose statistics belong to no layer: nothing would know of them."""

    def __init__(self, known: set[int]) -> None:
        super().__init__()
        self.known = known
        self.calls = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.batch_norm:
            mean = args[1] if len(args) > 1 else kwargs.get("running_mean")
            self.calls += isinstance(mean, torch.Tensor) and mean.data_ptr() not in self.known
        return func(*args, **kwargs)


class _Trial:
    """What one layer is seen to do in a forward pass."""

    def __init__(self, name: str, module: nn.Module, images: int) -> None:
        self.name, self.module, self.images = name, module, images
        mean, var = _statistics_of(module)
        self.kept = len(mean) if mean.ndim == 1 and mean.shape == var.shape else 0
        self.calls = 0
        self.dim: int | None = None
        self.channels = self.kept
        self.trouble = ""
        self.candidates: list[EmittingBatchNorm] | None = None

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        self.calls += 1
        if not self.kept:
            shapes = " and ".join(str(tuple(part.shape)) for part in _statistics_of(module))
            self.trouble = f"its statistics, of shape {shapes}, are not one number a channel"
            return
        x = inputs[0] if inputs else None
        if not isinstance(x, torch.Tensor) or x.ndim < 2 or not x.is_floating_point():
            self.trouble = "its input is no tensor (N, C, ...) of floating-point numbers, or passed by its name"
            return
        if x.numel() % self.images:
            self.trouble = "its input does not grow with the batch"
            return
        self._find_channels(x, inputs[1:])
        if self.candidates is None:
            self.candidates = self._first_candidates(x)
        tolerance = _TOLERANCE[torch.promote_types(x.dtype, torch.float32)]
        self.candidates = [c for c in self.candidates if _says(c, x, output, tolerance)]
        if self.candidates:
            self._try_far(x, inputs[1:], tolerance)

    def _try_far(self, x: torch.Tensor, others: tuple[Any, ...], tolerance: float) -> None:
        """Also where activations saturate: noise alone does not tell ReLU6 from ReLU."""
        shape = (-1, *(1,) * (x.ndim - 2))
        mean, var = (values[: self.channels].reshape(shape) for values in _statistics_of(self.module))
        away = x - mean
        most = (away.abs().movedim(1, 0).flatten(1).amax(1)).reshape(shape)
        spread = _FAR * (var + getattr(self.module, "eps", 1e-5)).sqrt() / most
        far = (mean + away * torch.where(spread.isfinite(), spread, 1.0)).to(x.dtype)
        try:
            output = self.module.forward(far.clone(), *others)
        except Exception as error:  # a layer may be anybody's
            if is_out_of_memory(error):
                raise
            self.candidates = []
            return
        self.candidates = [c for c in self.candidates or () if _says(c, far, output, tolerance)]

    def _find_channels(self, x: torch.Tensor, others: tuple[Any, ...]) -> None:
        fits = [dim for dim in (1, -1) if x.shape[dim] == self.kept]
        if len(fits) == 2 and x.ndim > 2:
            fits = [dim for dim in fits if runs_on(self.module, self.kept, dim, x.ndim, x, others)] or fits
        if fits:
            self.dim = fits[0]
        elif self.kept % x.shape[1] == 0:  # statistics of several parts of a batch: eval mode uses the first
            self.dim, self.channels = 1, x.shape[1]
        else:
            self.trouble = f"it keeps {self.kept} statistics for an input of shape {tuple(x.shape[1:])}"

    def _first_candidates(self, x: torch.Tensor) -> list[EmittingBatchNorm]:
        if self.dim != 1:
            return []
        try:
            afterwards = (_activation(self.module), nn.Identity(), nn.ReLU())
            return [EmittingBatchNorm(self.module, self.name, self.channels, [], a) for a in afterwards]
        except (RuntimeError, AttributeError, TypeError):  # weights of other shapes: no affine map a channel
            return []

    def decide(self, net: nn.Module, sink: list[torch.Tensor], watch: Watch, replace: bool) -> None:
        """Replace the layer, or watch it beside its own forward; what cannot be watched is left out, with reason."""
        if not self.calls:
            watch.left_out[self.name] = "it never runs in eval mode"
            return
        ghost = self.channels != self.kept and not self.candidates
        if self.trouble or ghost:
            parts = f"it keeps {self.kept} statistics for {self.channels} channels and does not use the first of them"
            watch.left_out[self.name] = self.trouble or parts
            return
        if not bool(_statistics_of(self.module)[1].any()):  # no distance has a unit there
            watch.left_out[self.name] = "all its running variances are 0"
            return
        mean, var = (values[: self.channels] for values in _statistics_of(self.module))
        module: nn.Module = self.module
        if replace and self.candidates and self.name:  # a network that is one layer cannot be replaced
            module = self.candidates[0]
            assert isinstance(module, EmittingBatchNorm)
            module.sink = sink
            _put(net, self.module, module)
        else:
            assert self.dim is not None
            wide = mean.to(torch.promote_types(mean.dtype, torch.float32))
            self.module.register_forward_pre_hook(Beside(wide, self.dim, sink))
        replaced = None if module is self.module else self.module
        watch.layers[self.name] = Watched(self.name, module, mean.double(), var.double(), replaced=replaced)


def restored(net: nn.Module, layer: Watched, sink: list[torch.Tensor]) -> Watched:
    """`layer`, which replaces another, with that one back in `net`: its parts run, its moments are taken beside it."""
    own = layer.replaced
    assert own is not None
    _put(net, layer.module, own)
    own.register_forward_pre_hook(Beside(layer.module.get_buffer("running_mean"), 1, sink))
    own.register_forward_hook(lambda _, inputs, output: output.to(inputs[0].dtype))  # its weights stay in fp32
    return dataclasses.replace(layer, module=own, replaced=None)


def _put(net: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """`new` in the place of `old`, under all its names."""
    for name, module in list(net.named_modules(remove_duplicate=False)):
        if module is old:
            net.set_submodule(name, new)


def _says(candidate: EmittingBatchNorm, x: torch.Tensor, output: Any, tolerance: float) -> bool:
    if not isinstance(output, torch.Tensor):
        return False
    y = candidate(x)
    candidate.sink.clear()
    if y.shape != output.shape:
        return False
    gap, size = (y - output).double().norm(), output.double().norm()
    return bool(gap <= tolerance * size) or not bool(torch.isfinite(size))


@contextmanager
def record_execution(modules: Mapping[str, nn.Module]) -> Iterator[list[tuple[str, torch.Size]]]:
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


def probe(run: Callable[[], object], layers: Mapping[str, Watched]) -> BNStatistics | None:
    """The statistics of the layers in the order in which `run()`, a forward pass of one image, executes them.

    None where no layer runs. A layer that runs twice is listed twice.
    """
    with record_execution({name: layer.module for name, layer in layers.items()}) as calls:
        run()
    found, start = [], 0
    for name, shape in calls:
        channels = len(layers[name].mean)
        found.append(BNLayer(name, start, channels, shape.numel() // channels, layers[name].measured))
        start += channels
    if not found:
        return None
    mean, var = (torch.cat([getattr(layers[layer.name], key) for layer in found]) for key in ("mean", "var"))
    return BNStatistics(tuple(found), mean, var)


def shown(left_out: Mapping[str, str], most: int = 3) -> str:
    """Which layers are left out and why, the first few."""
    parts = [f"{name} ({why})" for name, why in list(left_out.items())[:most]]
    return ", ".join([*parts, f"and {len(left_out) - most} more"] if len(left_out) > most else parts)
