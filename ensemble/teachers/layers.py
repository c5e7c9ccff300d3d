"""The layers of a network as it runs: their order, calls and shapes, and the functions called between them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ensemble.teachers.observing import has_statistics
from models import ModelCard, first_tensor, network_input, retold


class Layer(NamedTuple):
    """What a probe saw of a layer: its class, how often it is called, and its first call's shapes for one image."""

    name: str
    kind: str
    calls: int
    input: tuple[int, ...] | None
    output: tuple[int, ...] | None
    """None where it is no tensor with the images along its first dimension."""
    has_statistics: bool = False
    """Whether it keeps running statistics of its input, which BN matching can compare."""


class Watching(TorchFunctionMode):
    """Tells of every function that returns a tensor, outermost calls alone."""

    def __init__(self, tell: Callable[[str, object], None]) -> None:
        super().__init__()
        self._tell = tell

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        value = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if name != "__get__" and isinstance(value, torch.Tensor):
            plain = name.strip("_")
            self._tell(re.sub(r"^[ir](?=(add|sub|mul|truediv|matmul)$)", "", plain), value)
        return value


def list_layers(net: nn.Module, run: Callable[[int], object]) -> list[Layer]:
    """The layers of `net`, in the order in which they run; `run(n)` is a forward pass of n images.

    Layers that do not run come last, with 0 calls. Functions that a layer with layers within it calls stand among them,
    as `LAYER.FUNCTION()`.
    """
    seen: dict[str, list[Any]] = {}
    inside: list[str] = []
    handles = []

    def enter(name: str, module: nn.Module) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            inside.append(name)
            seen.setdefault(name, [type(module).__name__, 0, _shape((*args, *kwargs.values())), None])[1] += 1

        return hook

    def leave(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], output: object) -> None:
            inside.pop()
            if seen[name][1] == 1:
                seen[name][3] = _shape(output)

        return hook

    def operation(name: str, value: object) -> None:
        if inside and inside[-1] in parents:
            seen.setdefault(called(inside, name), ["function", 0, None, _shape(value)])[1] += 1

    modules = dict(net.named_modules())
    parents = {name for name, module in modules.items() if next(module.children(), None) is not None}
    for name, module in modules.items():
        handles.append(module.register_forward_pre_hook(enter(name, module), with_kwargs=True))
        handles.append(module.register_forward_hook(leave(name)))
    try:
        with torch.no_grad(), Watching(operation):
            run(2)
    finally:
        for handle in handles:
            handle.remove()
    keeps = {name for name, module in modules.items() if has_statistics(module)}
    ran = [Layer(name, kind, calls, x, y, name in keeps) for name, (kind, calls, x, y) in seen.items() if name]
    idle = [(name, type(module).__name__) for name, module in modules.items() if name not in seen]
    return ran + [Layer(name, kind, 0, None, None, name in keeps) for name, kind in idle]


def layers_of(net: nn.Module, card: ModelCard) -> list[Layer]:
    """`list_layers` at the network's own input size, in eval mode; ValueError where its forward pass fails."""
    blank = torch.full((2, 3, card.input_size, card.input_size), 0.5)
    net.eval()
    with retold(f"{card.name}: its forward pass fails on {card.input_size} pixels"):
        return list_layers(net, lambda images: net(network_input(blank[:images], card)))


def called(inside: Sequence[str], function: str) -> str:
    """The name of what a function returns that is called within these modules, the innermost last."""
    return f"{inside[-1]}.{function}()" if inside[-1] else f"{function}()"


def _shape(value: object) -> tuple[int, ...] | None:
    found = first_tensor(value)
    return tuple(found.shape[1:]) if found is not None and found.ndim and found.shape[0] == 2 else None
