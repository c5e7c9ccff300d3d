"""The page: one HTML file that needs no other and no network."""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Sequence
from functools import cache
from itertools import accumulate
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ensemble.machine.words import plural
from ensemble.report import tables
from ensemble.report.reading import Layer, Picture, Reading, Run
from ensemble.report.thumbnails import data_uris, maps, shown_width, side_of

FIRST = 48
"""Pictures shown at once; a button shows more."""
_COLOURS = 8
_WORST = 3


def page(runs: Sequence[Run]) -> str:
    """The report on these runs, the first one's classes and settings first."""
    networks = list(dict.fromkeys(network.name for run in runs for network in run.networks))
    chips = {name: Chip(name, _letter(i), i % _COLOURS) for i, name in enumerate(networks)}
    index = _Index(runs, networks)
    cards = [
        Card(run, number, picture, Markup(uri), index.position(number, picture), chips)
        for number, run in enumerate(runs)
        for picture, uri in zip(run.pictures, data_uris(run.images), strict=True)
    ]
    values = {
        "compared": any(card.picture.agreement is not None for card in cards),
        "runs": [_about(run) for run in runs],
        "chips": list(chips.values()),
        "classes": index.classes(),
        "readings": index.names,
        "groups": _groups(cards, index, len(runs)),
        "cards": sorted(cards, key=lambda card: index.order[card.picture.name]),
        "first": FIRST,
        "summary": _summary(runs, chips),
        "worst": _worst(runs, chips),
        "layers": _layer_tables(runs, chips),
        "events": [(run.label, c.trial, step, text) for run in runs for c in run.curves for step, text in c.events],
        "settings": tables.settings(runs),
        "facts": tables.facts(runs),
        "width": max(shown_width(run.images) for run in runs),
        "data": index.data(),
        "style": Markup(_source("page.css")),
        "script": Markup(_source("page.js")),
    }
    return _environment().get_template("page.html").render(values)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("ensemble.report", "template"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = percent
    return environment


def _source(name: str) -> str:
    environment = _environment()
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


def percent(value: float | None) -> str:
    """One digit after the point; what is not quite all, or nothing, does not read as if it were."""
    if value is None:
        return "–"
    if 0.999 < value < 1:
        return ">99.9 %"
    if 0 < value < 0.001:
        return "<0.1 %"
    return f"{value * 100:.0f} %" if value in (0, 1) else f"{value * 100:.1f} %"


class Chip:
    """How a network is marked wherever it appears: a letter, and one of eight colours."""

    def __init__(self, name: str, letter: str, colour: int) -> None:
        self.name, self.letter, self.colour = name, letter, colour


def _letter(i: int) -> str:
    letters = string.ascii_uppercase
    return letters[i] if i < len(letters) else str(i + 1)


class Card:
    """A picture of the page."""

    def __init__(
        self, run: Run, number: int, picture: Picture, uri: Markup, position: int, chips: dict[str, Chip]
    ) -> None:
        self.run, self.number, self.picture, self.uri, self.position = run, number, picture, uri, position
        said = {reading.network: reading for reading in picture.readings}
        self.readings = [(chip, said[name]) for name, chip in chips.items() if name in said]

    @property
    def alt(self) -> str:
        """All that the card says."""
        said = "; ".join(
            f"{reading.network} reads {reading.name}, {percent(_sure(reading))}" for reading in self.picture.readings
        )
        said += "".join(f"; {label} {value:.3g}" for label, value in self.picture.excited)
        if self.picture.agreement is not None:
            said += f"; mean cosine between the teachers' gradients {self.picture.agreement:.2f}"
        return f"Image {self.picture.index} of {self.run.label}, made as {self.picture.name}. {said}"


def _sure(reading: Reading) -> float | None:
    """The probability of what was read, where it is known."""
    return reading.of_target if reading.right else reading.of_reading


class _Index:
    """Numbers for names, and the data that the script works with."""

    def __init__(self, runs: Sequence[Run], networks: Sequence[str]) -> None:
        self.runs, self.networks = runs, networks
        targets = [picture.name for run in runs for picture in sorted(run.pictures, key=lambda picture: picture.target)]
        self.order = {name: i for i, name in enumerate(dict.fromkeys(targets))}
        read = (reading.name for run in runs for picture in run.pictures for reading in picture.readings)
        self.names = list(dict.fromkeys([*self.order, *sorted(set(read))]))
        self._counts = Counter(targets)
        self._before = [0, *accumulate(len(run.pictures) for run in runs)]

    def position(self, run: int, picture: Picture) -> int:
        """Of a picture among those of all runs."""
        return self._before[run] + picture.index

    def classes(self) -> list[tuple[str, int]]:
        """Names of targets, and how many images each has."""
        return [(name, self._counts[name]) for name in self.order]

    def data(self) -> dict[str, Any]:
        return {
            "first": FIRST,
            "runs": [run.label for run in self.runs],
            "networks": self.networks,
            "names": self.names,
            "teachers": [
                [self.networks.index(network.name) for network in run.networks if network.role == "teacher"]
                for run in self.runs
            ],
            "pictures": self._pictures(),
            "stages": [run.stages for run in self.runs],
            "curves": [
                [{"trial": c.trial, "series": c.series, "events": c.events} for c in run.curves] for run in self.runs
            ],
            "maps": [[] if run.maps is None else [*maps(run.maps)] for run in self.runs],
            "layers": [
                {
                    name: [[x.name, x.mean, x.variance, x.mean_level, x.variance_level] for x in layers]
                    for name, layers in run.layers.items()
                }
                for run in self.runs
            ],
        }

    def _pictures(self) -> list[list[Any]]:
        """[run, index, target, trial, agreement, readings], each [network, class, right, P(target), P(class)]."""
        place = {name: i for i, name in enumerate(self.names)}
        network = {name: i for i, name in enumerate(self.networks)}
        return [
            [
                number,
                picture.index,
                place[picture.name],
                picture.trial,
                picture.agreement,
                [
                    [network[r.network], place[r.name], int(r.right), round(r.of_target, 6), _rounded(_sure(r))]
                    for r in sorted(picture.readings, key=lambda r: network[r.network])
                ],
            ]
            for number, run in enumerate(self.runs)
            for picture in run.pictures
        ]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def _groups(cards: Sequence[Card], index: _Index, runs: int) -> list[tuple[str, list[list[Card]], bool]]:
    """For several runs, by class: its name, the cards of each run, and whether it is shown at once."""
    if runs == 1:
        return []
    found: dict[str, list[list[Card]]] = {name: [[] for _ in range(runs)] for name in index.order}
    for card in cards:
        found[card.picture.name][card.number].append(card)
    groups, before = [], 0
    for name, cells in found.items():
        groups.append((name, cells, before < FIRST))
        before += sum(map(len, cells))
    return groups


def _about(run: Run) -> dict[str, Any]:
    own, side = max(run.images.shape[-2:]), side_of(run.images)
    classes = len({picture.target for picture in run.pictures})
    return {
        "label": run.label,
        "images": len(run.images),
        "kinds": plural(classes, "unit" if run.pictures[0].excited else "class"),
        "width": run.images.shape[-1],
        "height": run.images.shape[-2],
        "small": own <= 80,
        "reduced": f"reduced from {own} to {side} pixels here" if side < own else "",
        "shown": shown_width(run.images),
        "command": tables.command(run),
        "command_kept": bool(run.summary.get("command")),
        "notes": tables.notes(run),
        "stopped": bool(run.summary.get("stopped")),
        "seconds": run.summary.get("wall_seconds"),
    }


def _summary(runs: Sequence[Run], chips: dict[str, Chip]) -> list[dict[str, Any]]:
    """A row a network and run: what it reads."""
    rows = []
    for chip in chips.values():
        for number, run in enumerate(runs):
            for network in run.networks:
                if network.name != chip.name:
                    continue
                sure = [r.of_target for p in run.pictures for r in p.readings if r.network == chip.name]
                right = [r.right for p in run.pictures for r in p.readings if r.network == chip.name]
                rows.append(
                    {
                        "chip": chip,
                        "run": number,
                        "role": network.role,
                        "accuracy": sum(right) / len(right) if right else network.accuracy,
                        "right": f"{sum(right)} of {len(right)}" if right else "",
                        "interval": network.interval,
                        "mean": sum(sure) / len(sure) if sure else None,
                        "losses": [(key, f"{value:.4g}") for key, value in network.losses.items()],
                    }
                )
    return rows


def _worst(runs: Sequence[Run], chips: dict[str, Chip]) -> list[tuple[Chip | None, int, str, list[Layer]]]:
    """By teacher and run, the layers furthest away."""
    return [
        (chips.get(name), number, name, sorted(layers, key=lambda layer: -layer.distance)[:_WORST])
        for name in dict.fromkeys(name for run in runs for name in run.layers)
        for number, run in enumerate(runs)
        if (layers := run.layers.get(name))
    ]


def _layer_tables(
    runs: Sequence[Run], chips: dict[str, Chip]
) -> list[tuple[str, list[tuple[str, list[Layer | None]]]]]:
    """By teacher: a row a layer, with each run's distances."""
    found = []
    for teacher in dict.fromkeys(name for run in runs for name in run.layers):
        own = [{layer.name: layer for layer in run.layers.get(teacher, [])} for run in runs]
        names = dict.fromkeys(name for layers in own for name in layers)
        found.append((teacher, [(name, [layers.get(name) for layers in own]) for name in names]))
    return found
