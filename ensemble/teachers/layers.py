"""The layers of a network as it runs: their order and shapes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ensemble.teachers.copying import copied
from ensemble.teachers.observing import has_statistics
from models import ModelCard


@dataclass(frozen=True)
class Layer:
    """One call of a module that holds no other module."""

    name: str
    kind: str
    """Its class."""
    input: tuple[int, ...] | None
    """Shape for one image; None where it is no tensor."""
    output: tuple[int, ...] | None
    has_statistics: bool
    """Whether it keeps running statistics of its input, which BN matching can compare."""


def executed_layers(net: nn.Module, card: ModelCard) -> tuple[list[Layer], list[str]]:
    """The calls in the order in which a forward pass of one image makes them; names of layers with running
    statistics that it does not call. The network is left as it was. ValueError where its forward pass fails."""
    net = copied(net).eval()
    calls: list[Layer] = []
    with_statistics = {name for name, module in net.named_modules() if has_statistics(module)}

    def look(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            first = inputs[0] if inputs else None
            calls.append(Layer(name, type(module).__name__, _shape(first), _shape(output), name in with_statistics))

        return hook

    for name, module in net.named_modules():
        if name in with_statistics or not list(module.children()):
            module.register_forward_hook(look(name))
    parameter = next(net.parameters(), torch.zeros(()))
    grey = torch.zeros(1, 3, card.input_size, card.input_size, dtype=parameter.dtype, device=parameter.device)
    try:
        with torch.no_grad():
            net(grey)
    except Exception as error:  # a network may be anybody's
        raise ValueError(f"{card.name}: its forward pass fails on {card.input_size} pixels: {error}") from error
    return calls, sorted(with_statistics - {layer.name for layer in calls})


def _shape(value: Any) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, torch.Tensor) else None
