"""The one table of networks, and how a network gets into it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from models._card import ModelCard, classes_of
from models._layouts import Layout

Factory = Callable[..., nn.Module]
FactoryT = TypeVar("FactoryT", bound=Factory)
Tensors = dict[str, torch.Tensor]


def unchanged(tensors: Tensors) -> Tensors:
    return tensors


@dataclass(frozen=True)
class Entry:
    """What the table or a zoo knows of one name."""

    card: ModelCard
    factory: Factory
    options: Mapping[str, Any]
    """The factory's keyword options and their defaults."""
    fetch: Callable[[str], nn.Module] | None = None
    """The network with the weights of a tag that is not bundled; ValueError where they cannot be had."""
    adapt: Callable[[Tensors], Tensors] = unchanged
    """Turns a file's keys into the network's."""
    published: bool = True
    """The card's mean and std are those of published weights; a user's file may be for others."""
    layouts: tuple[Layout, ...] = ()
    """How other projects save this network."""


TABLE: dict[str, Entry] = {}


def register_model(
    card: ModelCard,
    *,
    published: bool = False,
    layouts: tuple[Layout, ...] = (),
    adapt: Callable[[Tensors], Tensors] = unchanged,
) -> Callable[[FactoryT], FactoryT]:
    """A decorator that enters a factory `f(num_classes=10, ...) -> nn.Module` under `card.name`.

    The factory's parameters all have defaults (bool, int, float or str) and become the options of
    `NAME:key=value`; its network maps normalised images (N, 3, H, W) to logits (N, num_classes).
    Say `published` of an architecture that others train too: the card's mean and std are then not taken for
    those of any weights file, and `create_model` warns of a file that does not say its own. `layouts` are other
    projects' names for its tensors, `adapt` what is done to them after that.
    Raises ValueError for a name that is taken or cannot be written in a specification, and for a factory
    with other parameters.
    """
    if not re.fullmatch(r"[\w.+-]+", card.name):
        raise ValueError(f"network name {card.name!r}: only letters, digits and _ . + - may stand in it")
    if card.name in TABLE:
        raise ValueError(f"network name {card.name!r} is already registered; choose another")

    def register(factory: FactoryT) -> FactoryT:
        options = {name: p.default for name, p in inspect.signature(factory).parameters.items()}
        for name, default in options.items():
            if not isinstance(default, bool | int | float | str):
                raise ValueError(f"{card.name}: option {name!r} needs a default that is a bool, int, float or str")
        if classes_of(options.get("num_classes", card.num_classes)) != card.num_classes:
            raise ValueError(f"{card.name}: num_classes is {card.num_classes} on the card, not in the factory")
        TABLE[card.name] = Entry(card, factory, options, adapt=adapt, published=published, layouts=layouts)
        return factory

    return register


@contextmanager
def undone_on_error() -> Iterator[set[str]]:
    """Yields a set, filled at the end with the names registered inside; an exception takes them back."""
    before, names = dict(TABLE), set[str]()
    try:
        yield names
    except BaseException:
        TABLE.clear()
        TABLE.update(before)
        raise
    names.update(TABLE.keys() - before.keys())
