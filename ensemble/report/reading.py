"""What the report tells of a run: all of it from the results folder, nothing computed by a network."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ensemble.data.shards import is_dataset
from ensemble.image.pictures import checked_batch
from ensemble.machine.files import user_path
from ensemble.machine.words import readable
from ensemble.runs.folder import AGREEMENT, METRICS, PER_IMAGE, PER_LAYER, RECIPE, SUMMARY, UNITS, ResultsFolder
from ensemble.runs.plan import STUDENT, unique_names

_POINTS, _ALL_POINTS = 400, 4000
"""Points of a curve at most, of one trial and of all of them; a screen shows no more."""
_NO_VALUES = {"trial", "step", "stage", "event"}


@dataclass(frozen=True)
class Network:
    """A teacher or a verifier, and what it makes of all images."""

    name: str
    role: str
    accuracy: float | None
    interval: tuple[float, float] | None
    losses: dict[str, float]


@dataclass(frozen=True)
class Reading:
    """What one network makes of one image."""

    network: str
    name: str
    """Of the class it reads."""
    right: bool
    of_target: float
    of_reading: float | None
    """Its probability; None where the folder has no logits."""


@dataclass(frozen=True)
class Picture:
    """One image: where it stands in images.safetensors, and what it is read as."""

    index: int
    trial: int
    target: int
    name: str
    readings: tuple[Reading, ...]
    agreement: float | None = None
    """Mean cosine between the teachers' gradients, where the run compared them."""
    excited: tuple[tuple[str, float], ...] = ()
    """Of a unit's preferred image, whose `name` is the unit's: what is said of it, by label."""


Series = tuple[list[int], list[float | None]]
"""Steps, and the values there; None for what was not finite."""


@dataclass(frozen=True)
class Curves:
    """One trial over its steps."""

    trial: int
    series: dict[str, Series]
    """`loss`, `prior`, `lr` and `TEACHER/TERM`: each at the steps at which it was recorded, as teachers take turns."""
    events: list[tuple[int, str]]


@dataclass(frozen=True)
class Layer:
    """A layer with statistics: how far the images' mean and variance are from its own, in units of its spread."""

    name: str
    mean: float | None
    variance: float | None
    mean_level: float | None = None
    variance_level: float | None = None
    """The same of as many real images."""

    @property
    def distance(self) -> float:
        """The greater of the two."""
        return max(self.mean or 0.0, self.variance or 0.0)


@dataclass(frozen=True, eq=False)
class Run:
    """What a results folder tells."""

    label: str
    """The folder as it was given."""
    images: torch.Tensor
    pictures: tuple[Picture, ...]
    networks: tuple[Network, ...]
    """Teachers and the student, then verifiers."""
    curves: tuple[Curves, ...]
    stages: tuple[int, ...]
    """The steps at which they begin."""
    layers: dict[str, list[Layer]]
    """By teacher, in the order in which they run."""
    recipe: dict[str, Any]
    summary: dict[str, Any]
    maps: torch.Tensor | None = None
    """(N, H, W) local cosines between the teachers' gradients, where the run compared them."""


def read_run(name: str) -> Run:
    """ValueError, in one line with the folder's name, where no run ended there, or a file is damaged."""
    folder = ResultsFolder(user_path(name))
    if not folder.path.is_dir():
        raise ValueError(f"{name} is no folder; give the results folder of a run of invert.py")
    if is_dataset(folder.path):
        raise ValueError(f"{name} holds a dataset, which has no report; see its grid.png, or invert.py evaluate")
    images, targets = folder.read_images()
    recipe, summary = folder.read_recipe(), folder.read_summary()
    if summary == {}:
        raise ValueError(
            f"{name} holds no finished run; go on with it, by --output {shlex.quote(name)} --resume, and report it then"
        )
    label = readable(name)
    try:
        images, targets = checked_batch(images, targets, ())
    except ValueError:
        raise ValueError(f"{name}: its images are damaged, not RGB with a target each; make them again") from None
    logits = folder.read_logits()
    with _Damage(name, f"{RECIPE} or {SUMMARY}"):
        networks, stages, names = _networks(summary), _stages(recipe), _class_names(summary)
        own = _own_names(recipe, names)
        _check_told(summary)
    with _Damage(name, PER_IMAGE):
        rows = folder.read_rows(PER_IMAGE)
        pictures = _pictures(rows, targets.tolist(), [n.name for n in networks], names, own, logits)
    with _Damage(name, UNITS):
        pictures, networks = _of_units(folder.read_rows(UNITS), pictures, networks)
    with _Damage(name, METRICS):
        curves = _curves(folder.read_rows(METRICS))
    with _Damage(name, PER_LAYER):
        layers = _layers(folder.read_rows(PER_LAYER))
    with _Damage(name, AGREEMENT):
        maps = _maps(folder, images)
    return Run(label, images, pictures, networks, curves, stages, layers, recipe, summary, maps)


class _Damage:
    """What goes wrong within is told as damage of that file."""

    def __init__(self, folder: str, file: str) -> None:
        self._text = f"{folder}: its {file} is damaged; make the images again"

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, KeyError | TypeError | AttributeError | IndexError | ValueError | OverflowError):
            raise ValueError(self._text) from None


def _networks(summary: Mapping[str, Any]) -> tuple[Network, ...]:
    found = []
    for name, values in summary.get("teachers", {}).items():
        losses = {key: float(value) for key, value in values.items() if key != "accuracy" and value is not None}
        found.append(
            Network(name, STUDENT if name == STUDENT else "teacher", _number(values.get("accuracy")), None, losses)
        )
    for name, values in (summary.get("verifiers") or {}).items():
        low, high = values["interval"]
        found.append(Network(name, "verifier", float(values["accuracy"]), (float(low), float(high)), {}))
    return tuple(found)


def _check_told(summary: Mapping[str, Any]) -> None:
    """TypeError where what is shown as it is has another type."""
    for key in ("wall_seconds", "startup_seconds", "steps_per_second", "peak_memory_bytes"):
        _number(summary.get(key))
    for key, kind in (
        ("versions", dict),
        ("warnings", list),
        ("in_memory", list),
        ("continued", list),
        ("steps", list),
    ):
        if not isinstance(summary.get(key) or kind(), kind):
            raise TypeError(key)


def _stages(recipe: Mapping[str, Any]) -> tuple[int, ...]:
    begins = [0]
    for stage in recipe["stages"]:
        begins.append(begins[-1] + int(stage["iterations"]))
    return tuple(begins[:-1])


def _class_names(summary: Mapping[str, Any]) -> tuple[str, ...]:
    """Names that tell classes apart: two of one name (ImageNet's cranes) get their index."""
    names = [str(name) for name in summary.get("class_names", ())]
    count: dict[str, int] = {}
    for name in names:
        count[name] = count.get(name, 0) + 1
    return tuple(name if count[name] == 1 else f"{name} ({i})" for i, name in enumerate(names))


def _own_names(recipe: Mapping[str, Any], names: Sequence[str]) -> dict[str, dict[int, str]]:
    """For teachers, and a student, of other classes: by index of their own, the run's names, as they may be several."""
    entries = recipe["teachers"]
    own: dict[str, dict[int, str]] = {}
    called = unique_names([STUDENT if entry.get("student") else entry["model"] for entry in entries])
    for name, entry in zip(called, entries, strict=True):
        for run_name, index in (entry.get("classes") or {}).items():
            earlier = own.setdefault(name, {}).get(int(index))
            own[name][int(index)] = str(run_name) if earlier is None else f"{earlier} or {run_name}"
    return own


def _pictures(
    rows: Sequence[Mapping[str, Any]],
    targets: Sequence[int],
    networks: Sequence[str],
    names: Sequence[str],
    own: Mapping[str, Mapping[int, str]],
    logits: Mapping[str, torch.Tensor],
) -> tuple[Picture, ...]:
    if [row["target"] for row in rows] != list(targets):
        raise ValueError("rows that are not the images'")
    said = {name: tensor.double().softmax(1) for name, tensor in logits.items()}
    if any(len(tensor) != len(targets) for tensor in said.values()):
        raise ValueError("logits that are not the images'")
    found = []
    for i, row in enumerate(rows):
        readings = []
        for network in networks:
            if f"{network}/reads" not in row:
                continue
            reads = int(row[f"{network}/reads"])
            name = own[network].get(reads, f"its class {reads}") if network in own else _name(names, reads)
            sure = float(said[network][i, reads]) if network in said else None
            right, of_target = bool(row[f"{network}/right"]), float(row[f"{network}/probability"])
            readings.append(Reading(network, name, right, of_target, sure))
        target = int(row["target"])
        trial, agreement = int(row.get("trial", 0)), _number(row.get("agreement"))
        found.append(Picture(i, trial, target, _name(names, target), tuple(readings), agreement))
    return tuple(found)


def _of_units(
    rows: Sequence[Mapping[str, Any]], pictures: tuple[Picture, ...], networks: tuple[Network, ...]
) -> tuple[tuple[Picture, ...], tuple[Network, ...]]:
    """Pictures by their units, where the run has any; what networks read of them counts where units are classes'."""
    if not rows:
        return pictures, networks
    if [row["image"] for row in rows] != [picture.index for picture in pictures]:
        raise ValueError("rows that are not the images'")
    units = {str(row["unit"]): place for place, row in reversed([*enumerate(rows)])}
    of_classes = all(row["of_class"] for row in rows)  # otherwise no image has a target
    found = []
    for row, picture in zip(rows, pictures, strict=True):
        unit = str(row["unit"])
        readings = picture.readings if of_classes else ()
        name = f"{unit} ({row['class']})" if "class" in row else unit
        found.append(replace(picture, target=units[unit], name=name, readings=readings, excited=_excited(row)))
    if not of_classes:
        networks = tuple(replace(network, accuracy=None, interval=None) for network in networks)
    return tuple(found), networks


def _excited(row: Mapping[str, Any]) -> tuple[tuple[str, float], ...]:
    labels = {"activation": "activation", "of_largest": "/ largest real"}
    found = []
    for key, value in row.items():
        network, _, what = key.rpartition("/")
        number = _number(value) if what in labels else None
        if number is not None:
            found.append((f"{labels[what]}, {network}" if network else labels[what], number))
    return tuple(found)


def _maps(folder: ResultsFolder, images: torch.Tensor) -> torch.Tensor | None:
    agreement = folder.read_agreement()
    if agreement is None:
        return None
    if agreement.maps.shape != (len(images), *images.shape[2:]):
        raise ValueError("maps that are not the images'")
    return agreement.maps.float()


def _name(names: Sequence[str], index: int) -> str:
    return names[index] if 0 <= index < len(names) else f"class {index}"


def _curves(rows: Sequence[Mapping[str, Any]]) -> tuple[Curves, ...]:
    trials: dict[int, list[Mapping[str, Any]]] = {}
    for row in rows:
        trials.setdefault(int(row.get("trial", 0)), []).append(row)
    points = min(_POINTS, max(50, _ALL_POINTS // max(1, len(trials))))
    found = []
    for trial, mine in sorted(trials.items()):
        events = [(int(row["step"]), str(row["event"])) for row in mine if row.get("event")]
        recorded = [row for row in mine if row.keys() - _NO_VALUES - {"lr"}]
        keys = dict.fromkeys(key for row in recorded for key in row if key not in _NO_VALUES)
        found.append(Curves(trial, {key: _series(key, recorded, points) for key in keys}, events))
    return tuple(found)


def _series(key: str, rows: Sequence[Mapping[str, Any]], points: int) -> Series:
    kept = _thinned([row for row in rows if key in row], points)
    return [int(row["step"]) for row in kept], [_number(row[key]) for row in kept]


def _thinned(rows: list[Mapping[str, Any]], points: int) -> list[Mapping[str, Any]]:
    """Every n-th row, and the last."""
    stride = math.ceil(len(rows) / points) or 1
    return [row for i, row in enumerate(rows) if i % stride == 0 or i == len(rows) - 1]


def _layers(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Layer]]:
    found: dict[str, list[Layer]] = {}
    for row in sorted(rows, key=lambda row: row["order"]):
        levels = _number(row.get("mean_level")), _number(row.get("variance_level"))
        layer = Layer(str(row["layer"]), _number(row["mean_distance"]), _number(row["variance_distance"]), *levels)
        found.setdefault(str(row["teacher"]), []).append(layer)
    return found


def _number(value: Any) -> float | None:
    """Five digits are more than a screen shows."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.5g}")
