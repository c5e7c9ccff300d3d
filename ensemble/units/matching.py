"""Units of several networks that real images excite alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ensemble.objectives.activation import Activation
from ensemble.objectives.selection import parse_selection
from ensemble.runs.plan import unique_names
from ensemble.teachers.layers import layers_of
from ensemble.teachers.taps import Tap
from ensemble.teachers.teacher import Teacher
from ensemble.units.excitation import BATCH, Readers, in_unit_range
from ensemble.units.real import read_real
from models import ModelCard, create_model


@dataclass(frozen=True)
class Match:
    """A unit, and the unit of each other network that correlates with it most over real images."""

    unit: str
    others: tuple[str, ...]
    correlations: tuple[float, ...]

    @property
    def selection(self) -> str:
        """One image for all of them."""
        return " + ".join((self.unit, *self.others))


def correlation(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Pearson's, of the columns of (M, U) and (M, V): (U, V); 0 for a unit that never changes."""
    a, b = (x.double() - x.double().mean(0) for x in (a, b))
    sizes = a.norm(dim=0)[:, None] * b.norm(dim=0)
    return torch.where(sizes > 0, (a.T @ b) / sizes.clamp_min(torch.finfo(torch.float64).tiny), 0.0)


def matched(models: Sequence[str], units: Sequence[str], real: str | Path, split: str | None) -> list[Match]:
    """For each of `units`, NETWORK/LAYER:CHANNELS of one of the models, the best match in every other model.

    There, the channels of `searched` layers are compared, each as its mean over positions. Raises ValueError where a
    selection is of no one network, or there is no other.
    """
    names = unique_names(models)
    if len(names) < 2:
        raise ValueError("--match: name at least two networks, --models A B")
    networks = {name: create_model(model) for name, model in zip(names, models, strict=True)}
    size = max(card.input_size for _, card in networks.values())
    images = read_real(real, split, size)
    means: dict[str, dict[str, torch.Tensor]] = {}
    found = []
    for text in units:
        owners = {part.teacher for part in parse_selection(text)}
        if len(owners) != 1 or not owners <= {*names}:
            raise ValueError(f"units: {text!r}: for --match each selection is of one network, as {names[0]}/LAYER:7")
        (owner,) = owners
        readers = Readers({owner: networks[owner]}, Activation(text))
        own = readers(images)
        best: list[list[tuple[str, float]]] = []
        for name in names:
            if name != owner:
                if name not in means:
                    means[name] = channel_means(name, networks[name], images)
                best.append(_best(own, name, means[name]))
        for unit, partners in zip(readers.names, zip(*best, strict=True), strict=True):
            found.append(Match(unit, tuple(name for name, _ in partners), tuple(r for _, r in partners)))
    return found


def searched(net: nn.Module, card: ModelCard) -> list[str]:
    """The layers in which matches are looked for: of each shape of maps that the network has, the last one's output.

    The last is the one that returns last: a block does after all within it.
    """
    layers = {layer.name: layer for layer in layers_of(net, card) if layer.calls == 1 and layer.kind != "function"}
    maps = {layers[name].output: name for name in _by_end(layers) if len(layers[name].output or ()) == 3}
    return list(maps.values())


def _by_end(names: Iterable[str]) -> list[str]:
    """Layers in the order in which they begin, in the order in which they end."""
    running: list[str] = []
    ended: list[str] = []
    for name in names:
        while running and not name.startswith(f"{running[-1]}."):
            ended.append(running.pop())
        running.append(name)
    return ended + running[::-1]


@torch.no_grad()
def channel_means(name: str, network: tuple[nn.Module, ModelCard], images: torch.Tensor) -> dict[str, torch.Tensor]:
    """How much images (M, 3, H, W) excite each channel of the `searched` layers, averaged over positions: (M, C) each.

    Images are uint8, or RGB in [0, 1]. ValueError where there is no such layer.
    """
    net, card = network
    teacher = Teacher(name, net, card)
    taps = [Tap(layer) for layer in searched(net, card)]
    if not taps:
        raise ValueError(f"{name}: no layer returns maps, and units are matched among their channels; leave it out")
    teacher.tap(taps, alone=True)
    parts: dict[str, list[torch.Tensor]] = {tap.layer: [] for tap in taps}
    for batch in images.split(BATCH):
        for tap, value in teacher.observe(in_unit_range(batch)).taps.items():
            parts[tap.layer].append(value.flatten(2).mean(2))
    return {layer: torch.cat(values) for layer, values in parts.items()}


def _best(own: torch.Tensor, name: str, means: Mapping[str, torch.Tensor]) -> list[tuple[str, float]]:
    """Of each unit whose excitations are `own`'s columns: the unit of `means` that correlates most, and how much."""
    layers = [(layer, k) for layer, values in means.items() for k in range(values.shape[1])]
    values, places = correlation(own, torch.cat([*means.values()], 1)).max(1)
    units = ["{}/{}:{}".format(name, *layers[place]) for place in places.tolist()]
    return list(zip(units, values.tolist(), strict=True))
