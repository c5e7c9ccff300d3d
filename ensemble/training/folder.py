"""The results folder of a training run: the one file that knows the names in it."""

from __future__ import annotations

import io
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ensemble.config.hints import keys
from ensemble.config.mistakes import ConfigError
from ensemble.config.overrides import differences, is_below
from ensemble.config.parsing import parse, to_plain
from ensemble.config.yaml_files import dump_yaml, load_yaml
from ensemble.machine.files import (
    JsonLines,
    read_json,
    read_json_lines,
    write_bytes,
    write_json,
    write_json_lines,
    write_text,
)
from ensemble.machine.output_folder import OutputFolder
from ensemble.training.loop import State
from ensemble.training.recipe import RunRecipe, TrainingRecipe

RECIPE, METRICS, CHECKPOINT = "recipe.yaml", "metrics.jsonl", "checkpoint.pt"
WEIGHTS, SUMMARY = "weights.safetensors", "summary.json"
_FILES = (SUMMARY, WEIGHTS, CHECKPOINT, METRICS, RECIPE)
"""The recipe comes last where they are removed: it shows whose the others are."""


@dataclass(frozen=True)
class TrainingFolder(OutputFolder):
    """What a training run writes and reads in `path`."""

    begins_with = RECIPE
    reads: type[RunRecipe] = TrainingRecipe
    """Whose runs it holds."""

    @property
    def what(self) -> str:
        return self.reads.what

    @property
    def weights(self) -> Path:
        return self.path / WEIGHTS

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is a state to go on from."""
        return (self.path / CHECKPOINT).exists()

    @property
    def finished(self) -> bool:
        """Whether a run ended here, all written: its summary comes last."""
        return (self.path / SUMMARY).is_file() and self._stored() is not None

    # --- begin, go on -----------------------------------------------------------------------------------------

    def check(self, recipe: RunRecipe, *, resume: bool = False, overwrite: bool = False) -> None:
        """Raises ValueError where the run may not write here; changes nothing.

        An empty folder, or none, may be written to. Another only with `resume`, where it holds this run (of which
        what the recipe calls `free` may be another now), or with `overwrite`, where no file with a name of ours is
        somebody else's.
        """
        if not self.is_taken(resume=resume, overwrite=overwrite):
            return
        if resume:
            self._check_same(recipe)
        else:
            self._check_ours()

    def begin(self, recipe: RunRecipe, *, overwrite: bool = False) -> None:
        """Makes the folder, with the recipe in it; what an earlier training run wrote is removed, nothing else.

        Raises ValueError as `check` does.
        """
        self.check(recipe, overwrite=overwrite)
        self.remove(_FILES)
        self._write_recipe(recipe)

    def go_on(self, recipe: RunRecipe, epochs: int, without: Collection[str] = ()) -> None:
        """Winds the folder back to the state after so many epochs: drops later metrics, and the summary.

        Metrics `without` these keys stay. Raises ValueError as `check` does.
        """
        self.check(recipe, resume=True)
        (self.path / SUMMARY).unlink(missing_ok=True)
        rows = [row for row in read_json_lines(self.path / METRICS) if row.get("epoch", epochs + 1) <= epochs]
        rows = [{key: value for key, value in row.items() if key not in without} for row in rows]
        write_json_lines(self.path / METRICS, rows)
        self._write_recipe(recipe)

    def changes(self, recipe: RunRecipe) -> list[str]:
        """The fields in which the run in this folder differs; ValueError where there is none to go on with."""
        stored = self._stored()
        if stored is None:
            raise self.holds_none("resume")
        try:
            begun = parse(self.reads, stored)
        except ConfigError as error:
            raise self.holds_damaged(error.problems[0]) from None
        return differences(to_plain(begun), to_plain(recipe))

    def check_goes_on(self) -> None:
        """ValueError where a run ended here and what it would go on from is gone: its network would be lost."""
        if self.finished and not self.has_checkpoint:
            raise ValueError(
                f"resume: {self.path} holds a finished {self.what} without its {CHECKPOINT}, from which it would go "
                "on; give another folder, or pass --overwrite to train anew"
            )

    def removes(self, name: str) -> bool:
        return name in _FILES

    def _check_same(self, recipe: RunRecipe) -> None:
        changed = [path for path in self.changes(recipe) if not is_below(path, recipe.free)]
        if changed:
            raise self.holds_another(changed)

    def _check_ours(self) -> None:
        """ValueError where a file has a name of ours and is no training run's."""
        foreign = [name for name in _FILES if (self.path / name).exists()]
        if self._stored() is not None:
            foreign = [name for name in foreign if not (self.path / name).is_file()]
        if foreign:
            raise self.has_foreign(foreign[0])

    def _stored(self) -> dict[str, Any] | None:
        """The recipe that a run wrote here, if one did: it writes all keys out, other than people."""
        try:
            stored = load_yaml(self.path / RECIPE)
        except ConfigError:
            return None
        return stored if stored.keys() >= {*keys(self.reads)} else None

    # --- write ------------------------------------------------------------------------------------------------

    def _write_recipe(self, recipe: RunRecipe) -> None:
        write_text(self.path / RECIPE, dump_yaml(to_plain(recipe)))

    def open_metrics(self) -> JsonLines:
        return JsonLines(self.path / METRICS)

    def write_checkpoint(self, state: State) -> None:
        """Writes the state, whole or not at all; `models` reads its `net` as weights."""
        stream = io.BytesIO()
        torch.save(state, stream)
        write_bytes(self.path / CHECKPOINT, stream.getvalue())

    def write_summary(self, summary: dict[str, Any]) -> None:
        write_json(self.path / SUMMARY, summary)

    # --- read -------------------------------------------------------------------------------------------------

    def read_checkpoint(self) -> State | None:
        """The state after the last whole epoch, on the CPU; None before the first.

        Raises ValueError where the file cannot be read.
        """
        file = self.path / CHECKPOINT
        if not file.exists():
            return None
        try:
            state: State = torch.load(file, map_location="cpu", weights_only=True)
            int(state["epoch"])
        except OSError:
            raise
        except Exception as error:  # a damaged file can fail anywhere inside the unpickler
            raise ValueError(
                f"resume: {file} is damaged ({type(error).__name__}); pass --overwrite instead to begin again"
            ) from None
        return state

    def read_summary(self) -> dict[str, Any]:
        summary: dict[str, Any] = read_json(self.path / SUMMARY)
        return summary
