"""The generated images that a student learns from: one dataset or several, with the classes in one order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import torch

from ensemble.data.generated import GeneratedImages
from ensemble.data.labelled import LabelledImages
from ensemble.data.shards import is_dataset
from ensemble.data.tree import few
from ensemble.machine.files import user_path
from models import parse_spec


@dataclass(frozen=True)
class Source:
    """A teacher as a dataset names it."""

    model: str
    sha256: str | None
    """Of its weights, where they were a file."""
    class_names: tuple[str, ...]
    """The dataset's."""
    classes: Mapping[str, int] | None = None
    """Where these are among its own, where the recipe mapped them."""
    input: str | None = None
    """How it saw images: input size, mean and std, in words; None: the dataset does not say."""

    def is_same(self, other: Source) -> bool:
        """Whether both are one network: of one name and options, with weights of one file, or named alike."""
        if None not in (self.input, other.input) and self.input != other.input:
            return False
        if self.sha256 is None and other.sha256 is None:
            return self.model == other.model
        mine, its = parse_spec(self.model), parse_spec(other.model)
        return (mine.name, mine.options, self.sha256) == (its.name, its.options, other.sha256)

    @property
    def places(self) -> dict[str, int]:
        """Where the dataset's classes are among its own; as they stand, where nothing maps them."""
        return dict(self.classes or {name: index for index, name in enumerate(self.class_names)})


@dataclass(frozen=True)
class Pool:
    """Images uint8 and targets, and what the datasets' teachers said of them."""

    data: LabelledImages
    size: int
    teachers: dict[str, Source]
    """All that a dataset names."""
    stored: dict[str, torch.Tensor]
    """Logits float16 (N, classes) of those that all datasets name."""
    digest: str
    """Changes with the images."""
    as_made: tuple[str, ...]
    """The classes in the first dataset's order."""

    def called(self, name: str) -> str:
        """A teacher's name, with its model where that is another."""
        source = self.teachers.get(name)
        return name if source is None or source.model == name else f"{name} ({source.model})"

    def known_as(self, earlier: Mapping[str, Source]) -> Pool:
        """The same, with those teachers called as in `earlier` that are the same networks there."""
        names: dict[str, str] = {}
        for name, source in self.teachers.items():
            same = [
                known for known, other in earlier.items() if other.is_same(source) and other.places == source.places
            ]
            taken = not same or name in earlier or same[0] in self.teachers or same[0] in names.values()
            names[name] = name if taken else same[0]
        teachers = {names[name]: source for name, source in self.teachers.items()}
        return replace(self, teachers=teachers, stored={names[name]: logits for name, logits in self.stored.items()})

    def ordered(self, class_names: Sequence[str]) -> Pool:
        """The same with the classes, which are the same, in this order."""
        old, new = self.data.class_names, tuple(class_names)
        columns = torch.tensor([old.index(name) for name in new])
        stored = {name: logits[:, columns] for name, logits in self.stored.items()}
        return replace(self, data=self.data.ordered(new), stored=stored)


def read_pool(paths: Sequence[str]) -> Pool:
    """The datasets' images behind each other, classes in the order of the first.

    Raises ValueError where one cannot be read, is named twice, or differs from the first in its classes or its size,
    and where two teachers have one name.
    """
    folders = [user_path(path) for path in paths]
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ValueError("dataset: a folder is given twice; give each once")
    pools = [_read(folder) for folder in folders]
    known: dict[str, Source] = {}
    for place, pool in enumerate(pools):
        pools[place] = pool.known_as(known)
        known = pools[place].teachers | known
    for earlier, later in combinations(zip(folders, pools, strict=True), 2):
        _check_fits(*later, *earlier)
    first = pools[0]
    pools = [pool.ordered(first.data.class_names) for pool in pools]
    shared = [name for name in first.stored if all(name in pool.stored for pool in pools)]
    return Pool(
        LabelledImages(
            torch.cat([pool.data.images for pool in pools]),
            torch.cat([pool.data.labels for pool in pools]),
            first.data.class_names,
        ),
        first.size,
        {name: source for pool in reversed(pools) for name, source in pool.teachers.items()},
        {name: torch.cat([pool.stored[name] for pool in pools]) for name in shared},
        hashlib.sha256("".join(pool.digest for pool in pools).encode()).hexdigest(),
        first.data.class_names,
    )


def _read(folder: Path) -> Pool:
    if not is_dataset(folder) and (folder / "images.safetensors").is_file():
        raise ValueError(
            f"dataset: {folder} is a results folder, whose images are not a dataset; make one with "
            "`invert.py dataset --recipe RECIPE --images N --output DIR`"
        )
    made = GeneratedImages(folder)
    data, stored = made.labelled(), {name: made.logits(name) for name in made.teachers}
    said = made.manifest["teachers"]
    teachers = {
        name: Source(about["model"], about.get("sha256"), data.class_names, about.get("classes"), about.get("input"))
        for name, about in said.items()
    }
    digest = json.dumps([shard["sha256"] for shard in made.manifest["shards"]])
    return Pool(data, made.size, teachers, stored, digest, data.class_names)


def _check_fits(folder: Path, pool: Pool, other: Path, earlier: Pool) -> None:
    """ValueError where `folder` cannot be joined to `other`."""
    mine, theirs = set(pool.data.class_names), set(earlier.data.class_names)
    if mine != theirs:
        raise ValueError(
            f"dataset: {folder} and {other} have different classes ({few(mine ^ theirs)}); give datasets of the same"
        )
    if pool.size != earlier.size:
        raise ValueError(
            f"dataset: {folder} has images of {pool.size} pixels, {other} of {earlier.size}; give datasets of one size"
        )
    for name, source in pool.teachers.items():
        known = earlier.teachers.get(name, source)
        if (known.classes or source.classes) and known.is_same(source) and known.places != source.places:
            raise ValueError(
                f"dataset: the classes of the teacher {name} are mapped otherwise in {folder} than in {other}; give "
                "datasets that map them alike"
            )
        if not known.is_same(source):
            raise ValueError(
                f"dataset: the teacher {name} of {folder} ({source.model}) is not that of {other} ({known.model}); "
                "give datasets whose names mean the same networks"
            )
