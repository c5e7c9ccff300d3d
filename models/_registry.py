"""The one table of networks: registration, look-up, and creation from NAME[:key=value][@WEIGHTS].

Names that are not in the table are asked of the zoos (torchvision; timm below `timm/`), which are imported
only then.
"""

from __future__ import annotations

import difflib
import fnmatch
import hashlib
import importlib
import inspect
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, TypeVar

import torch
from torch import nn

from models._bundled import read_bundled, with_bundled
from models._card import ModelCard, Weights
from models._loading import described, fit, read_card, read_weights, sha256
from models._spec import ModelSpec, convert_option, parse_spec
from models.edge_popup import PAPER, SubnetRule, as_subnet, frozen, load_subnet, subnet_layers

Factory = Callable[..., nn.Module]
FactoryT = TypeVar("FactoryT", bound=Factory)
Tensors = dict[str, torch.Tensor]


def _unchanged(tensors: Tensors) -> Tensors:
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
    adapt: Callable[[Tensors], Tensors] = _unchanged
    """Turns a file's keys into the network's."""


_TABLE: dict[str, Entry] = {}
POPUP = "popup/"
"""Prefix of any network's name that asks for its edge-popup subnet."""
_RULE = {"k": math.nan, "init": "signed_constant", "scaled": False, "scope": "layer", "seed": 0}
"""Options of a subnet; k has to be given."""
_ZOOS = {"torchvision_zoo": "", "timm_zoo": "timm/"}
"""Module below `models`, and the prefix of its names."""


def register_model(card: ModelCard) -> Callable[[FactoryT], FactoryT]:
    """A decorator that enters a factory `f(num_classes=10, ...) -> nn.Module` under `card.name`.

    The factory's parameters all have defaults (bool, int, float or str) and become the options of
    `NAME:key=value`; its network maps normalised images (N, 3, H, W) to logits (N, num_classes).
    Raises ValueError for a name that is taken or cannot be written in a specification, and for a factory
    with other parameters.
    """
    if not re.fullmatch(r"[\w.+-]+", card.name):
        raise ValueError(f"network name {card.name!r}: only letters, digits and _ . + - may stand in it")
    if card.name in _TABLE:
        raise ValueError(f"network name {card.name!r} is already registered; choose another")

    def register(factory: FactoryT) -> FactoryT:
        options = {name: p.default for name, p in inspect.signature(factory).parameters.items()}
        for name, default in options.items():
            if not isinstance(default, bool | int | float | str):
                raise ValueError(f"{card.name}: option {name!r} needs a default that is a bool, int, float or str")
        if options.get("num_classes", card.num_classes) != card.num_classes:
            raise ValueError(f"{card.name}: num_classes is {card.num_classes} on the card, not in the factory")
        _TABLE[card.name] = Entry(card, factory, options)
        return factory

    return register


@contextmanager
def undone_on_error() -> Iterator[set[str]]:
    """Yields a set, filled at the end with the names registered inside; an exception takes them back."""
    before, names = dict(_TABLE), set[str]()
    try:
        yield names
    except BaseException:
        _TABLE.clear()
        _TABLE.update(before)
        raise
    names.update(_TABLE.keys() - before.keys())


def list_models(pattern: str | None = None) -> list[ModelCard]:
    """Cards of all networks whose names match the shell pattern (all without one), the table's first.

    No network is built and no weights are read. A zoo is imported only where the pattern could match its
    names; one whose library is not installed warns. Raises ValueError where a plugin fails.
    """
    _load_entry_points()
    cards = [with_bundled(_TABLE[name].card) for name in sorted(_TABLE)]
    fixed = re.split(r"[*?\[]", pattern or "*")[0]
    for zoo, prefix in _ZOOS.items():
        if fixed.startswith(prefix) or prefix.startswith(fixed):
            try:
                cards += [card for card in _zoo(zoo).cards() if card.name not in _TABLE]
            except ModuleNotFoundError as error:
                warnings.warn(f"networks of {zoo} are not listed: {error}", stacklevel=2)
    return [card for card in cards if pattern is None or fnmatch.fnmatchcase(card.name, pattern)]


def model_card(spec: str | ModelSpec) -> ModelCard:
    """The card of NAME with its options applied; with `@TAG`, of those weights. No weights are read.

    Of a safetensors FILE, what it says about itself is read. Options that change the network take the published
    weights off its card, another `num_classes` also the class names and the label space. Raises ValueError for
    unknown names, bad options, and a file that is missing or is for another number of classes.
    """
    parsed = parse_spec(spec) if isinstance(spec, str) else spec
    entry = _find(parsed)
    card = _card(entry, _options(entry, parsed))
    if parsed.path is None or parsed.weights in card.weights:
        return card
    return described(card, read_card(parsed.path), parsed.path)


def create_model(spec: str | ModelSpec) -> tuple[nn.Module, ModelCard]:
    """The network that `spec` names, on the CPU, in fp32 and eval mode, all parameters frozen; and its card.

    The card's `weights` holds just the record of those that were loaded, under its `default_weights`; input
    convention and classes are what the weights file says, where it says anything. `@random` draws the
    factory's own initialisation, seeded from NAME alone, and leaves the global generator as it is.
    Raises ValueError for unknown names, options and tags, and for weights that are missing or do not fit.
    """
    parsed = parse_spec(spec) if isinstance(spec, str) else spec
    entry = _find(parsed)
    options = _options(entry, parsed)
    card = _card(entry, options)
    tag = _weights_tag(entry, card, parsed)
    if card.num_classes < 1:
        raise ValueError(f"{card.name} has no classifier; give one as {card.name}:num_classes=N@FILE")
    with _seeded(card.name):
        if tag == "random":
            net, record = frozen(entry.factory(**options)), Weights(source="random")
        elif tag in card.weights and card.weights[tag].source != "bundled":
            assert entry.fetch is not None
            net, record = entry.fetch(tag), card.weights[tag]
        else:
            net, record, card = _from_file(entry, options, card, parsed, tag)
    card = replace(card, weights={tag: record}, default_weights=tag)
    return net.float().eval().requires_grad_(False), card


def _from_file(
    entry: Entry, options: Mapping[str, Any], card: ModelCard, parsed: ModelSpec, tag: str
) -> tuple[nn.Module, Weights, ModelCard]:
    if tag in card.weights:
        record = card.weights[tag]
        weights = read_bundled(record)
    else:
        assert parsed.path is not None
        weights = read_weights(parsed.path)
        record = Weights(source="file", file=str(parsed.path), sha256=sha256(parsed.path))
    card = described(card, weights.card, weights.path)
    net = entry.factory(**options)
    weights = replace(weights, tensors=entry.adapt(weights.tensors))
    if subnet_layers(net):
        net = load_subnet(net, weights, card)
    else:
        fit(net, weights.tensors, card, str(weights.path))
    return net, record, card


def _find(spec: ModelSpec) -> Entry:
    _load_entry_points()
    name = spec.name
    if name.startswith(POPUP):
        return _subnet_of(_find(replace(spec, name=name.removeprefix(POPUP))))
    if name in _TABLE:
        entry = _TABLE[name]
        return replace(entry, card=with_bundled(entry.card))
    module = "timm_zoo" if name.startswith("timm/") else "torchvision_zoo"
    library = module.removesuffix("_zoo")
    try:
        zoo = _zoo(module)
    except ModuleNotFoundError as error:
        raise ValueError(f"unknown network {name!r}; {library}, which may know it, cannot be used ({error})") from None
    found: Entry | None = zoo.find(name, spec.weights)
    if found is None:
        near = difflib.get_close_matches(name, [*_TABLE, *zoo.names()], n=3)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise ValueError(f"unknown network {name!r}; {hint}--list-models shows all names")
    return found


def _subnet_of(entry: Entry) -> Entry:
    """Any network as an edge-popup subnet: options of the rule beside its own, and no weights of its own."""
    if not entry.options.keys().isdisjoint(_RULE):
        raise ValueError(f"{entry.card.name} has options that edge-popup uses itself: {', '.join(_RULE)}")

    def factory(**options: Any) -> nn.Module:
        rule = {key: options.pop(key) for key in _RULE}
        if math.isnan(rule["k"]):
            raise ValueError(f"{card.name}: give the percentage of weights that are kept, as {card.name}:k=30")
        return as_subnet(entry.factory(**options), SubnetRule(**rule))

    card = replace(
        entry.card, name=POPUP + entry.card.name, family="edge_popup", weights={}, default_weights=None, citation=PAPER
    )
    return Entry(card, factory, {**entry.options, **_RULE}, adapt=entry.adapt)


def _zoo(module: str) -> ModuleType:
    return importlib.import_module(f"models.{module}")


def _load_entry_points() -> None:
    from models._plugins import load_entry_points  # it needs this module

    load_entry_points()


def _options(entry: Entry, spec: ModelSpec) -> dict[str, Any]:
    options = dict(entry.options)
    for key, text in spec.options.items():
        if key not in options:
            known = ", ".join(options) or "none"
            raise ValueError(f"{spec.name}: unknown option {key!r}; its options: {known}")
        try:
            options[key] = convert_option(text, options[key])
        except ValueError as error:
            raise ValueError(f"{spec.name}: option {key!r}: {error}") from None
    if "num_classes" in spec.options and options["num_classes"] < 1:
        raise ValueError(f"{spec.name}: num_classes must be at least 1, got {options['num_classes']}")
    return options


def _card(entry: Entry, options: Mapping[str, Any]) -> ModelCard:
    card = entry.card
    if options == entry.options:
        return card
    card = replace(card, weights={}, default_weights=None)
    classes = options.get("num_classes", card.num_classes)
    if classes != card.num_classes:
        card = replace(card, num_classes=classes, class_names=(), label_space="")
    return card


def _weights_tag(entry: Entry, card: ModelCard, spec: ModelSpec) -> str:
    """The tag on the card, `random`, or the path's text."""
    way_out = f"give a file as {spec.name}@FILE, or untrained weights as {spec.name}@random"
    tag = spec.weights
    if tag == "default":
        if card.default_weights is not None:
            return card.default_weights
        if entry.card.default_weights is not None:
            options = ", ".join(f"{key}={value}" for key, value in spec.options.items())
            raise ValueError(f"{spec.name}: its default weights do not fit {options}; {way_out}")
        raise ValueError(f"{spec.name} has no default weights; {way_out}")
    if tag == "random" or tag in card.weights or spec.path is not None:
        return tag
    if tag in entry.card.weights:
        raise ValueError(f"{spec.name}: weights {tag!r} do not fit the options; {way_out}")
    known = ", ".join(card.weights) or "none"
    raise ValueError(f"{spec.name}: unknown weights {tag!r}; known: {known}; or {way_out}")


@contextmanager
def _seeded(name: str) -> Iterator[None]:
    """Seeds the CPU generator from `name`, and puts back the state it had before."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed CUDA as well
        yield
