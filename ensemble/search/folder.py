"""The folder of a search, which several workers may share: the one file that knows the names in it."""

from __future__ import annotations

import platform
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import sleep
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ensemble.config.mistakes import ConfigError
from ensemble.config.yaml_files import dump_yaml, load_yaml
from ensemble.data.labelled import LabelledImages
from ensemble.machine.files import read_json_lines, replacing, write_json, write_json_lines, write_text
from ensemble.machine.lock import held, holder, in_use
from ensemble.machine.output_folder import OutputFolder
from ensemble.search.settings import Settings

SEARCH, STUDY, HELD_OUT = "search.yaml", "study.db", "held_out.safetensors"
POINTS, TABLE, BEST, PLOT, SUMMARY = "points.jsonl", "table.md", "best.yaml", "plot.png", "summary.json"
WORKERS = "workers"
_JOURNALS = tuple(f"{STUDY}-{end}" for end in ("journal", "wal", "shm"))
_FILES = (SUMMARY, PLOT, BEST, TABLE, POINTS, HELD_OUT, *_JOURNALS, STUDY, SEARCH)
"""The settings come last where they are removed: they show whose the others are."""
_KEYS = {"metric", "judge", "seeds", "sampler", "pruner", "space", "recipe"}


@dataclass(frozen=True)
class SearchFolder(OutputFolder):
    """What a search writes and reads in `path`."""

    what = "search"
    begins_with = SEARCH

    @property
    def database(self) -> Path:
        """The folder's own study."""
        return (self.path / STUDY).absolute()

    # --- begin, go on -----------------------------------------------------------------------------------------

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Holds the folder while something is written; waits while another worker does."""
        with ExitStack() as stack:
            while not self._entered(stack):
                sleep(0.1)
            yield

    def _entered(self, stack: ExitStack) -> bool:
        try:
            stack.enter_context(held(self.path))
        except ValueError:  # in use
            return False
        return True

    @contextmanager
    def worker(self) -> Iterator[dict[str, str]]:
        """Who this worker is, as others can look it up while it lives: its host, and a folder that it holds."""
        folder = self.path.absolute() / WORKERS / uuid.uuid4().hex
        with held(folder):
            yield {"host": platform.node(), "folder": str(folder)}
        with suppress(OSError):  # others work on
            folder.parent.rmdir()

    def check(self, settings: Settings, *, resume: bool, overwrite: bool) -> None:
        """Raises ValueError where the search may not write here; changes nothing.

        An empty folder, or none, may be written to. Another only with `resume`, where it holds this search, or with
        `overwrite`, where it holds a search that nobody works on.
        """
        if not self.is_taken(resume=resume, overwrite=overwrite):
            return
        stored = self._stored()
        if stored is None:
            raise self.holds_none("output")
        if resume and (changed := settings.changed(stored)):
            raise self.holds_another(changed)
        if overwrite and (other := self._living()):
            raise in_use(self.path, other)

    def begin(self, settings: Settings, *, resume: bool, overwrite: bool) -> None:
        """Checks again, now that the folder is held, and writes the settings; `overwrite` removes an earlier search."""
        self.check(settings, resume=resume, overwrite=overwrite)
        if overwrite:
            self.remove(_FILES)
        if self._stored() is None:
            write_text(self.path / SEARCH, dump_yaml(settings.plain()))

    def check_study(self) -> None:
        """ValueError where points are listed here, and their study, which is to be here, is gone."""
        if (self.path / POINTS).exists() and not (self.path / STUDY).is_file():
            raise ValueError(f"resume: {self.path} has lost its {STUDY}; pass --overwrite to search anew")

    def check_listed(self, ended: int) -> None:
        """ValueError where more points are listed here than the study, which is elsewhere, has: it is another one."""
        rows = read_json_lines(self.path / POINTS)
        if (listed := sum(row.get("state") in ("complete", "pruned", "failed") for row in rows)) > ended:
            raise ValueError(
                f"storage: {self.path} lists {listed} points and the study there has {ended}; name their own, or "
                "another --output"
            )

    def go_on(self, finished: bool) -> None:
        """Drops the summary of fewer points than there are to be."""
        if not finished:
            (self.path / SUMMARY).unlink(missing_ok=True)

    def _living(self) -> str | None:
        """A worker of this folder that is there, in words."""
        folders = sorted((self.path / WORKERS).iterdir()) if (self.path / WORKERS).is_dir() else []
        return next(filter(None, map(holder, folders)), None)

    def _stored(self) -> dict[str, Any] | None:
        """The settings of the search that began here, if one did."""
        try:
            stored = load_yaml(self.path / SEARCH)
        except ConfigError:
            return None
        return stored if stored.keys() >= _KEYS else None

    # --- write and read ---------------------------------------------------------------------------------------

    def write_points(self, rows: Sequence[Mapping[str, Any]], table: str, best: str | None) -> None:
        """A line a point, the same as a table, and the recipe of the best."""
        write_json_lines(self.path / POINTS, rows)
        write_text(self.path / TABLE, table)
        if best is not None:
            write_text(self.path / BEST, best)

    def write_plot(self, png: bytes) -> None:
        with replacing(self.path / PLOT) as file:
            file.write_bytes(png)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        write_json(self.path / SUMMARY, summary)

    @property
    def has_held_out(self) -> bool:
        return (self.path / HELD_OUT).is_file()

    def write_held_out(self, images: LabelledImages) -> None:
        """`images` uint8 (N, 3, H, W), `labels` int64 (N,); the classes' names are in the metadata."""
        tensors = {"images": images.images, "labels": images.labels}
        with replacing(self.path / HELD_OUT) as file:
            save_file(tensors, file, {"class_names": "\n".join(images.class_names)})

    def read_held_out(self) -> LabelledImages:
        file = self.path / HELD_OUT
        try:
            with safe_open(file, "pt") as held_out:
                names = tuple(held_out.metadata()["class_names"].split("\n"))
                images, labels = held_out.get_tensor("images"), held_out.get_tensor("labels")
        except (SafetensorError, OSError, KeyError, TypeError) as error:
            raise ValueError(f"{file} cannot be read ({error}); begin anew with --overwrite") from None
        if images.dtype != torch.uint8 or images.ndim != 4 or labels.shape != images.shape[:1]:
            raise ValueError(f"{file} holds no labelled images; begin anew with --overwrite")
        return LabelledImages(images, labels, names)


def is_gone(worker: Mapping[str, str]) -> bool:
    """Whether a worker of this machine is there no more; of another one that is not known here."""
    folder = Path(worker["folder"])
    return worker["host"] == platform.node() and folder.is_dir() and holder(folder) is None
