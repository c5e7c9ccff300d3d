"""A leakage study from its recipe to its page, by one process or several."""

from __future__ import annotations

import time

from ensemble.machine.environment import alone
from ensemble.machine.hardware import set_up
from ensemble.machine.progress import ProgressReporter
from ensemble.machine.ranks import ProcessContext, process_context
from ensemble.privacy.study.bank import CPU, Bank
from ensemble.privacy.study.cells import Cell, Cells
from ensemble.privacy.study.conclusions import conclude
from ensemble.privacy.study.folder import LeakageFolder
from ensemble.privacy.study.page import write
from ensemble.privacy.study.recipe import LeakageRecipe
from ensemble.runs.job import held_for_all

_PATIENCE = 7 * 24 * 3600.0
"""Seconds that a rank waits for others at the end of a phase; a launcher ends it sooner where one fails."""


def study(
    recipe: LeakageRecipe,
    folder: LeakageFolder,
    *,
    resume: bool,
    overwrite: bool,
    quick: bool,
    command: str,
    versions: str,
    progress: ProgressReporter,
) -> bool:
    """Whether this process wrote the page: the first of the ranks does, each of which computes its share of cells.

    A cell that is there is not computed again. ValueError as `LeakageFolder.check` and `Bank.check` raise it.
    """
    began = time.perf_counter()
    folder.check(recipe, resume=resume, overwrite=overwrite)
    set_up("fp32", CPU)
    bank = Bank(recipe)
    bank.check()
    with process_context(CPU) as context, held_for_all(folder, context):
        context.limit(_PATIENCE)
        with context.agree():
            if context.is_main:
                folder.check(recipe, resume=resume, overwrite=overwrite)  # another may have ended meanwhile
                folder.begin(recipe, bank.digest(), resume=resume)
        cells = Cells(bank, folder)
        _compute(cells, context, progress)
        if context.is_main:
            with alone():
                write(cells, conclude(cells), command, versions, time.perf_counter() - began, quick)
        return context.is_main


def _compute(cells: Cells, context: ProcessContext, progress: ProgressReporter) -> None:
    phases = cells.phases()
    total = sum(map(len, phases))
    progress.start(total, 0)
    done = 0
    try:
        for phase in phases:
            for i, cell in enumerate(phase):
                if i % context.world_size == context.rank:
                    _make(cells, cell, progress)
                progress.step(done + i, {})
            done += len(phase)
            context.gather(None)
    finally:
        progress.close()


def _make(cells: Cells, cell: Cell, progress: ProgressReporter) -> None:
    if not cells.folder.has(cell.name):
        progress.message(cell.what)
        with alone():
            cell.make()
