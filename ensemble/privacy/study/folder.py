"""The folder of a leakage study: the one file that knows the names in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from ensemble.config.mistakes import ConfigError
from ensemble.config.overrides import differences
from ensemble.config.parsing import parse, to_plain
from ensemble.config.yaml_files import dump_yaml, load_yaml
from ensemble.machine.files import read_json, write_bytes, write_json, write_text
from ensemble.machine.output_folder import OutputFolder
from ensemble.privacy.study.recipe import LeakageRecipe

RECIPE, PAGE, DATA, TABLE = "recipe.yaml", "leakage.html", "leakage.json", "networks.csv"
ROC, IMAGES = "membership.png", "images.json"
_CELLS, _BANK = "cells", "bank"


@dataclass(frozen=True)
class LeakageFolder(OutputFolder):
    """What a study writes and reads in `path`: a cell for each thing that is computed, which is never made twice."""

    what = "leakage study"

    def check(self, recipe: LeakageRecipe, *, resume: bool, overwrite: bool) -> None:
        """Raises ValueError where the study may not write here; changes nothing."""
        if not self.is_taken(resume=resume, overwrite=overwrite):
            return
        stored = self._stored()
        if stored is None:
            raise self.holds_none("output")
        if resume and (changed := self._changed(stored, recipe)):
            raise self.holds_another(changed)

    def begin(self, recipe: LeakageRecipe, digest: str, *, resume: bool) -> None:
        """Makes the folder; without `resume`, what an earlier study wrote is removed, nothing else.

        ValueError where it goes on with other images (`Bank.digest`) than it began with.
        """
        images = self.path / IMAGES
        if resume and images.is_file() and read_json(images)["sha256"] != digest:
            raise ValueError(f"resume: {self.path} began with other images than data.path holds; give those")
        if not resume:
            for folder in (_CELLS, _BANK):
                for end in ("json", "safetensors"):
                    for file in sorted((self.path / folder).glob(f"*.{end}")):
                        file.unlink()
            self.remove((ROC, TABLE, DATA, PAGE))
        write_json(images, {"sha256": digest})
        write_text(self.path / RECIPE, dump_yaml(to_plain(recipe)))
        for folder in (_CELLS, _BANK):
            (self.path / folder).mkdir(exist_ok=True)

    @staticmethod
    def _changed(stored: LeakageRecipe, recipe: LeakageRecipe) -> list[str]:
        return [name for name in differences(to_plain(stored), to_plain(recipe)) if name not in recipe.free]

    def _stored(self) -> LeakageRecipe | None:
        try:
            return parse(LeakageRecipe, load_yaml(self.path / RECIPE))  # maybe a quick one's
        except (OSError, ConfigError, ValueError):
            return None

    # --- what is computed -------------------------------------------------------------------------------------

    def weights(self, name: str) -> Path:
        """Of a network of the bank."""
        return self.path / _BANK / f"{name}.safetensors"

    def has(self, name: str) -> bool:
        """Whether a cell is there, with what belongs to it: its JSON is written last, and says that."""
        if not self._cell(name, "json").is_file():
            return False
        needed = [self._cell(name, "safetensors")] if self.figures(name).get("tensors") else []
        if name.startswith(_BANK):
            needed.append(self.weights(name.removeprefix(f"{_BANK}_")))
        return all(file.is_file() for file in needed)

    def write(self, name: str, figures: Mapping[str, Any], tensors: Mapping[str, torch.Tensor] | None = None) -> None:
        """A cell, whole or not at all."""
        if tensors is not None:
            data = {key: value.detach().contiguous() for key, value in tensors.items()}
            write_bytes(self._cell(name, "safetensors"), save(data))
        write_json(self._cell(name, "json"), {**figures, "tensors": sorted(tensors or ())})

    def figures(self, name: str) -> dict[str, Any]:
        file = self._cell(name, "json")
        try:
            found = read_json(file)
        except ValueError as error:
            raise ValueError(f"output: {error}; remove it, and go on with --resume") from None
        if not isinstance(found, dict):
            raise ValueError(f"output: {file} is no cell of a study; remove it, and go on with --resume")
        return found

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        file = self._cell(name, "safetensors")
        try:
            found: dict[str, torch.Tensor] = load(file.read_bytes())
        except SafetensorError as error:
            raise ValueError(f"output: {file} is damaged ({error}); remove it, and go on with --resume") from None
        return found

    def _cell(self, name: str, end: str) -> Path:
        return self.path / _CELLS / f"{name}.{end}"
