"""The networks of a run by their names in its recipe: modules in memory, and all that `models` knows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from warnings import warn_explicit

import torch
from torch import nn

from ensemble.machine.checkpoint import checksum
from ensemble.teachers.copying import copied
from models import (
    Assumed,
    ModelCard,
    create_model,
    files_of,
    has_lazy_layers,
    model_card,
    network_logits,
    parse_spec,
    retold,
    sha256,
    usable,
)

OWN = "own"
"""The family of modules that come without a card."""
_LUMINANCE_MEAN, _LUMINANCE_STD = 0.459, 0.226
"""ImageNet's, of what a network of one channel sees."""
Named = str | nn.Module | tuple[nn.Module, ModelCard]
"""A network: its name as on the command line, a module, or a module with its card."""


@dataclass(frozen=True)
class Networks:
    """Looks networks up."""

    in_memory: Mapping[str, tuple[nn.Module, ModelCard]] = field(default_factory=dict)
    """By a name in angle brackets, which no registered network has."""

    @cached_property
    def digests(self) -> dict[str, str]:
        """A digest of each module's parameters and buffers, by which a run knows it again."""
        return {name: checksum(module.state_dict()) for name, (module, _) in self.in_memory.items()}

    def card(self, name: str) -> ModelCard:
        """Its card; ValueError for unknown names."""
        if name in self.in_memory:
            return self.in_memory[name][1]
        _check_not_in_memory(name)
        return model_card(name)

    def create(self, name: str) -> tuple[nn.Module, ModelCard]:
        """The network with its weights, and its card; a module in memory is the user's own and must stay as it is."""
        if name in self.in_memory:
            return self.in_memory[name]
        _check_not_in_memory(name)
        return create_model(name)

    def files(self, name: str) -> list[str]:
        """Where its weights and what is said of them are read from; none where no file is named."""
        return [] if name in self.in_memory else [str(file) for file in files_of(name)]

    def taught(self, judge: str, teachers: Iterable[str]) -> bool:
        """Whether the network `judge` has the weights of one of the teachers, whatever name each goes by.

        What cannot be known, of files and networks that are not here, is taken for no.
        """
        own = self._weights(judge)
        return any(own & self._weights(teacher) for teacher in teachers)

    def _weights(self, name: str) -> set[object]:
        """What tells a network's weights from others': how they are named, and their digest where it is known."""
        if name in self.in_memory:
            return {self.digests[name]}
        try:
            spec, card = parse_spec(name), self.card(name)
        except ValueError:  # a module in another process' memory, or a network of somebody else's
            return set()
        tag = card.default_weights if spec.weights == "default" else spec.weights
        if spec.path is not None and tag not in card.weights:
            return {sha256(spec.path)}
        record = card.weights.get(tag or "")
        named = (spec.name, *sorted(spec.options.items()), tag)
        return {named, record.sha256} if record and record.sha256 else {named}


def named_networks(
    networks: Sequence[Named],
    taken: Mapping[str, tuple[nn.Module, ModelCard]],
    *,
    input_size: int | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    class_names: Sequence[str],
) -> tuple[list[str], dict[str, tuple[nn.Module, ModelCard]]]:
    """The names under which a recipe has these networks, and those of them that are modules, with their cards.

    A module without a card needs `input_size`; how many classes it has is read off its logits for a grey image.
    Names in `taken` are not given again. Raises ValueError for what is neither a name, a module nor a pair.
    """
    names: list[str] = []
    modules = dict(taken)
    for network in networks:
        if isinstance(network, str):
            names.append(network)
            continue
        module, card = network if isinstance(network, tuple) and len(network) == 2 else (network, None)
        if not isinstance(module, nn.Module) or not isinstance(card, ModelCard | None):
            raise ValueError(
                f"teachers: expected a name, a module, or a pair (module, ModelCard), got {type(network).__name__}"
            )
        own = card.name if card is not None else type(getattr(module, "_orig_mod", module)).__name__
        name = _free_name(own, modules)
        shown = name.strip("<>")
        module = usable(shown, module)
        if has_lazy_layers(module):
            raise ValueError(f"{shown} has lazy layers without a shape; call it once with a batch of images")
        if card is None:
            if input_size is None:
                raise ValueError(f"teachers: {shown} comes without a ModelCard; say input_size=, in pixels")
            card = _card_of(module, shown, input_size, mean, std, class_names)
        if card.assumed:
            warn_explicit(
                f"{shown} comes without {' and '.join(card.assumed)}; ImageNet's are assumed (say mean= and std=, "
                "of RGB in [0, 1])", UserWarning, f"<{shown}>", 1,
            )  # fmt: skip
        modules[name] = module, card
        names.append(name)
    return names, {name: pair for name, pair in modules.items() if name not in taken}


def _free_name(base: str, taken: Mapping[str, object]) -> str:
    name, n = f"<{base}>", 1
    while name in taken:
        n += 1
        name = f"<{base}-{n}>"
    return name


def _card_of(
    module: nn.Module,
    name: str,
    input_size: int,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    class_names: Sequence[str],
) -> ModelCard:
    """The card of a bare module: what the caller says, and the number of its logits."""
    channels, classes = _probed(module, name, input_size)
    about: dict[str, tuple[float, ...]] = {}
    for key, said, assumed in (("mean", mean, _LUMINANCE_MEAN), ("std", std, _LUMINANCE_STD)):
        if said is None and channels == 1:
            about[key] = Assumed((assumed,))
        elif said is not None:
            about[key] = tuple(said) if len(said) == channels or len(set(said)) != 1 else (said[0],) * channels
            if len(about[key]) != channels:
                raise ValueError(
                    f"{name} takes {channels} channel{'s' * (channels > 1)}, and {key} has {len(said)} numbers; give "
                    "one number, or (module, ModelCard(...)) for each network"
                )
    return ModelCard(name, OWN, input_size, classes, class_names=tuple(class_names), **about)  # type: ignore[arg-type]


def _probed(module: nn.Module, name: str, input_size: int) -> tuple[int, int]:
    """How many channels a bare module takes, three or else one, and how many classes its logits tell apart."""
    parameter = next(module.parameters(), torch.zeros(()))
    with retold(name):
        net = copied(module).eval()
    errors = []
    for channels in (3, 1):
        grey = torch.zeros(1, channels, input_size, input_size, dtype=parameter.dtype, device=parameter.device)
        try:
            with torch.no_grad():
                return channels, int(network_logits(net(grey), len(grey)).shape[1])
        except Exception as error:  # a network may be anybody's
            errors.append(error)
    where = f"{name}: no logits (N, classes) for an image of {input_size} x {input_size}"
    raise ValueError(f"{where}: {errors[0]}") from errors[0]


def _check_not_in_memory(name: str) -> None:
    if name.startswith("<"):
        raise ValueError(
            f"teachers: {name} was a module in memory, which a recipe cannot hold; give it again from Python, "
            "as invert([(module, card)], ...)"
        )
