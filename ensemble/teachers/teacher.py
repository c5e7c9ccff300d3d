"""A frozen classifier that observes a view: logits and the moments its BatchNorm layers saw."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import nn

from ensemble.image.transforms import resize_bilinear
from ensemble.machine.errors import is_out_of_memory
from ensemble.machine.hardware import cpp_compiler
from ensemble.machine.rng import generator
from ensemble.teachers.copying import copied
from ensemble.teachers.rewriting import entry, rewritten
from ensemble.teachers.statistics import BNStatistics, EmittingBatchNorm, probe, replace_batch_norm
from models import ModelCard


class Observation(NamedTuple):
    """`logits` (n, classes), at least fp32; `moments` packed (2, C) (see `BNStatistics`), C = 0 without BN layers."""

    logits: torch.Tensor
    moments: torch.Tensor


@dataclass(frozen=True)
class Profile:
    """What every rank knows of a teacher, also where it is not loaded."""

    name: str
    card: ModelCard
    statistics: BNStatistics | None
    """None for a network without BN layers."""
    layers: Mapping[str, float] = field(default_factory=dict)
    """Factors of its BN layers, by patterns of their names."""

    def example(self, device: torch.device) -> Observation:
        """The shapes of what it says of one image; the values are zeros."""
        channels = 0 if self.statistics is None else len(self.statistics.mean)
        logits = torch.zeros(1, self.card.num_classes, dtype=torch.float64, device=device)
        return Observation(logits, torch.zeros(2, channels, dtype=torch.float64, device=device))


class Teacher:
    """A network in eval mode, frozen, with its card, its own normalisation and its BN statistics.

    `dtype` is the dtype of activations and of convolution and linear weights, cast once; moments, logits and the
    affine maps of the BN layers are at least fp32. The network passed in is copied and left as it was.

    `idle` names the BN layers that never run in eval mode. `statistics` is None for a network without BN layers.
    """

    def __init__(
        self,
        name: str,
        net: nn.Module,
        card: ModelCard,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.name = name
        self.card = card
        self.dtype = dtype
        self.gradient_scale = 1024.0 if dtype == torch.float16 else 1.0
        """Cotangents are multiplied by it on the way in, so that fp16 gradients do not underflow."""
        self.wide = torch.promote_types(dtype, torch.float32)
        self.device = torch.device(device)
        self._sink: list[torch.Tensor] = []
        self._input_sizes: dict[int, int] = {}
        net = copied(net).eval().requires_grad_(False)
        self._modules = modules = replace_batch_norm(net, dtype, self._sink)
        self.net = _cast(net, dtype).to(self.device).to(memory_format=torch.channels_last)
        self._mean = torch.tensor(card.mean, dtype=self.wide, device=self.device)[:, None, None]
        self._std = torch.tensor(card.std, dtype=self.wide, device=self.device)[:, None, None]
        blank = torch.full((1, 3, card.input_size, card.input_size), 0.5, dtype=self.wide, device=self.device)
        with torch.no_grad():
            self.statistics, self.idle = probe(lambda: self._check(blank), modules)
        self.channels = 0 if self.statistics is None else len(self.statistics.mean)
        self._run: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]] = self._forward

    def _check(self, blank: torch.Tensor) -> None:
        """ValueError where the network cannot run, or its logits are not those of its card."""
        size = f"an image of {blank.shape[2]} x {blank.shape[3]}"
        try:
            logits, _ = self._forward(blank)
        except Exception as error:  # a network may be anybody's
            if is_out_of_memory(error):
                raise
            raise ValueError(f"{self.name}: its forward pass fails on {size}: {error}") from error
        if logits.shape != (1, self.card.num_classes):
            seen = f"logits of shape {tuple(logits.shape)}"
            raise ValueError(f"{self.name}: {seen} for {size}, but its card says {self.card.num_classes} classes")

    def admit(self, view_size: int, image_size: int) -> None:
        """Let the network see views of `view_size`, of an image of `image_size`, in the image's own proportion.

        A stage at half resolution then costs a quarter, as in Yin et al. (2020). A network that takes its own
        input size alone sees such views enlarged to it.
        """
        size = max(1, round(self.card.input_size * view_size / image_size))
        if size == self.card.input_size or self.statistics is None:
            return
        self._input_sizes[view_size] = size
        blank = torch.full((1, 3, view_size, view_size), 0.5, dtype=self.wide, device=self.device)
        try:
            with torch.no_grad():
                statistics, _ = probe(lambda: self._forward(blank), self._modules)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            del self._input_sizes[view_size]
            return
        assert statistics is not None
        self.statistics.add(view_size, statistics)

    def profile(self, layers: Mapping[str, float] | None = None) -> Profile:
        """What every rank knows of it; `layers` are factors of its BN layers."""
        return Profile(self.name, self.card, self.statistics, layers or {})

    def rewrite(self) -> None:
        """Replace the network by an equivalent one that is faster on a CPU, where there is one (see `rewritten`)."""
        if self.device.type != "cpu":
            return
        sizes = {self.card.input_size, *self._input_sizes.values()}
        rng = generator(0, "example")
        examples = [torch.randn(2, 3, size, size, generator=rng).to(self.wide) for size in sorted(sizes)]
        kept = [self._sink, *self._modules.values(), *self.net.parameters(), *self.net.buffers()]
        shared = {id(part): part for part in kept}
        net = rewritten(_cast(copied(self.net, shared), self.wide), examples, self._sink)
        if net is None:
            return
        net = _cast(net, self.dtype).to(memory_format=torch.channels_last)
        try:
            entry(net)(examples[0].to(self.dtype).contiguous(memory_format=torch.channels_last))
        except RuntimeError:
            return  # what `_observed` saw at least in fp32 mixes dtypes below
        finally:
            self._sink.clear()
        self.net = net
        self._modules = {m.name: m for m in net.modules() if isinstance(m, EmittingBatchNorm)}

    def compile(self) -> None:
        """Compile `view -> (logits, moments)`; shapes are static, each shape is one variant.

        All teachers share one code object, of which dynamo compiles 8 variants and then quietly none: the limit is
        raised out of reach, and to meet it all the same is an error.
        """
        compiler = cpp_compiler()
        if compiler is not None:
            os.environ.setdefault("CXX", compiler)  # torch itself looks for g++ alone
        torch._dynamo.config.recompile_limit = 256
        torch._dynamo.config.accumulated_recompile_limit = 1024
        torch._dynamo.config.fail_on_recompile_limit_hit = True
        self._run = torch.compile(self._forward, dynamic=False)

    def observe(self, view: torch.Tensor) -> Observation:
        """What the teacher makes of `view` (n, 3, H, H), RGB in [0, 1], resized to the input size for views of H."""
        return Observation(*self._run(view))

    def _forward(self, view: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        size = self._input_sizes.get(view.shape[2], self.card.input_size)
        if view.shape[2] != size or view.shape[3] != size:
            view = resize_bilinear(view, size)
        x = ((view.to(self.wide) - self._mean) / self._std).to(self.dtype)
        self._sink.clear()
        logits = entry(self.net)(x.contiguous(memory_format=torch.channels_last)).to(self.wide)
        moments = torch.cat(self._sink, dim=1) if self._sink else logits.new_zeros((2, 0))
        self._sink.clear()
        return logits, moments


def _cast(net: nn.Module, dtype: torch.dtype) -> nn.Module:
    """`net`, in place, with its weights in `dtype`; BN layers keep theirs, running statistics are at least fp32."""
    wide = torch.promote_types(dtype, torch.float32)
    for module in net.modules():
        if isinstance(module, EmittingBatchNorm):
            continue
        for key, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[key] = nn.Parameter(parameter.to(dtype), requires_grad=False)
        for key, buffer in module._buffers.items():
            if buffer is not None and buffer.is_floating_point():
                module._buffers[key] = buffer.to(wide if "running" in key else dtype)
    return net
