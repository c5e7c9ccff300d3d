"""The folder of a dataset that is being made: what may be written there, what is there, what is left over."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from ensemble.config.mistakes import ConfigError
from ensemble.config.overrides import differences
from ensemble.config.parsing import to_plain
from ensemble.config.yaml_files import load_yaml
from ensemble.data.shards import MANIFEST, SHARDS, Shard, batch_of, pack, shard_name
from ensemble.image.pictures import draw_grid
from ensemble.machine.files import (
    JsonLines,
    read_json,
    read_json_lines,
    replacing,
    write_bytes,
    write_json,
    write_json_lines,
    write_text,
)
from ensemble.machine.output_folder import OutputFolder
from ensemble.recipe import Recipe, parse_recipe
from ensemble.runs.origin import NOT_THE_IMAGES, Origin
from ensemble.runs.recipes import in_one_line
from models import sha256

BEGUN, RECIPE, BATCHES, COST, GRID = "begun.json", "recipe.yaml", "batches.jsonl", "cost.json", "grid.png"
_FILES = (MANIFEST, COST, GRID, BATCHES, RECIPE, BEGUN)
"""In the order in which they are removed: the first says that all is there, the last whose the others are."""
_NOT_THESE_IMAGES = (*NOT_THE_IMAGES, "trials", "agreement", "attribution")
"""Parts of a recipe that do not decide which images come out, or only how many."""


@dataclass(frozen=True)
class Wanted:
    """So many images, in batches of one size, of which the last gives its first ones."""

    images: int
    size: int

    @property
    def batches(self) -> int:
        return -(-self.images // self.size)

    def of(self, batch: int) -> int:
        """How many images a batch gives."""
        return max(0, min(self.size, self.images - batch * self.size))


@dataclass(frozen=True)
class Begun:
    """How a dataset began."""

    images: int
    """That were asked for last."""
    weights: dict[str, str]
    """Digests of the teachers' weights and statistics and how they see images, by name."""
    versions: dict[str, str]
    ranks: int
    """That worked on one batch."""
    command: str = ""
    """How it was asked for."""

    @property
    def origin(self) -> Origin:
        return Origin(self.weights, self.versions, self.ranks)


@dataclass(frozen=True)
class BatchRow:
    """A finished batch: its shard, and what it cost."""

    file: str
    images: int
    seed: int
    sha256: str
    seconds: float
    passes: int
    """Teachers' passes with gradient, summed over the images of the whole batch."""
    gflop: float


@dataclass(frozen=True)
class DatasetFolder(OutputFolder):
    """What `invert.py dataset` writes and reads below `path`."""

    what = "dataset"
    begins_with = BEGUN

    @property
    def shards(self) -> Path:
        return self.path / SHARDS

    @property
    def finished(self) -> bool:
        """Whether all was written: the manifest comes last."""
        return (self.path / MANIFEST).is_file()

    # --- what is there ----------------------------------------------------------------------------------------

    def begun(self) -> Begun | None:
        """How the dataset here began; None where none did."""
        try:
            return Begun(**read_json(self.path / BEGUN))
        except (OSError, ValueError, TypeError):
            return None

    def rows(self) -> dict[int, BatchRow]:
        """The newest row of each batch that is listed, in the batches' order."""
        known = [field.name for field in fields(BatchRow)]
        found: dict[int, BatchRow] = {}
        for row in read_json_lines(self.path / BATCHES):
            batch = batch_of(str(row.get("file")))
            if batch is not None and row.keys() >= set(known):
                found[batch] = BatchRow(**{key: row[key] for key in known})
        return dict(sorted(found.items()))

    def read_recipe(self) -> Recipe:
        """The recipe that the dataset resolved; ValueError where it cannot be read."""
        try:
            return parse_recipe(load_yaml(self.path / RECIPE))
        except ConfigError as error:
            raise self.holds_damaged(in_one_line(error)) from None

    def read_manifest(self) -> dict[str, Any]:
        """Empty where the dataset is not finished, or its manifest is damaged."""
        with suppress(OSError, ValueError, TypeError):
            return dict(read_json(self.path / MANIFEST))
        return {}

    def shard(self, batch: int) -> Shard:
        return Shard(self.shards / shard_name(batch))

    def is_there(self, batch: int) -> bool:
        """Whether a file has the name of the batch's shard."""
        return (self.shards / shard_name(batch)).is_file()

    def check_shards(self, rows: Mapping[int, BatchRow]) -> None:
        """ValueError where a listed shard is there, and has another SHA-256."""
        for batch, row in rows.items():
            if self.is_there(batch) and sha256(self.shards / row.file) != row.sha256:
                raise ValueError(
                    f"resume: {self.shards / row.file} is damaged: its SHA-256 is another than {BATCHES} says; remove "
                    "the file, and --resume makes it again"
                )

    # --- begin, go on -----------------------------------------------------------------------------------------

    def check(self, recipe: Recipe, wanted: Wanted, *, resume: bool, overwrite: bool) -> None:
        """Raises ValueError where the dataset may not be written here; changes nothing.

        An empty folder, or none, may be written to. Another only with `resume`, where it holds this dataset, or fewer
        images of it, or with `overwrite`, where no file with a name of ours is somebody else's.
        """
        if not self.is_taken(resume=resume, overwrite=overwrite):
            return
        if resume:
            self._check_same(recipe, wanted)
        elif overwrite:
            self._check_ours()

    def goes_on(self) -> bool:
        """Whether there is a recipe to go on with: one that was killed before begins again."""
        return self.begun() is not None and (self.path / RECIPE).is_file()

    def begin(self, begun: Begun, recipe: str) -> None:
        """Makes the folder; what an earlier dataset wrote is removed, and nothing else."""
        for name in _FILES:
            if name == BATCHES:  # the shards go before what lists them
                self.remove_left_over({})
                with suppress(OSError):  # absent, or holds files that are not ours
                    self.shards.rmdir()
            self.remove([name])
        self._write(begun, recipe)

    def go_on(self, begun: Begun, recipe: str, rows: Mapping[int, BatchRow]) -> None:
        """From now on only these rows count: what else bears a shard's name is removed, and so is the manifest."""
        (self.path / MANIFEST).unlink(missing_ok=True)
        write_json_lines(self.path / BATCHES, [asdict(row) for row in rows.values()])
        self.remove_left_over(rows)
        for name in _FILES:
            (self.path / f"{name}.tmp").unlink(missing_ok=True)
        self._write(begun, recipe)

    def remove_left_over(self, rows: Mapping[int, BatchRow]) -> None:
        """Removes files with the names of shards, finished or not, that no row lists."""
        for file in self.shards.iterdir() if self.shards.is_dir() else ():
            batch = batch_of(file.name.removesuffix(".tmp"))
            if batch is not None and (batch not in rows or file.suffix == ".tmp") and not file.is_dir():
                file.unlink()

    def _write(self, begun: Begun, recipe: str) -> None:
        write_json(self.path / BEGUN, begun)
        write_text(self.path / RECIPE, recipe)
        self.shards.mkdir(exist_ok=True)

    def _check_same(self, recipe: Recipe, wanted: Wanted) -> None:
        self._check_no_link()
        if self.begun() is None:
            raise self.holds_none("resume")
        rows = self.rows()
        if not rows and sum(map(self.is_there, range(wanted.batches))) > self._in_flight():
            raise ValueError(
                f"resume: {self.path / BATCHES}, which lists the shards, is gone or damaged; pass --overwrite instead "
                "to begin again, or give another folder"
            )
        if not (self.path / RECIPE).is_file() and not rows:
            return
        kept = [
            {key: value for key, value in to_plain(one).items() if key not in _NOT_THESE_IMAGES}
            for one in (self.read_recipe(), recipe)
        ]
        if changed := differences(*kept):
            raise self.holds_another(changed)
        if any(row.images > wanted.of(batch) for batch, row in rows.items()):
            most = max(batch * wanted.size + row.images for batch, row in rows.items())
            raise ValueError(f"images: {self.path} holds {most} images already; ask for at least as many")

    def _in_flight(self) -> int:
        """How many shards may be there, written before their rows, where no row is."""
        file = self.path / BATCHES
        begun = file.is_file() and b"\n" not in file.read_bytes()
        return self.read_recipe().runtime.replicas if begun else 0

    def _check_ours(self) -> None:
        """ValueError where a file has a name of ours and is no dataset's."""
        self._check_no_link()
        foreign = [name for name in (*_FILES, SHARDS) if (self.path / name).exists()]
        if foreign and self.begun() is None:
            raise self.has_foreign(foreign[0])

    def _check_no_link(self) -> None:
        if self.shards.is_symlink():
            raise ValueError(f"output: {self.shards} is a link; remove it yourself or give another folder")

    # --- write ------------------------------------------------------------------------------------------------

    def open_rows(self) -> JsonLines:
        return JsonLines(self.path / BATCHES)

    def write_shard(
        self, batch: int, pixels: torch.Tensor, targets: torch.Tensor, logits: Mapping[str, torch.Tensor], seed: int
    ) -> tuple[str, str]:
        """Writes it, whole or not at all; its name and SHA-256."""
        data, name = pack(pixels, targets, logits, seed), shard_name(batch)
        write_bytes(self.shards / name, data)
        return name, hashlib.sha256(data).hexdigest()

    def write_grid(self, class_names: tuple[str, ...]) -> None:
        """The first batch as one picture."""
        first = self.shard(0)
        with replacing(self.path / GRID) as file:
            draw_grid(first.pixels() / 255, first.targets(), class_names).save(file, format="PNG")

    def write_end(self, cost: Mapping[str, Any], manifest: Mapping[str, Any]) -> None:
        write_json(self.path / COST, cost)
        write_json(self.path / MANIFEST, manifest)
