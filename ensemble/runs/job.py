"""A run that is checked and may begin: what the command line and Python callers share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ensemble.machine.environment import is_restarted
from ensemble.machine.files import user_path
from ensemble.machine.hardware import choose_devices
from ensemble.machine.output_folder import OutputFolder, check_writable, writing
from ensemble.machine.progress import ProgressReporter
from ensemble.machine.ranks import ProcessContext, process_context
from ensemble.objectives.terms import Objective
from ensemble.recipe import Recipe, parse_recipe
from ensemble.runs.checkpoints import is_finished
from ensemble.runs.folder import RECIPE, ResultsFolder
from ensemble.runs.networks import Networks
from ensemble.runs.plan import Plan, check_placement, make_plan
from ensemble.runs.recipes import assembled, read_recipe, set_of_optimizer
from ensemble.runs.results import Results
from ensemble.runs.run import run
from ensemble.runs.tensorboard import check_board


@dataclass(frozen=True)
class Job:
    """A plan, the devices it is for, and where its results go."""

    plan: Plan
    device: torch.device
    """Of this process."""
    devices: Sequence[torch.device]
    """All that are known to take part."""
    folder: ResultsFolder | None
    resume: bool
    overwrite: bool
    command: str = ""
    """How it was asked for."""
    tensorboard: Path | None = None

    @property
    def is_finished(self) -> bool:
        """Whether it is to go on with a run that has ended."""
        return self.resume and self.folder is not None and is_finished(self.plan, self.folder)

    def check(self, ranks: int) -> None:
        """ValueError where results may not be written, or teachers cannot be placed on so many ranks."""
        if self.folder is not None:
            self.folder.check(resume=self.resume, overwrite=self.overwrite)
        if self.tensorboard is not None:
            check_board(self.tensorboard, goes_on=self.resume)
            check_writable(self.tensorboard, "tensorboard")
        check_placement(self.plan, ranks)

    def run(self, began: float, progress: ProgressReporter, *, keeps_partial: bool = False) -> Results | None:
        """What `ensemble.runs.run.run` returns, as a process of its own or as one of torchrun's ranks."""
        with process_context(self.device) as context, held_for_all(self.folder, context):
            return run(
                self.plan,
                context,
                self.folder,
                resume=self.resume,
                overwrite=self.overwrite,
                began=began,
                progress=progress,
                keeps_partial=keeps_partial,
                command=self.command,
                tensorboard=self.tensorboard,
            )


@contextmanager
def held_for_all(folder: OutputFolder | None, context: ProcessContext) -> Iterator[None]:
    """The folder, by rank 0 for all; ValueError, on all, where another run holds it or it cannot be written."""
    with ExitStack() as stack:
        with context.agree():
            if folder is not None and context.is_main:
                with writing(folder.path):
                    stack.enter_context(folder.held())
        yield


def job(
    recipe: Recipe,
    output: str | Path | None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    networks: Networks | None = None,
    terms: Sequence[Objective] = (),
    command: str = "",
    tensorboard: str | Path | None = None,
) -> Job:
    """The job of a recipe; ValueError for what its cards, devices and files do not allow."""
    resume = resume or is_restarted()
    device, devices = choose_devices(recipe.runtime.device)
    folder = None if output is None else ResultsFolder(user_path(output))
    board = None if tensorboard is None else user_path(tensorboard)
    return Job(make_plan(recipe, devices, networks, terms), device, devices, folder, resume, overwrite, command, board)


def recipe_for(
    source: str | Path | Mapping[str, Any] | None,
    fields: Mapping[str, Any],
    overrides: Sequence[str],
    output: str | Path | None,
    resume: bool,
) -> Recipe:
    """The recipe from `source` (a file, a shipped name, plain data), or where `output` goes on, from there.

    A run that goes on keeps its stages; `iterations` makes its last one longer.
    """
    goes_on = resume and (source is None or fields.get("iterations") is not None)
    saved = _saved(output) if goes_on else None
    if source is None and saved is None:
        raise ValueError("name teachers or a recipe" + (f"; {output} holds no run to go on with" if resume else ""))
    data = saved if source is None else source
    if isinstance(data, str | Path):
        data = read_recipe(data)
    assert data is not None
    total = fields.get("iterations")
    if saved is None or total is None:
        return assembled(data, fields, overrides)
    recipe = assembled(data, {**fields, "iterations": None}, overrides)
    begun = parse_recipe(saved)
    if [replace(s, iterations=1) for s in recipe.stages] != [replace(s, iterations=1) for s in begun.stages]:
        raise ValueError("resume: the run has other stages; only their last may have more iterations")
    return recipe.with_steps_of(begun, set_of_optimizer(overrides)).continued_to(total)


def _saved(output: str | Path | None) -> dict[str, Any] | None:
    """The recipe that a run wrote into the folder, if one did; ValueError where it cannot be read."""
    if output is None or not (folder := ResultsFolder(user_path(output))).has_recipe:
        return None
    data = read_recipe(folder.path / RECIPE)
    with folder.parsing():
        parse_recipe(data)
    return data
