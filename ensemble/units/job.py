"""What is to be made for units that a caller names: checked before anything is written or started."""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ensemble.api import carry_out, own_of, prepare
from ensemble.machine.environment import launched_rank
from ensemble.machine.launch import EndedAtOnce, end_on_signals
from ensemble.machine.ranks import ProcessContext
from ensemble.objectives.activation import Activation
from ensemble.runs.folder import UNITS
from ensemble.runs.job import Job, held_for_all
from ensemble.runs.networks import Named, named_networks
from ensemble.runs.plan import unique_names
from ensemble.runs.results import Results
from ensemble.units import METHODS
from ensemble.units.excitation import Readers
from ensemble.units.given import check_numbers, check_paths, image_of, overrides_of, with_image
from ensemble.units.methods import fields_of
from ensemble.units.preferred import Preferred
from ensemble.units.reading import read_preferred
from ensemble.units.real import read_real
from models import ModelCard, create_model

_FOLLOWS = re.compile(r".*(objectives|targets|images_per_class|teachers)")
_FREE = re.compile(r"objectives\[(0\]\.(weight|reduction|power)$|[1-9]\d*\])|teachers\[\d+\]\.(?!model$)")
"""Among fields of objectives and teachers, those that leave the units what they are."""
_OWN: dict[str, Any] = {"input_size": None, "mean": None, "std": None, "class_names": ()}
_FURTHER = re.compile(r"objectives\[[1-9]")
"""Of overrides, those of further objectives, of which a network may have one that has no unit."""


class Unread(KeyboardInterrupt):
    """A signal ended the reading of images that are saved."""

    def __init__(self, end: KeyboardInterrupt) -> None:
        super().__init__()
        self.number = end.number if isinstance(end, EndedAtOnce) else signal.SIGINT


@dataclass(frozen=True, eq=False)
class UnitsJob:
    """A run that makes the images, and who reads them."""

    job: Job
    readers: Readers
    real: torch.Tensor | None
    """(M, 3, H, W), uint8."""

    def check(self, ranks: int) -> None:
        """ValueError where results may not be written, or teachers cannot be placed on so many ranks."""
        self.job.check(ranks)

    def run(self, began: float, progress: bool, *, keeps_partial: bool = False) -> Preferred | None:
        """What `prefer` returns; its results are written.

        Raises Interrupted after a stop that was asked for, unless `keeps_partial` is to give what there is; Unread on
        a signal once images are saved; ValueError where another run has taken the folder before they are read.
        """
        results = carry_out(self.job, began, progress, keeps_partial=keeps_partial)
        if results is None or launched_rank():
            return None
        self.readers.term = next(term for term in results.recipe.objectives if isinstance(term, Activation))
        try:
            with end_on_signals(), held_for_all(self.job.folder, ProcessContext(0, 1, torch.device("cpu"))):
                return self._read(results)
        except KeyboardInterrupt as end:
            if self.job.folder is None:
                raise
            raise Unread(end) from None

    def _read(self, results: Results) -> Preferred:
        """What is read of the images, or was: what is there is theirs, as going on removes it."""
        folder = self.job.folder
        if folder is None:
            return read_preferred(results, self.readers, self.real)
        folder.check_holds(results.images)
        if self.real is None and len(rows := folder.read_rows(UNITS)) == len(results.images):
            return Preferred(results, tuple(self.readers.names), rows)
        preferred = read_preferred(results, self.readers, self.real)
        preferred.write(folder)
        return preferred


def units_job(
    models: Named | nn.Module | Sequence[Named | Mapping[str, Any]],
    units: str | Sequence[str],
    *,
    method: str,
    images_per_unit: int,
    size: int | None,
    generator: str | None,
    bn_matching: float,
    real: str | Path | None,
    split: str | None,
    output: str | Path | None,
    resume: bool,
    overwrite: bool,
    iterations: int | None,
    overrides: str | Sequence[str],
    **fields: Any,
) -> UnitsJob:
    """The job of `prefer`'s arguments; ValueError for mistakes, with one line each."""
    check_numbers(images_per_unit, size, bn_matching)
    check_paths(real, split, output)
    if method not in METHODS:
        raise ValueError(f"method: {method!r} is none; choose {', '.join(METHODS)}")
    overrides = overrides_of(overrides)
    _check_free(fields, overrides)
    listed = _listed(models)
    if not isinstance(units, str) and (not isinstance(units, Sequence) or not all(isinstance(u, str) for u in units)):
        raise ValueError(f'units: a selection or a list of some, as "layer3.0:0-15", not {units!r}')
    own = own_of(**{key: fields.pop(key, empty) for key, empty in _OWN.items()})
    networks = _networks([entry["model"] if isinstance(entry, Mapping) else entry for entry in listed], own)
    readers = Readers(networks, Activation((units,) if isinstance(units, str) else tuple(units)))
    if not bn_matching and "terms" not in fields and not any(map(_FURTHER.match, overrides)):
        _check_idle(readers)
    images, classes = int(images_per_unit) * len(readers.names), _classes(readers)
    recipe = fields_of(
        method,
        readers.term,
        size=max(card.input_size for _, card in networks.values()) if size is None else int(size),
        networks=len(networks),
        images=images,
        generator=generator,
        bn_matching=bn_matching,
        placed=_placed(readers),
    )
    recipe["image"]["alike"] = len(readers.names)  # so an image is the same whichever other units are asked for
    recipe |= {"targets": classes or [0], "images_per_class": int(images_per_unit) if classes else images}
    overrides = with_image(overrides, recipe["image"])
    if (image := fields.pop("image", None)) is not None:
        recipe["image"] = image_of(image, recipe["image"])
    steps = {} if iterations is None else {"iterations": iterations}
    job = prepare(
        listed, *overrides, output=output, resume=resume, overwrite=overwrite, own=own, **recipe | steps | fields
    )
    if job.plan.recipe.verifiers and not classes:
        raise ValueError("verifiers (--verifier): they read classes, and not every unit is one; leave them out")
    if job.folder is not None:
        job.folder.check(resume=resume, overwrite=overwrite)  # before real images are read
    return UnitsJob(job, readers, None if real is None else read_real(real, split, job.plan.size))


def _check_free(fields: Mapping[str, Any], overrides: Sequence[str]) -> None:
    """ValueError for what would part the images from the units that they are said to be for."""
    for name in [*fields, *(text.partition("=")[0].strip() for text in overrides)]:
        if _FOLLOWS.match(name) and _FREE.match(name) is None:
            raise ValueError(f"{name}: it follows from `units` and `images_per_unit`; name other units, or use invert")
    terms = fields.get("terms", ())
    if any(isinstance(term, Activation) for term in (terms if isinstance(terms, Sequence) else [terms])):
        raise ValueError("terms: what is to be excited is named by `units`")


def _listed(models: Any) -> list[Any]:
    """The networks as a list; ValueError where it holds none, or something else."""
    listed = [models] if isinstance(models, str | Path | nn.Module | tuple | Mapping) else models
    if not isinstance(listed, Sequence) or not listed:
        raise ValueError(f"models: name one network or several, not {models!r}")
    for entry in listed:
        if isinstance(entry, Mapping) and "model" not in entry:
            raise ValueError(f'models: each is a network or {{"model": ..}}, not {entry!r}')
    return [str(entry) if isinstance(entry, Path) else entry for entry in listed]


def _networks(named: Sequence[Named], own: Mapping[str, Any]) -> dict[str, tuple[nn.Module, ModelCard]]:
    """The networks by the names that runs give them."""
    names, modules = named_networks(named, {}, **own)
    found = [modules[name] if name in modules else create_model(name) for name in names]
    return dict(zip(unique_names(names), found, strict=True))


def _check_idle(readers: Readers) -> None:
    idle = [profile.name for profile in readers.profiles if not any(readers.term.units_of(profile))]
    if idle:
        raise ValueError(f"units: no selection names {', '.join(idle)}; leave it out, or add {idle[0]}/LAYER:CHANNELS")


def _classes(readers: Readers) -> list[int]:
    """The units' classes as the first network numbers them, where each unit is one; they are the images' targets."""
    first = readers.profiles[0].card
    known = [one for one in readers.classes if one is not None]
    classes = [number for card, number in known if card is first or card.shares_classes(first)]
    return classes if len(classes) == len(readers.names) else []


def _placed(readers: Readers) -> bool:
    """Whether units are at places that a view of another size has not, or elsewhere."""
    units = [u for profile in readers.profiles for several in readers.term.units_of(profile) for u in several]
    return any(unit.whole or unit.position.startswith("t=") or "," in unit.position for unit in units)
