"""TensorBoard's view of a run: scalars and grids of images, by the standard SummaryWriter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ensemble.engine.inversion import Inversion
from ensemble.image.pictures import draw_grid
from ensemble.runs.plan import Plan

_GRIDS = 10
"""Grids of images in a trial, besides the last."""


def check_board(folder: Path, goes_on: bool) -> None:
    """ValueError where the package is missing, or the folder has another run's events, beside which nothing is read."""
    if find_spec("tensorboard") is None:
        raise ValueError("tensorboard: the package is not installed; pip install 'ensemble-inversion[tensorboard]'")
    if not goes_on and any(folder.glob("trial*/events.out.tfevents.*")):
        raise ValueError(f"tensorboard: {folder} holds another run's curves; give another folder, or remove it")


class Board:
    """Writes into `folder`, a subfolder a trial. A failure ends the board and nothing else."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self._folder = folder
        self._plan = plan
        self._every = max(1, plan.recipe.iterations // _GRIDS)
        self._writers: dict[int, Any] = {}
        self._failed = False

    def scalars(self, trial: int, step: int, values: Mapping[str, float]) -> None:
        """Losses, learning rate and stage at a step."""
        if self._failed:
            return
        with self._guarded():
            for name, value in values.items():
                self._writer(trial, step).add_scalar(name, value, step)

    def images(self, trial: int, inversion: Inversion, last: bool) -> None:
        """The images as they stand, at some of the steps and at the last."""
        step = inversion.step
        if self._failed or (step % self._every and not last):
            return
        with self._guarded(), torch.no_grad():
            images = inversion.image().float().clamp(0, 1).cpu()
            grid = np.array(draw_grid(images, self._plan.targets(trial), self._plan.class_names).convert("RGB"))
            self._writer(trial, step).add_image("images", grid, step, dataformats="HWC")

    def close(self) -> None:
        """Writes what is held back."""
        for writer in self._writers.values():
            with self._guarded():
                writer.close()

    def _writer(self, trial: int, step: int) -> Any:
        if trial not in self._writers:
            from torch.utils.tensorboard import SummaryWriter

            # what a run wrote there from this step on, before it was stopped, is no more
            self._writers[trial] = SummaryWriter(str(self._folder / f"trial{trial}"), purge_step=step)
        return self._writers[trial]

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except Exception:
            self._failed = True
