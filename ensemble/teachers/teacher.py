"""A frozen classifier that observes a view: logits and the moments its layers with statistics saw."""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import nn

from ensemble.image.transforms import resize_bilinear
from ensemble.machine.errors import is_out_of_memory
from ensemble.machine.hardware import channels_last, cpp_compiler
from ensemble.machine.rng import generator
from ensemble.teachers.copying import copied
from ensemble.teachers.features import FeatureHook, find_classifier
from ensemble.teachers.measured import Measurement
from ensemble.teachers.observing import EmittingBatchNorm, Watch, probe, restored, watch, watch_measured
from ensemble.teachers.rewriting import entry, rewritten
from ensemble.teachers.statistics import BNStatistics
from ensemble.teachers.taps import Tap, Tapped, Taps, find_taps, laid_out
from models import ModelCard, are_probabilities, cautions, log_of, network_input, network_logits, retold


class Observation(NamedTuple):
    """`logits` (n, classes), at least fp32; `moments` packed (2, C) (see `BNStatistics`), C = 0 where none are;
    `features` (n, D), the input of the layer that makes the logits, D = 0 where no term reads them; `taps`, what terms
    asked to tap, each (n, C, ...) (see `Tapped`), at least fp32."""

    logits: torch.Tensor
    moments: torch.Tensor
    features: torch.Tensor
    taps: Mapping[Tap, torch.Tensor] = MappingProxyType({})


@dataclass(frozen=True)
class Profile:
    """What every rank knows of a teacher, also where it is not loaded."""

    name: str
    card: ModelCard
    statistics: BNStatistics | None
    """None for a network without layers that have any."""
    layers: Mapping[str, float] = field(default_factory=dict)
    """Factors of these layers, by patterns of their names."""
    features: int = 0
    """D."""
    student: bool = False
    """It is no teacher: images are to part it from them."""
    taps: Mapping[Tap, Tapped] = field(default_factory=dict)
    """What is tapped, at its own input size."""
    stops: bool = False
    """A pass ends at the last tap, before the logits, where not the whole is asked for."""
    columns: tuple[int, ...] | None = None
    """Where the first teacher's classes are among its logits, -1 for those that are not; None: in the same order."""

    def example(self, device: torch.device) -> Observation:
        """The shapes of what it says of one image; the values are zeros."""
        channels = 0 if self.statistics is None else len(self.statistics.mean)
        logits = torch.zeros(1, self.card.num_classes, dtype=torch.float64, device=device)
        zeros = torch.zeros(2, channels + self.features, dtype=torch.float64, device=device)
        taps = {tap: logits.new_zeros((1, at.channels, *at.positions)) for tap, at in self.taps.items()}
        return Observation(logits, zeros[:, :channels], zeros[:1, channels:], taps)


class Teacher:
    """A network in eval mode, frozen, with its card, its own normalisation and its BN statistics.

    `dtype` is the dtype of activations and of convolution and linear weights, cast once; moments, logits and the
    affine maps of the BN layers are at least fp32. The network passed in is copied and left as it was, and what is
    made of it is compared with it: the teacher computes what the network computes, within rounding.

    `measured` brings the statistics of further layers, and the levels of real batches of all. `layers` are those whose
    input's moments it emits, by name; `left_out` names the other layers with running statistics, and why. `statistics`
    is None for a network without any that is matched. `notes` are what a user should know.

    Raises ValueError where the network cannot run, its logits are not those of its card, or `measured` is of another.
    """

    def __init__(
        self,
        name: str,
        net: nn.Module,
        card: ModelCard,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        measured: Measurement | None = None,
    ) -> None:
        if measured is not None:
            measured.check(name, net, card)
        self.name = name
        self.card = card
        self.dtype = dtype
        self.gradient_scale = 1024.0 if dtype == torch.float16 else 1.0
        """Cotangents are multiplied by it on the way in, so that fp16 gradients do not underflow."""
        self.wide = torch.promote_types(dtype, torch.float32)
        self.device = torch.device(device)
        self.notes: list[str] = []
        self.feature_size = 0
        self._sink: list[torch.Tensor] = []
        self._input_sizes: dict[int, int] = {}
        self._probabilities = False
        self._activations = self.wide
        self._features: FeatureHook | None = None
        self._classifier = ""
        self._taps: Taps | None = None
        self._tapped: dict[Tap, tuple[Tapped, int]] = {}
        self._places: list[int] = []
        self._stops = False
        self._run: Callable[[torch.Tensor], tuple[torch.Tensor, ...]] = self._forward
        with retold(name):
            copy = copied(net)
        self.net = _cast(copy.eval().requires_grad_(False), self.wide, {}).to(self.device)
        with torch.no_grad():
            self._check_logits()
            watched = self._observe_layers(net)
            self.left_out: dict[str, str] = watched.left_out
            self.layers = watched.layers
            if measured is not None:
                self._observe_measured(measured)
            self._narrow()
            blank = torch.full((1, 3, card.input_size, card.input_size), 0.5, dtype=self.wide, device=self.device)
            self.statistics = probe(lambda: self._checked_run(blank), self.layers)
        levels = measured.levels if measured is not None else card.loaded.levels if card.loaded else {}
        if self.statistics is not None and levels:
            self.statistics.calibrate(levels)
        self.channels = 0 if self.statistics is None else len(self.statistics.mean)
        with torch.no_grad():
            self.observe(self._examples()[0])  # so that it refuses before the run what differs from one image

    def _examples(self) -> list[torch.Tensor]:
        """Batches of two views: noise around grey, and noise of all grey levels."""
        size = self.card.input_size
        rng = generator(0, "example")
        flat, soft = (torch.rand(2, 3, size, size, generator=rng, dtype=torch.float64) for _ in range(2))
        return [part.to(self.device, self.wide) for part in (0.5 + 0.3 * (soft - 0.5), flat)]

    def _observe_measured(self, measured: Measurement) -> None:
        """Make the layers emit that have statistics in `measured`."""
        example = self._examples()[0]
        self.layers = self.layers | watch_measured(
            self.net, measured.layers, self._sink, lambda: self._checked_run(example), self.wide, self.device
        )

    def _narrow(self) -> None:
        """Compute in `dtype` from now on, or where the network does not run in it, as before."""
        keep = self._kept()
        narrow = copied(self.net, {id(part): part for part in [self._sink, *self._replacements()]})
        wide, self.net = self.net, channels_last(_cast(narrow, self.dtype, keep))
        self._activations = self.dtype
        try:
            self._forward(self._examples()[0])
        except Exception as error:  # a network may be anybody's
            if is_out_of_memory(error) or self.dtype == self.wide:
                raise
            name = str(self.dtype).removeprefix("torch.")
            self.notes.append(f"{self.name} does not run in {name} ({error}); it computes in fp32")
            self.net, self.dtype, self._activations = channels_last(wide), self.wide, self.wide
            self.gradient_scale = 1.0
        self._find_measured()

    def _replacements(self) -> list[nn.Module]:
        """The modules with running statistics that emit moments; they belong to every form of the network."""
        return [layer.module for layer in self.layers.values() if not layer.measured]

    def _kept(self) -> set[int]:
        """Ids of those modules and their parts, which stay at least in fp32."""
        return {id(part) for module in self._replacements() for part in module.modules()}

    def _find_measured(self) -> None:
        """The measured layers are ordinary parts of the network, so another form of it has its own."""
        self.layers = {
            name: replace(layer, module=self.net.get_submodule(name)) if layer.measured else layer
            for name, layer in self.layers.items()
        }

    def _smaller(self, view: torch.Tensor) -> list[torch.Tensor]:
        """The view at three quarters of its size, where the network takes that too."""
        size = self.card.input_size * 3 // 4
        self._input_sizes[size] = size
        smaller = view[:, :, :size, :size]
        try:
            self._forward(smaller)
        except Exception as error:  # a network may be anybody's
            if is_out_of_memory(error):
                raise
            del self._input_sizes[size]
            return []
        return [smaller]

    def _check_logits(self) -> None:
        """ValueError where the network cannot run, or its logits are not those of its card."""
        examples = self._examples()
        outputs = [self._checked_run(view)[0] for view in examples]
        logits = torch.cat(outputs)
        if logits.shape != (2 * len(examples), self.card.num_classes):
            size = self.card.input_size
            seen = f"logits of shape {(1, *logits.shape[1:])} for an image of {size} x {size}"
            raise ValueError(f"{self.name}: {seen}, but its card says {self.card.num_classes} classes")
        self._probabilities = bool(are_probabilities(logits))
        if self._probabilities:
            self.notes.append(f"{self.name} ends in probabilities; their logarithms are taken as its logits")
        self.notes += [f"{self.name}: {text}" for text in cautions(self.net, logits)]

    def _checked_run(self, view: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with retold(f"{self.name}: its forward pass fails on an image of {view.shape[2]} x {view.shape[3]}"):
            return self._forward(view)

    def _observe_layers(self, original: nn.Module) -> Watch:
        """Make the layers emit moments. Where the network then says something else, their own forwards stay."""
        examples = self._examples()
        examples += self._smaller(examples[0])
        expected = [self._forward(view)[0] for view in examples]
        found = watch(self.net, self._sink, lambda: self._forward(examples[0]), 2)
        if all(_agree(self._checked_run(view)[0], logits) for view, logits in zip(examples, expected, strict=True)):
            self._input_sizes.clear()
            return found
        self.net = _cast(copied(original).eval().requires_grad_(False), self.wide, {}).to(self.device)
        found = watch(self.net, self._sink, lambda: self._forward(examples[0]), 2, replace=False)
        same = all(_agree(self._checked_run(view)[0], logits) for view, logits in zip(examples, expected, strict=True))
        self._input_sizes.clear()
        if same:
            return found
        raise ValueError(
            f"{self.name}: two forward passes of the same images give different logits, so it cannot be a teacher; "
            "draw nothing at random in eval mode"
        )

    def admit(self, view_size: int, image_size: int) -> None:
        """Let the network see views of `view_size`, of an image of `image_size`, in the image's own proportion.

        A stage at half resolution then costs a quarter, as in Yin et al. (2020). A network that takes its own
        input size alone sees such views enlarged to it.
        """
        size = max(1, round(self.card.input_size * view_size / image_size))
        if size == self.card.input_size:
            return
        self._input_sizes[view_size] = size
        blank = torch.full((1, 3, view_size, view_size), 0.5, dtype=self.wide, device=self.device)
        try:
            with torch.no_grad():
                statistics = probe(lambda: self._forward(blank), self.layers)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            del self._input_sizes[view_size]
            return
        if self.statistics is None:
            return
        if statistics is None or statistics.keys != self.statistics.keys:  # other layers run at that size
            del self._input_sizes[view_size]
            return
        self.statistics.add(view_size, statistics)

    def profile(self, layers: Mapping[str, float] | None = None) -> Profile:
        """What every rank knows of it; `layers` are factors of its BN layers."""
        tapped = {tap: layout for tap, (layout, _) in self._tapped.items()}
        features, stops = self.feature_size, self._stops
        return Profile(self.name, self.card, self.statistics, layers or {}, features, taps=tapped, stops=stops)

    def tap(self, taps: Sequence[Tap], *, alone: bool) -> None:
        """Observe these values, too. `alone`: nothing else is read but at the end, so a pass stops at the last of them.

        To be called once, and before `rewrite`, which then leaves the network as it is: layers keep their places.
        ValueError for a layer that is not there, or a value that belongs to no image.
        """
        size = self.card.input_size

        def run(images: int) -> tuple[torch.Tensor, ...]:
            return self._checked_run(torch.full((images, 3, size, size), 0.5, dtype=self.wide, device=self.device))

        for name, layer in self.layers.items():
            if layer.replaced is not None and any(
                tap.layer.removesuffix(".out").startswith(f"{name}.") for tap in taps
            ):
                self.layers[name] = restored(self.net, layer, self._sink)
        own = find_taps(self.name, self.net, taps, run)
        self._taps = Taps(self.net, list(own.values()))
        self._stops = alone and not self._taps.waits
        with torch.no_grad(), self._taps.catching(stops=False):
            logits = run(2)[0]
            if self._taps.missing:
                raise ValueError(
                    f"{self.name}: {self._taps.missing[0]} holds no tensor; take a layer within or around it"
                )
        found = self._taps.take(logits)
        self._places = [self._taps.wanted.index(tap) for tap in own.values()]
        self._tapped = {
            tap: laid_out(self.name, own[tap], found[place], self.net)
            for tap, place in zip(own, self._places, strict=True)
        }

    def emit_features(self) -> None:
        """Observe features, too; ValueError where no last layer makes the logits."""
        blank = torch.full((1, 3, *(self.card.input_size,) * 2), 0.5, dtype=self.wide, device=self.device)
        try:
            with torch.no_grad():
                self._classifier, layer = find_classifier(self.net, self.card.num_classes, lambda: self._forward(blank))
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from None
        self.feature_size = layer.weight.shape[1]
        self._hook_features()

    def _hook_features(self) -> None:
        """Hang the hook on the classifier as it is now, in the place of a copy's."""
        classifier = self.net.get_submodule(self._classifier)
        for key, hook in list(classifier._forward_pre_hooks.items()):
            if isinstance(hook, FeatureHook):
                del classifier._forward_pre_hooks[key], classifier._forward_pre_hooks_with_kwargs[key]
        self._features = FeatureHook()
        classifier.register_forward_pre_hook(self._features, with_kwargs=True)

    def rewrite(self) -> None:
        """Replace the network by an equivalent one that is faster on a CPU, where there is one (see `rewritten`)."""
        if self.device.type != "cpu" or self._taps is not None:
            return
        sizes = {self.card.input_size, *self._input_sizes.values()}
        rng = generator(0, "example")
        channels = len(self.card.mean)
        examples = [torch.randn(2, channels, size, size, generator=rng).to(self.wide) for size in sorted(sizes)]
        kept = [self._sink, *self._replacements(), *self.net.parameters(), *self.net.buffers()]
        shared = {id(part): part for part in kept}
        keep = self._kept()
        net = rewritten(_cast(copied(self.net, shared), self.wide, keep), examples, self._sink, self.dtype)
        if net is None:
            return
        keep |= {id(module) for module in net.modules() if isinstance(module, EmittingBatchNorm)}
        net = channels_last(_cast(net, self.dtype, keep))
        try:
            entry(net)(examples[0].to(self.dtype).contiguous(memory_format=torch.channels_last))
        except RuntimeError:
            return  # what `_observed` saw at least in fp32 mixes dtypes below
        finally:
            self._sink.clear()
        self.net = net
        fused = {module.name: module for module in net.modules() if isinstance(module, EmittingBatchNorm)}
        self.layers = {
            name: replace(layer, module=fused.get(name, layer.module)) for name, layer in self.layers.items()
        }
        if self._features is not None:
            self._hook_features()
        self._find_measured()

    def compile(self) -> None:
        """Compile `view -> (logits, moments)`; shapes are static, each shape is one variant.

        All teachers share one code object, of which dynamo compiles 8 variants and then quietly none: the limit is
        raised out of reach, and to meet it all the same is an error.
        """
        if self._taps is not None:
            self.notes.append(f"{self.name} is tapped, so it runs uncompiled")
            return
        compiler = cpp_compiler()
        if compiler is not None:
            os.environ.setdefault("CXX", compiler)  # torch itself looks for g++ alone
        torch._dynamo.config.recompile_limit = 256
        torch._dynamo.config.accumulated_recompile_limit = 1024
        torch._dynamo.config.fail_on_recompile_limit_hit = True
        self._run = torch.compile(self._forward, dynamic=False)

    def observe(self, view: torch.Tensor, *, whole: bool = False) -> Observation:
        """What the teacher makes of `view` (n, 3, H, H), RGB in [0, 1], resized to the input size for views of H.

        A pass that stops at taps alone has logits and moments of zeros, unless the `whole` is asked for. ValueError
        where layers with statistics run once more or less than on one image.
        """
        if self._taps is None:
            logits, moments, features = self._run(view)
            seen = Observation(logits, moments, features)
        else:
            seen = self._with_taps(view, self._taps, stops=self._stops and not whole)
        if seen.moments.shape[1] != self.channels:
            raise ValueError(
                f"{self.name}: its layers with statistics run more or fewer times on {len(view)} images than on one; "
                "let each see the whole batch at once"
            )
        return seen

    def _with_taps(self, view: torch.Tensor, taps: Taps, stops: bool) -> Observation:
        seen: tuple[torch.Tensor, ...] = ()
        with taps.catching(stops):
            seen = self._forward(view)
        self._sink.clear()
        if not seen:
            shapes = (len(view), self.card.num_classes), (2, self.channels), (len(view), self.feature_size)
            seen = tuple(view.new_zeros(shape, dtype=self.wide) for shape in shapes)
        logits, moments, features = seen
        found = taps.take(logits)
        values = {
            tap: found[place].movedim(dim, 1).to(self.wide)
            for (tap, (_, dim)), place in zip(self._tapped.items(), self._places, strict=True)
        }
        return Observation(logits, moments, features, values)

    def _input(self, view: torch.Tensor) -> torch.Tensor:
        size = self._input_sizes.get(view.shape[2], self.card.input_size)
        if view.shape[2] != size or view.shape[3] != size:
            view = resize_bilinear(view, size)
        x = network_input(view.to(self.wide), self.card).to(self._activations)
        return x.contiguous(memory_format=torch.channels_last)

    def _logits(self, output: object, images: int) -> torch.Tensor:
        logits = network_logits(output, images).to(self.wide)
        return log_of(logits) if self._probabilities else logits

    def _forward(self, view: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = self._input(view)
        self._sink.clear()
        logits = self._logits(entry(self.net)(x), len(x))
        moments = torch.cat(self._sink, dim=1) if self._sink else logits.new_zeros((2, 0))
        self._sink.clear()
        features = logits.new_zeros((len(view), 0)) if self._features is None else self._features.take().to(self.wide)
        return logits, moments, features


def _agree(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Equal within rounding; where what is expected is not finite, nothing can be compared."""
    tolerance = 1e-9 if found.dtype == torch.float64 else 1e-3
    size = expected.norm()
    return bool((found - expected).norm() <= tolerance * size) or not bool(torch.isfinite(size))


def _cast(net: nn.Module, dtype: torch.dtype, keep: Container[int]) -> nn.Module:
    """`net`, in place, with its weights in `dtype`, but for modules in `keep`, by id; statistics are at least fp32.

    Complex weights, and integers, stay what they are.
    """
    wide = torch.promote_types(dtype, torch.float32)
    for module in net.modules():
        if id(module) in keep:
            continue
        for key, parameter in module._parameters.items():
            if parameter is not None:
                kind = dtype if parameter.is_floating_point() else parameter.dtype
                module._parameters[key] = nn.Parameter(parameter.to(kind), requires_grad=False)
        for key, buffer in module._buffers.items():
            if buffer is not None and buffer.is_floating_point():
                module._buffers[key] = buffer.to(wide if "running" in key else dtype)
    return net
