"""The results folder of a run: the one file that knows the names in it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ensemble.config.mistakes import ConfigError
from ensemble.config.yaml_files import load_yaml
from ensemble.data.shards import is_dataset
from ensemble.engine.agreement import Agreement
from ensemble.image.pictures import checked_batch, draw_grid, to_bytes
from ensemble.machine.files import (
    JsonLines,
    read_json,
    read_json_lines,
    replacing,
    write_json,
    write_json_lines,
    write_text,
)
from ensemble.machine.lock import contents
from ensemble.machine.output_folder import OutputFolder
from ensemble.runs.recipes import in_one_line
from ensemble.training.folder import WEIGHTS

_CLASS_FOLDER = re.compile(r"\d{4,}(_.+)?")
_IMAGE_FILE = re.compile(r"\d+\.png(\.tmp)?")
_CHECKPOINT_FILE = re.compile(r"\w+-\d{8}\.(json|safetensors)(\.tmp)?")

RECIPE, METRICS, SUMMARY, IMAGES = "recipe.yaml", "metrics.jsonl", "summary.json", "images.safetensors"
LOGITS, PER_IMAGE, PER_LAYER, GRID = "logits.safetensors", "per_image.jsonl", "per_layer.jsonl", "grid.png"
AGREEMENT, ATTRIBUTION = "agreement.safetensors", "attribution.safetensors"
UNITS, UNITS_SHEET, UNITS_ALPHA, TOP_SHEET = "units.jsonl", "units.png", "units_alpha.png", "top_real.png"
_OF_UNITS = (UNITS, UNITS_SHEET, UNITS_ALPHA, TOP_SHEET)
PICTURES, CHECKPOINTS = "images", "checkpoints"
_FILES = (
    *(SUMMARY, IMAGES, LOGITS, PER_IMAGE, PER_LAYER, GRID, AGREEMENT),
    *(ATTRIBUTION, *_OF_UNITS, METRICS, RECIPE),
)
_BEGUN = {RECIPE, METRICS, CHECKPOINTS}
"""All that a run leaves that ends before its first checkpoint."""


@dataclass(frozen=True)
class ResultsFolder(OutputFolder):
    """What a run writes and reads below `path`."""

    @property
    def checkpoints(self) -> Path:
        return self.path / CHECKPOINTS

    @property
    def finished(self) -> bool:
        """Whether a run ended here, all written: its summary comes last, and does not say that it was stopped."""
        there = (self.path / SUMMARY).is_file() and (self.path / RECIPE).is_file()
        return there and not self.read_summary().get("stopped", False)

    @property
    def has_recipe(self) -> bool:
        """Whether a run began here."""
        return (self.path / RECIPE).is_file()

    def beside(self, replica: int) -> ResultsFolder:
        """Where a replica that fails leaves its images."""
        return ResultsFolder(self.path / f"replica{replica}")

    # --- begin, go on -----------------------------------------------------------------------------------------

    def check(self, *, resume: bool = False, overwrite: bool = False) -> None:
        """Raises ValueError where this is no folder, is not empty without either, or holds another command's results.

        It changes nothing.
        """
        if not self.is_taken(resume=resume, overwrite=overwrite):
            return
        if is_dataset(self.path):
            raise ValueError(f"output: {self.path} holds a dataset, which a run does not replace; give another folder")
        if self._is_anothers():
            raise ValueError(
                f"output: {self.path} holds no run's recipe, so what is in it may be another command's, whose records "
                "a run would remove; give another folder"
            )
        if overwrite and not self._is_ours and (file := next(self._results(), None)) is not None:
            raise self.has_foreign(str(file.relative_to(self.path)))

    def begin(self, overwrite: bool = False) -> None:
        """Makes the folder.

        With `overwrite`, removes what an earlier run wrote and nothing else: in images/ only numbered PNG files in
        numbered class folders; in checkpoints/, where a recipe or metrics show that a run of ours wrote here, only
        files named like checkpoints.

        Raises ValueError as `check` does, and where images/ or checkpoints/ is a link, which could lead anywhere.
        """
        self.check(overwrite=overwrite)
        if self.path.is_dir():
            self._remove_results()
        self.path.mkdir(parents=True, exist_ok=True)

    def go_on(self, until: Mapping[int, int]) -> None:
        """Winds back to checkpoints: drops each trial's metrics from step `until[trial]` on, and the summary."""
        rows = read_json_lines(self.path / METRICS)
        if rows:
            kept = [row for row in rows if row.get("step", 0) < until.get(row.get("trial", -1), 0)]
            write_json_lines(self.path / METRICS, kept)
        (self.path / SUMMARY).unlink(missing_ok=True)

    def remove_units(self) -> bool:
        """Removes what was read of units' images, which are others now; whether there was anything."""
        there = (self.path / UNITS).is_file()
        self.remove(_OF_UNITS)
        return there

    def check_left_over(self) -> None:
        """Raises ValueError where there is no checkpoint to go on from and the folder holds another run's results."""
        if self.path.is_dir() and not contents(self.path) <= _BEGUN:
            raise ValueError(
                f"resume: {self.path} holds no checkpoint but other files; pass overwrite (--overwrite) instead "
                "to replace its results, or give another folder"
            )

    def _is_anothers(self) -> bool:
        """Whether the records in the folder are no run's, which always has a recipe that names teachers."""
        recipe = self.path / RECIPE
        if not recipe.is_file():
            return (self.path / SUMMARY).is_file()  # which comes last
        try:
            return "teachers" not in load_yaml(recipe)
        except ConfigError:
            return False  # damaged: to be replaced

    @property
    def _is_ours(self) -> bool:
        """Whether a recipe or metrics show that a run wrote here."""
        return any((self.path / name).is_file() for name in (RECIPE, METRICS))

    def _class_folders(self) -> list[Path]:
        images = self.path / PICTURES
        folders = images.iterdir() if images.is_dir() else ()
        return [f for f in folders if f.is_dir() and not f.is_symlink() and _CLASS_FOLDER.fullmatch(f.name)]

    def _results(self) -> Iterator[Path]:
        """The files there that have names of ours; last those that show that they are."""
        files = [
            file for folder in self._class_folders() for file in folder.iterdir() if _IMAGE_FILE.fullmatch(file.name)
        ]
        if self._is_ours and self.checkpoints.is_dir():
            files += [file for file in self.checkpoints.iterdir() if _CHECKPOINT_FILE.fullmatch(file.name)]
        files += [self.path / f"{name}{suffix}" for name in _FILES for suffix in ("", ".tmp")]
        yield from (file for file in files if file.is_file() or file.is_symlink())

    def _remove_results(self) -> None:
        images = self.path / PICTURES
        for folder in (images, self.checkpoints):
            if folder.is_symlink():
                raise ValueError(f"output: {folder} is a link; remove it yourself or give another folder")
        for folder in self.path.glob("replica*"):  # what a replica left that failed
            if folder.is_dir() and not folder.is_symlink() and folder.name.removeprefix("replica").isdigit():
                ResultsFolder(folder)._remove_results()
                with suppress(OSError):
                    folder.rmdir()
        class_folders = self._class_folders()
        for file in list(self._results()):
            file.unlink()
        for folder in (*class_folders, images, self.checkpoints):
            with suppress(OSError):  # absent, or holds files that are not ours
                folder.rmdir()

    # --- write ------------------------------------------------------------------------------------------------

    def write_recipe(self, text: str) -> None:
        write_text(self.path / RECIPE, text)

    def open_metrics(self) -> JsonLines:
        return JsonLines(self.path / METRICS)

    def write_images(self, images: torch.Tensor, targets: torch.Tensor, class_names: Sequence[str] = ()) -> None:
        """Writes the batch exactly, as pictures, and as one picture.

        images.safetensors: `images` float32 (N, 3, H, W), RGB in [0, 1], and `targets` int64 (N,).
        images/<class index, 4 digits>_<class name>/<n>.png: 8 bits, n counts within the class from 0.
        grid.png: see `draw_grid`.

        Raises ValueError for shapes that do not fit, values that are not finite, or a target without a name.
        """
        images, targets = checked_batch(images, targets, class_names)
        with replacing(self.path / IMAGES) as temporary:
            save_file({"images": images, "targets": targets}, temporary)
        seen: dict[int, int] = {}
        for pixels, target in zip(to_bytes(images), targets.tolist(), strict=True):
            n = seen.get(target, 0)
            seen[target] = n + 1
            name = _file_name(class_names[target]) if class_names else ""
            class_folder = f"{target:04d}_{name}" if name else f"{target:04d}"
            with replacing(self.path / PICTURES / class_folder / f"{n}.png") as file:
                Image.fromarray(pixels.numpy()).save(file, format="PNG")
        with replacing(self.path / GRID) as file:
            draw_grid(images, targets, class_names).save(file, format="PNG")

    def write_readings(
        self,
        logits: Mapping[str, torch.Tensor],
        per_image: Sequence[Mapping[str, Any]],
        per_layer: Sequence[Mapping[str, Any]],
    ) -> None:
        """What the networks make of the images: logits (N, classes) by name, and rows."""
        with replacing(self.path / LOGITS) as temporary:
            save_file({name: tensor.float().contiguous() for name, tensor in logits.items()}, temporary)
        write_json_lines(self.path / PER_IMAGE, per_image)
        write_json_lines(self.path / PER_LAYER, per_layer)

    def write_agreement(self, agreement: Agreement) -> None:
        """`maps` (N, H, W) and the cosines (N,) of each pair of teachers."""
        with replacing(self.path / AGREEMENT) as temporary:
            save_file(agreement.tensors(), temporary)

    def write_attribution(self, maps: torch.Tensor) -> None:
        """`maps` (N, H, W)."""
        with replacing(self.path / ATTRIBUTION) as temporary:
            save_file({"maps": maps.float().contiguous()}, temporary)

    def write_units(self, rows: Sequence[Mapping[str, Any]], sheets: Mapping[str, Image.Image | None]) -> None:
        """How much each image excites its unit, and pictures by their names; one that is None is there no more.

        The rows come last: where they are, all is.
        """
        self.remove_units()
        for name, picture in sheets.items():
            if picture is not None:
                with replacing(self.path / name) as file:
                    picture.save(file, format="PNG")
        write_json_lines(self.path / UNITS, rows)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        write_json(self.path / SUMMARY, summary)

    # --- read -------------------------------------------------------------------------------------------------

    def read_recipe(self) -> dict[str, Any]:
        """The recipe that the run resolved, as plain data."""
        return load_yaml(self._there(RECIPE))

    @contextmanager
    def parsing(self) -> Iterator[None]:
        """Mistakes in the folder's recipe are told in one line."""
        try:
            yield
        except ConfigError as error:
            raise ValueError(f"{self.path / RECIPE}: {in_one_line(error)}") from None

    def read_summary(self) -> dict[str, Any]:
        """What the run summed up; empty where it did not end. ValueError where the file holds something else."""
        found = read_json(self.path / SUMMARY) if (self.path / SUMMARY).is_file() else {}
        if not isinstance(found, dict):
            raise ValueError(f"{self.path / SUMMARY} is damaged; make the images again")
        return found

    def read_images(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Images (N, 3, H, W) and targets (N,)."""
        tensors = self._tensors(IMAGES)
        if not {"images", "targets"} <= tensors.keys():
            raise ValueError(f"{self.path / IMAGES} holds no images with targets; it is not a run's")
        return tensors["images"], tensors["targets"]

    def check_holds(self, images: torch.Tensor) -> None:
        """ValueError where the images there are not these: another run has taken the folder."""
        if not (self.path / IMAGES).is_file() or not torch.equal(self.read_images()[0], images.float()):
            raise ValueError(
                f"output: another run has taken {self.path} meanwhile; make these images again, in another folder"
            )

    def read_logits(self) -> dict[str, torch.Tensor]:
        return self._tensors(LOGITS) if (self.path / LOGITS).is_file() else {}

    def read_agreement(self) -> Agreement | None:
        """None where the recipe did not ask for it."""
        return Agreement.from_tensors(self._tensors(AGREEMENT)) if (self.path / AGREEMENT).is_file() else None

    def read_attribution(self) -> torch.Tensor | None:
        """None where the recipe did not ask for it."""
        return self._tensors(ATTRIBUTION)["maps"] if (self.path / ATTRIBUTION).is_file() else None

    def read_rows(self, name: str) -> list[dict[str, Any]]:
        """PER_IMAGE, PER_LAYER or METRICS."""
        return read_json_lines(self.path / name)

    def _tensors(self, name: str) -> dict[str, torch.Tensor]:
        try:
            return load_file(self._there(name))
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{self.path / name} cannot be read ({error}); make the images again") from None

    def _there(self, name: str) -> Path:
        file = self.path / name
        if file.is_file():
            return file
        instead = "give the results folder of a finished run of invert.py"
        if is_dataset(self.path):
            instead = "this is a dataset, which GeneratedImages opens in Python"
        elif (weights := self.path / WEIGHTS).is_file():
            instead = f"this is a trained network, which MODEL@{weights} loads"
        raise ValueError(f"{file} does not exist; {instead}")


def _file_name(class_name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", class_name).strip("._-")[:60]
