"""Look-up, and creation from NAME[:key=value][@WEIGHTS].

Names that are not in the table are asked of the zoos (EfficientNet-Lite, torchvision; timm below `timm/`), which are
imported only then.
"""

from __future__ import annotations

import difflib
import fnmatch
import hashlib
import importlib
import math
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from models._bundled import read_bundled, with_bundled
from models._card import Assumed, ModelCard, Weights, classes_of
from models._checkpoint import COUNTER, check_values, choose, without_normalizers
from models._installed import read_installed
from models._layouts import Layout, recognised
from models._loading import NETWORK, WeightsFile, fit, read_card, read_weights, sha256
from models._lock import first_alone
from models._plugins import load_entry_points
from models._said import (
    CARD_OPTIONS,
    by_options,
    of_file,
    warn_of_assumed,
    warn_of_layout,
    warn_of_normalizer,
    warn_once,
    yaml_card,
)
from models._spec import ModelSpec, convert_option, parse_spec
from models._table import TABLE, Entry
from models._trial import is_out_of_memory, reason_of, settle_lazy, usable
from models.edge_popup import METADATA, PAPER, SubnetRule, as_subnet, frozen, load_subnet, subnet_layers
from models.pruned import METADATA as PRUNED
from models.pruned import narrow

POPUP = "popup/"
"""Prefix of any network's name that asks for its edge-popup subnet."""
_RULE = {"k": math.nan, "init": "signed_constant", "scaled": False, "scope": "layer", "seed": 0}
"""Options of a subnet; k has to be given."""
_ZOOS = {"efficientnet_lite": "", "torchvision_zoo": "", "timm_zoo": "timm/"}
"""Module below `models`, and the prefix of its names: they are asked in this order."""
_LIBRARIES = {"efficientnet_lite": "torchvision", "torchvision_zoo": "torchvision", "timm_zoo": "timm"}
"""What must be installed for a zoo's names to be known."""
_WILDCARDS = r"[*?\[]"


def list_models(pattern: str | None = None) -> list[ModelCard]:
    """Cards of all networks whose names match (all without a pattern), the table's first.

    A pattern with `*`, `?` or `[` is a shell pattern for the whole name, any other text a part of it, in small or
    capital letters. No network is built and no weights are read. A zoo is imported only where the pattern could
    match its names; one whose library is not installed warns. Raises ValueError where a plugin fails.
    """
    load_entry_points()
    cards = [with_bundled(TABLE[name].card) for name in sorted(TABLE) if _matches(name, pattern)]
    for module, prefix in _ZOOS.items():
        if _may_match(prefix, pattern):
            try:
                zoo = _zoo(module)
            except ModuleNotFoundError as error:
                warnings.warn(f"networks of {module} are not listed: {error}", stacklevel=2)
                continue
            cards += zoo.cards(name for name in zoo.names() if name not in TABLE and _matches(name, pattern))
    return cards


def _matches(name: str, pattern: str | None) -> bool:
    if pattern is None:
        return True
    if re.search(_WILDCARDS, pattern):
        return fnmatch.fnmatchcase(name, pattern)
    return pattern.lower() in name.lower()


def _may_match(prefix: str, pattern: str | None) -> bool:
    """Whether `pattern` could match names that begin with `prefix`, behind which no slash follows."""
    if pattern is None:
        return True
    fixed, *rest = re.split(_WILDCARDS, pattern, maxsplit=1)
    if rest:
        return fixed.startswith(prefix) or prefix.startswith(fixed)
    head, slash, _ = fixed.lower().partition("/")
    return not slash or prefix.endswith(head + slash)


def model_card(spec: str | ModelSpec) -> ModelCard:
    """The card of NAME with its options applied; with `@TAG`, of those weights. No weights are read.

    What a FILE says about itself is read, as for `create_model`. Options that change the network take the published
    weights off its card, another `num_classes` also the class names and the label space. Raises ValueError for
    unknown names, bad options, and a file that is missing or is for another number of classes.
    """
    return _resolved(spec).card


def create_model(spec: str | ModelSpec) -> tuple[nn.Module, ModelCard]:
    """The network that `spec` names, on the CPU, in fp32 and eval mode, all parameters frozen; and its card.

    The card's `weights` holds just the record of those that were loaded, under its `default_weights`. `@random`
    draws the factory's own initialisation, seeded from NAME alone, and leaves the global generator as it is.

    In a FILE the weights may lie below any dictionaries and prefixes; what lies beside them is left out. Where raw
    and averaged weights stand side by side a warning says which were taken; `@FILE#ema` and `@FILE#model`, or any
    name in the file, choose. NaN and infinite values are refused.

    Of input size, mean, std, class names and label space the card says what the first of these says:

    1. options, which every network has beside those of its factory (which win where names are the same):
       `NAME:mean=0.5/0.4/0.3,std=0.25@FILE` with a number a channel or one for all, `input_size=64`, and
       `class_names=names.txt`, a file with a name a line (its path without spaces, commas and @);
    2. a YAML card beside FILE: net.pth has net.yaml, the last ending replaced (net.pth.yaml is not read), with
       entries among input_size, mean, std, class_names, label_space and num_classes;
    3. the metadata of FILE, where it is a safetensors file with an entry `card`;
    4. NAME's own card. Where this gives the mean or std of a user's FILE for a published network, or where
       nobody gives them, a warning says once what is assumed.

    Raises ValueError for unknown names, options and tags, for weights that are missing or do not fit, and for a
    card of a file that is malformed or for another number of classes.
    """
    resolved = _resolved(spec)
    parsed, entry, options, card = resolved.spec, resolved.entry, resolved.options, resolved.card
    tag = _weights_tag(entry, card, parsed)
    path = None if tag == "random" or tag in card.weights else parsed.path
    if card.num_classes < 1:
        raise ValueError(f"{card.name} has no classifier; give one as {card.name}:num_classes=N@FILE")
    with _seeded(_seed_of(card.name)):
        if tag == "random":
            net, record = frozen(_built(entry, options, card)), Weights(source="random")
        elif path is not None:
            record = Weights(source="file", file=str(path), sha256=sha256(path))
            weights = resolved.weights or read_weights(path)
            net = _with_weights(resolved.own_entry, resolved.implied or options, card, weights, parsed)
        elif card.weights[tag].source == "bundled":
            record = card.weights[tag]
            net = _with_weights(entry, options, card, read_bundled(record))
        elif card.weights[tag].source == "package":
            record = card.weights[tag]
            net = _with_weights(entry, options, card, read_installed(card, record))
        else:
            assert entry.fetch is not None
            record = card.weights[tag]
            with first_alone(f"{card.name}@{tag}"):
                net = entry.fetch(tag)
    if path is not None and resolved.layout is not None and not resolved.layout_said:
        warn_of_layout(card, path, resolved.layout)
    warn_of_assumed(card, path if entry.published else None, resolved.layout)
    card = replace(card, weights={tag: record}, default_weights=tag)
    return net.float().eval().requires_grad_(False), card


def files_of(spec: str) -> list[Path]:
    """The files that `create_model` reads because `spec` names them, and the YAML card, there or not."""
    parsed = parse_spec(spec)
    entry = _find(parsed)
    own = {key: text for key, text in parsed.options.items() if key not in entry.options}
    files = [Path(os.path.expanduser(own["class_names"]))] if "class_names" in own else []
    if parsed.path is not None and parsed.weights not in _card(entry, _options(entry, parsed)).weights:
        files += [parsed.path, yaml_card(parsed.path)]
    return files


def untrained_model(spec: str | ModelSpec, seed: int) -> tuple[nn.Module, ModelCard]:
    """The network to train that NAME[:key=value][@random] names, its parameters free, and its card.

    It is what the factory makes right after `torch.manual_seed(seed)`, on the CPU, in fp32 and training mode; the
    global generator keeps its state. Of a subnet only the scores are free.
    Raises ValueError as `model_card` does, and where `spec` asks for trained weights.
    """
    resolved = _resolved(spec)
    parsed, entry, options, card = resolved.spec, resolved.entry, resolved.options, resolved.card
    if parsed.weights not in ("default", "random"):
        raise ValueError(f"{parsed.name}@{parsed.weights} is trained; ask for {parsed.name}@random")
    if card.num_classes < 1:
        raise ValueError(f"{card.name} has no classifier; give one as {card.name}:num_classes=N@random")
    with _seeded(seed):
        return _built(entry, options, card).float(), card


@dataclass(frozen=True)
class _Resolved:
    """A specification, its entry, the factory's options, and the card with all that is said of it."""

    spec: ModelSpec
    entry: Entry
    options: dict[str, Any]
    card: ModelCard
    weights: WeightsFile | None = None
    """A file that had to be read for its layout."""
    layout: Layout | None = None
    implied: dict[str, Any] = field(default_factory=dict)
    """`options`, and those that the layout implies where the specification does not give them."""

    @property
    def own_entry(self) -> Entry:
        """The entry, which turns the layout's names into its own before all else."""
        if self.layout is None:
            return self.entry
        layout, adapt = self.layout, self.entry.adapt
        return replace(self.entry, adapt=lambda tensors: adapt(layout.adapt(tensors)))

    @property
    def layout_said(self) -> bool:
        """Whether the specification gives all options that the layout implies."""
        return all(key in self.spec.options or value == self.options[key] for key, value in self.implied.items())


def _resolved(spec: str | ModelSpec) -> _Resolved:
    parsed = parse_spec(spec) if isinstance(spec, str) else spec
    entry = _find(parsed)
    options = _options(entry, parsed)
    card = _card(entry, options)
    own = {key: text for key, text in parsed.options.items() if key not in entry.options}
    if parsed.path is None or parsed.weights in card.weights:
        return _Resolved(parsed, entry, options, by_options(card, own))
    if entry.published:  # the mean and std on its card are those of other weights
        card = replace(card, mean=Assumed(card.mean), std=Assumed(card.std))
    said = read_card(parsed.path)
    weights = read_weights(parsed.path) if entry.layouts else None
    found = recognised(entry.layouts, weights.tensors) if weights is not None else None
    layout, implied = found if found is not None else (None, {})
    if layout is not None and entry.published:
        mean, std = layout.mean_std(card.num_classes)
        card = replace(card, mean=Assumed(mean), std=Assumed(std))
    implied = options | {key: value for key, value in implied.items() if key not in parsed.options}
    card = by_options(of_file(card, parsed.path, said), own)
    return _Resolved(parsed, entry, options, card, weights, layout, implied)


def _built(entry: Entry, options: Mapping[str, Any], card: ModelCard) -> nn.Module:
    """What the factory makes; ValueError where it fails, or makes what no image can be inverted from."""
    try:
        net = usable(card.name, entry.factory(**options))
        settle_lazy(net, card)
    except ValueError:
        raise
    except Exception as error:  # a network may be anybody's
        if is_out_of_memory(error):
            raise
        raise ValueError(f"{card.name}: the network cannot be made: {reason_of(error)}") from error
    return net


def _with_weights(
    entry: Entry, options: Mapping[str, Any], card: ModelCard, weights: WeightsFile, spec: ModelSpec | None = None
) -> nn.Module:
    """The network with these weights, in the file that `spec` names, if one does."""
    net = _built(entry, options, card)
    if METADATA in weights.metadata:  # a compact subnet: its keys are not the network's
        return load_subnet(net, weights, card)
    where = str(weights.path)
    if spec is not None and (said := weights.metadata.get(NETWORK)) and not _is_of(spec, said):
        where += f" (which says that it is of {said})"
    wanted = {key: tuple(value.shape) for key, value in net.state_dict().items() if not key.endswith(COUNTER)}
    tensors, normalizer = without_normalizers(weights.tensors, wanted)
    chosen, said = choose(tensors, wanted, entry.adapt, card, where, None if spec is None else spec.part)
    warn_once(card, said)
    if normalizer is not None:
        warn_of_normalizer(card, weights.path, *normalizer)
    if subnet_layers(net):
        return load_subnet(net, replace(weights, tensors=chosen), card)
    if PRUNED in weights.metadata:
        narrow(net, chosen, where)
    used = {id(chosen[key]) for key in wanted if key in chosen}
    check_values({key: value for key, value in weights.tensors.items() if id(value) in used}, where)
    fit(net, chosen, card, where)
    return net


def _is_of(spec: ModelSpec, said: str) -> bool:
    """Whether that is the network that a file says it is of, with the same options."""
    try:
        other = parse_spec(said)
    except ValueError:  # a file may say anything
        return False
    return (other.name, dict(other.options)) == (spec.name, dict(spec.options))


def _find(spec: ModelSpec) -> Entry:
    load_entry_points()
    name = spec.name
    if name.startswith(POPUP):
        return _subnet_of(_find(replace(spec, name=name.removeprefix(POPUP))))
    if name in TABLE:
        entry = TABLE[name]
        return replace(entry, card=with_bundled(entry.card))
    names = list(TABLE)
    for module, prefix in _ZOOS.items():
        if not name.startswith(prefix) or (not prefix and "/" in name):
            continue
        try:
            zoo = _zoo(module)
        except ModuleNotFoundError as error:
            raise ValueError(
                f"unknown network {name!r}; {_LIBRARIES[module]}, which may know it, cannot be used ({error})"
            ) from None
        found: Entry | None = zoo.find(name, spec.weights)
        if found is not None:
            return found
        names += zoo.names()
    longer = sorted((known for known in names if known.startswith(name)), key=len)
    near = [*dict.fromkeys(longer + difflib.get_close_matches(name, names, n=3))][:3]
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise ValueError(
        f"unknown network {name!r}; {hint}list_models() (--list-models) shows all names, load_plugin(FILE) "
        "(--plugin FILE) adds one of your own"
    )


def _subnet_of(entry: Entry) -> Entry:
    """Any network as an edge-popup subnet: options of the rule beside its own, and no weights of its own."""
    if not entry.options.keys().isdisjoint(_RULE):
        raise ValueError(f"{entry.card.name} has options that edge-popup uses itself: {', '.join(_RULE)}")

    def factory(**options: Any) -> nn.Module:
        rule = {key: options.pop(key) for key in _RULE}
        if math.isnan(rule["k"]):
            raise ValueError(f"{card.name}: give the percentage of weights that are kept, as {card.name}:k=30")
        return as_subnet(_built(entry, options, entry.card), SubnetRule(**rule))

    card = replace(
        entry.card, name=POPUP + entry.card.name, family="edge_popup", weights={}, default_weights=None, citation=PAPER
    )
    options = {**entry.options, **_RULE}
    return replace(entry, card=card, factory=factory, options=options, fetch=None, layouts=())


def _zoo(module: str) -> ModuleType:
    return importlib.import_module(f"models.{module}")


def _options(entry: Entry, spec: ModelSpec) -> dict[str, Any]:
    """The factory's options; what else `spec` holds must be for the card."""
    options = dict(entry.options)
    for key, text in spec.options.items():
        if key not in options and key in CARD_OPTIONS:
            continue
        if key not in options:
            known = ", ".join(options) or "none"
            raise ValueError(
                f"{spec.name}: unknown option {key!r}; its options: {known}; for its card: {', '.join(CARD_OPTIONS)}"
            )
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
    classes = classes_of(options.get("num_classes", card.num_classes))
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
            options = ", ".join(f"{key}={value}" for key, value in spec.options.items() if key in entry.options)
            raise ValueError(f"{spec.name}: its default weights do not fit {options}; {way_out}")
        raise ValueError(f"{spec.name} has no default weights; {way_out}")
    if tag == "random" or tag in card.weights or spec.path is not None:
        return tag
    if tag in entry.card.weights:
        raise ValueError(f"{spec.name}: weights {tag!r} do not fit the options; {way_out}")
    known = ", ".join(card.weights) or "none"
    raise ValueError(f"{spec.name}: unknown weights {tag!r}; known: {known}; or {way_out}")


def _seed_of(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seeds the CPU generator, and puts back the state it had before."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed CUDA as well
        yield
