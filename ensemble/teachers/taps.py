"""The value of any layer of a network, in or out, at any of its calls, and of the operations between layers."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from ensemble.config.mistakes import did_you_mean
from ensemble.teachers.channels import channel_dim, channels_of
from ensemble.teachers.layers import Layer, Watching, called, list_layers
from ensemble.teachers.observing import has_statistics
from models import first_tensor

LOGITS = "logits"
"""Names what the network says. A layer of that name is meant by `logits.in` and, with its call, `logits#1`."""


@dataclass(frozen=True)
class Tap:
    """A value in a forward pass: the input or output of a layer, by its dotted name, at its `call`-th call.

    Of several tensors, as of attention that also returns its weights, it is the first.

    `LAYER.FUNCTION()`, as `layer1.0.add()`, is what a function returns that a layer's own forward calls, outside the
    layers within it. The names are PyTorch's; the node names of torch.fx are understood too (`layer1.0.relu_1` for the
    second call).
    """

    layer: str
    call: int = 1
    side: Literal["in", "out"] = "out"

    def __str__(self) -> str:
        return self.layer + (f"#{self.call}" if self.call > 1 else "") + (".in" if self.side == "in" else "")


_SAID = Tap("")
"""What the network says, as `find_taps` gives it."""


class Tapped(NamedTuple):
    """How a tap's value is laid out: (n, `channels`, *`positions`) for n images, wherever the network has its channels.

    `positions` is empty for vectors, (T,) for tokens, (H, W) for maps.
    """

    channels: int
    positions: tuple[int, ...] = ()
    prefix: int | None = 0
    """So many tokens stand before those of patches; None where nobody knows."""
    class_token: bool = False
    """Whether the first of them is a class token, and no register."""


class _Caught(Exception):
    """Ends a forward pass: all that was wanted has been seen."""


class Taps:
    """What a network's taps hold in a forward pass: copies, which a later operation in place does not change."""

    def __init__(self, net: nn.Module, taps: Sequence[Tap]) -> None:
        """Hang on `net`, which must have the layers; see `found_taps`."""
        self.wanted = tuple(dict.fromkeys(taps))
        self._net = net
        self._caught: dict[Tap, torch.Tensor] = {}
        self._calls: Counter[str] = Counter()
        self._stops = False
        self._inside: list[str] = []
        self.waits = _SAID in self.wanted
        """Whether what the network says is wanted, too: a pass goes on to its end."""
        self._operations = {tap.layer for tap in self.wanted if tap.layer.endswith("()")}
        for layer in {tap.layer for tap in self.wanted} - self._operations - {_SAID.layer}:
            module = net.get_submodule(layer)
            module.register_forward_pre_hook(self._entering(layer), with_kwargs=True)
            module.register_forward_hook(self._leaving(layer))
        if self._operations:
            for name, module in net.named_modules():
                module.register_forward_pre_hook(lambda *_, name=name: self._inside.append(name))
                module.register_forward_hook(lambda *_: (self._inside.pop(), None)[1])

    @contextmanager
    def catching(self, stops: bool) -> Iterator[None]:
        """Watch a forward pass; where it `stops`, it ends at the last tap, without an error."""
        self._caught.clear()
        self._calls.clear()
        self._inside.clear()
        self._stops = stops
        try:
            if self._operations:
                with Watching(self._operation):
                    yield
            else:
                yield
        except _Caught:
            pass

    @property
    def missing(self) -> list[Tap]:
        """Those that were not seen, or hold no tensor; not the logits, which the caller has."""
        return [tap for tap in self.wanted if tap not in self._caught and tap != _SAID]

    def take(self, logits: torch.Tensor) -> list[torch.Tensor]:
        """The values, in the order in which they were asked for, as the network lays them out."""
        found = [logits if tap == _SAID else self._caught[tap] for tap in self.wanted]
        self._caught.clear()
        return found

    def _catch(self, tap: Tap, value: object) -> None:
        found = first_tensor(value) if tap in self.wanted else None
        if found is not None:
            self._caught[tap] = found.clone()
            if self._stops and not self.missing and not self.waits:
                raise _Caught

    def _entering(self, layer: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._calls[layer] += 1
            self._catch(Tap(layer, self._calls[layer], "in"), (*args, *kwargs.values()))

        return hook

    def _leaving(self, layer: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: object) -> None:
            self._catch(Tap(layer, self._calls[layer]), output)

        return hook

    def _operation(self, name: str, value: object) -> None:
        layer = called(self._inside, name) if self._inside else ""
        if layer in self._operations:
            self._calls[layer] += 1
            self._catch(Tap(layer, self._calls[layer]), value)


def find_taps(name: str, net: nn.Module, taps: Sequence[Tap], run: Callable[[int], object]) -> dict[Tap, Tap]:
    """The taps of network `name` as it has them, node names of torch.fx replaced by layers and calls.

    ValueError, with the nearest names, where it has no such layer, or the layer is not called so often.
    """
    layers = {layer.name: layer for layer in list_layers(net, run)}
    found = {}
    for tap in taps:
        own = _named(tap, layers)
        layer = layers.get(own.layer)
        if layer is None and own.layer == LOGITS:
            raise ValueError(f"{name}: {tap}: it has no layer {LOGITS!r}; write {LOGITS} for what the network says")
        if layer is None and (first := _first_name(own.layer, net)):
            raise ValueError(f"{name}: {tap.layer} is the same layer as {first}; write {first}, also for its calls")
        if layer is None and own != _SAID:
            hint = did_you_mean(
                tap.layer, layers, "invert.py --list-layers, with the network as you named it, shows them", most=3
            )
            raise ValueError(f"{name} has no layer {tap.layer!r}; {hint}")
        if layer is not None and own.call > layer.calls:
            often = f"is called {layer.calls} time(s)" if layer.calls else "does not run in eval mode"
            raise ValueError(f"{name}: {tap}: the layer {often}")
        if own.side == "in" and own.layer.endswith("()"):
            raise ValueError(f"{name}: {tap}: of a function only what comes out can be had; leave out .in")
        found[tap] = own
    return found


def laid_out(name: str, tap: Tap, small: torch.Tensor, net: nn.Module) -> tuple[Tapped, int]:
    """How a value of two images is laid out, and the dimension of its channels.

    Images are square, so of four dimensions the two equal ones are the map; where all are equal, channels come first,
    as everywhere in PyTorch but after a LayerNorm over the last one. Of three, tokens have channels last, what Conv1d
    and BatchNorm1d see first. ValueError for a value that has not the images
    along its first dimension, or more dimensions than a map.
    """
    shape = tuple(small.shape)
    if len(shape) not in (2, 3, 4) or shape[0] != 2 or not small.is_floating_point():
        why = f"its value has shape {(*shape,)} for two images" if small.is_floating_point() else "it holds no numbers"
        raise ValueError(f"{name}: {tap} cannot be tapped: {why}; take a layer around it")
    if len(shape) == 2:
        return Tapped(shape[1]), 1
    module = dict(net.named_modules()).get(tap.layer)
    if len(shape) == 3 and _is_sequence(module, shape, net):
        return Tapped(shape[1], (shape[2],)), 1
    if len(shape) == 3:
        return Tapped(shape[2], (shape[1],), *_prefix(net, shape[1])), 2
    last = shape[1] == shape[2] != shape[3]
    if shape[1] == shape[2] == shape[3] and module is not None:
        last = isinstance(module, nn.Linear) or channel_dim(module, shape) == -1
    return (Tapped(shape[3], shape[1:3]), 3) if last else (Tapped(shape[1], shape[2:]), 1)


def _prefix(net: nn.Module, tokens: int) -> tuple[int | None, bool]:
    """How many tokens of a layer stand before those of patches, and whether the first is a class token.

    Images are square, so patches are a square number: a network whose class token joins later has none in the layers
    before, and one that does not say has none where the tokens are square, and elsewhere nobody knows.
    """
    named = {name.rpartition(".")[2] for name, _ in net.named_parameters()}
    has_class = bool(named & {"cls_token", "class_token"})
    alone = _is_square(tokens)
    said = (getattr(module, "num_prefix_tokens", None) for module in net.modules())
    declared = next((n for n in said if isinstance(n, int)), 1 if has_class and _is_square(tokens - 1) else None)
    if declared is None:
        return (0 if alone else None), False
    if declared >= tokens or (alone and not _is_square(tokens - declared)):
        return 0, False
    return int(declared), has_class and declared > 0


def _is_square(number: int) -> bool:
    return math.isqrt(number) ** 2 == number


def _is_sequence(module: nn.Module | None, shape: Sequence[int], net: nn.Module) -> bool:
    """Whether (N, C, L) and not tokens: by the layer, else by the layers of the network whose channels would fit."""
    firsts, lasts = (nn.Conv1d, nn.GroupNorm), (nn.Linear, nn.LayerNorm)
    if module is not None and (channels := _kept(module)) is not None:
        return channels == shape[1]
    if isinstance(module, firsts + lasts):
        return isinstance(module, firsts)
    modules = list(net.modules())
    fits = [_kept(other) == shape[1] for other in modules]
    fits += [shape[1] in (other.in_channels, other.out_channels) for other in modules if isinstance(other, nn.Conv1d)]
    others = [channels_of(other) == shape[2] for other in modules if isinstance(other, lasts)]
    others += [other.out_features == shape[2] for other in modules if isinstance(other, nn.Linear)]
    return any(fits) and not any(others)


def _kept(module: nn.Module) -> int | None:
    """The channels of a layer with running statistics, which it sees first; None for another."""
    mean = module._buffers.get("running_mean") if has_statistics(module) else None
    return len(mean) if mean is not None and mean.ndim == 1 else None


def _first_name(layer: str, net: nn.Module) -> str:
    """The name by which the layers go of a module that has this one too; empty where it has none, or this is it."""
    module = dict(net.named_modules(remove_duplicate=False)).get(layer)
    return next((name for name, other in net.named_modules() if other is module and name != layer), "")


def _named(tap: Tap, layers: dict[str, Layer]) -> Tap:
    """As the network has it; a layer that is itself called `.in`, `.out` or `#2` goes first."""
    if tap == Tap(LOGITS):
        return _SAID
    if tap.call > 1 and f"{tap.layer}#{tap.call}" in layers:
        return replace(tap, layer=f"{tap.layer}#{tap.call}", call=1)
    if tap.layer == f"{LOGITS}#1" and tap.layer not in layers:
        return Tap(LOGITS)
    if tap.side == "in" and f"{tap.layer}.in" in layers:
        return replace(tap, layer=f"{tap.layer}.in", side="out")
    if tap.layer not in layers and tap.layer.endswith(".out"):
        tap = replace(tap, layer=tap.layer.removesuffix(".out"))
    match = re.fullmatch(r"(.+)_([0-9]{1,9})", tap.layer) if tap.call == 1 else None
    for layer, call in ((tap.layer, tap.call), (match[1], int(match[2]) + 1) if match else (tap.layer, tap.call)):
        for name in (layer, f"{layer}()"):
            if name in layers:
                return replace(tap, layer=name, call=call)
    return tap
