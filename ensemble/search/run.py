"""A search as one worker does it, alone or beside others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from statistics import mean
from typing import Any

import optuna
import torch
from optuna.trial import Trial

from ensemble.machine.errors import problems_of
from ensemble.machine.progress import ProgressReporter
from ensemble.runs.origin import changed
from ensemble.search.confirmation import Confirmation, confirm
from ensemble.search.folder import SearchFolder
from ensemble.search.plot import plot
from ensemble.search.points import PointRow, best_of, rows_of
from ensemble.search.report import best_recipe, summary_of, table
from ensemble.search.sampling import make_pruner, make_sampler
from ensemble.search.settings import Settings
from ensemble.search.space import point_of
from ensemble.search.tasks import TaskFailed, Tasks, database, open_study
from ensemble.search.value import Value


def search(
    settings: Settings,
    folder: SearchFolder,
    device: torch.device,
    *,
    files: Mapping[str, str],
    points: int,
    confirmations: int,
    storage: str | None,
    resume: bool,
    overwrite: bool,
    progress: ProgressReporter,
) -> Mapping[str, Any]:
    """The summary of a search of so many points, all of which is in the folder and in the study.

    `files` are digests of what points are made from and judged by, by which a study is known again. `confirmations` are
    the seeds on which the best point is run again beside the baseline; 0: it is not. `storage` is the URL of a
    database, by default one in the folder.

    Raises ValueError as `SearchFolder.check` does, where the database cannot be had, where a file is not what it was
    when the study began, and where the recipe as it is fails; KeyboardInterrupt where it was asked to stop: the study
    goes on from there.
    """
    folder.check(settings, resume=resume, overwrite=overwrite)
    if storage is None and not overwrite:
        folder.check_study()
    with ExitStack() as stack:  # what may be refused comes before what is written, or removed
        opened = stack.enter_context(database(storage, folder.turn())) if storage else None
        with folder.turn():
            folder.begin(settings, resume=resume, overwrite=overwrite)
        worker = stack.enter_context(folder.worker())
        if opened is None:
            opened = stack.enter_context(database(folder.database, folder.turn()))
        with folder.turn():
            study = open_study(opened, settings.study, settings.metric.minimised)
            _check_files(study, files)
        tasks = Tasks(study, worker)
        if (there := sum(task.ended for task in tasks.all())) > points:
            raise ValueError(f"trials: the study holds {there} points already; ask for at least as many")
        if storage is not None:
            folder.check_listed(sum(task.ended for task in tasks.all()))
        folder.go_on(finished=tasks.ended(points) >= points)
        value = Value(settings, folder, device, study, progress.message)
        here = _Search(settings, folder, points, progress, tasks, value)
        study.sampler = make_sampler(settings, here.baseline, tasks.number)
        study.pruner = make_pruner(settings, tasks.number)
        if tasks.ended(points) < points:
            _ = value.measure  # what it loads or makes is no part of a step's time
        with here.shown():
            here.tasks.work(points, here.do, here.update)
            best = here.best
            said = here.confirmed(opened, best, confirmations, worker) if best is not None else None
            return here.finish(best, said)


def _check_files(study: optuna.Study, now: Mapping[str, str]) -> None:
    """ValueError where a file has other contents than when the study began: its points could not be compared."""
    before = study.user_attrs.get("files", {})
    if others := changed(before, now):
        raise ValueError(f"resume: {', '.join(others)} are not those that the search began with; begin another one")
    if not now.keys() <= before.keys():
        study.set_user_attr("files", before | dict(now))


@dataclass
class _Search:
    settings: Settings
    folder: SearchFolder
    points: int
    progress: ProgressReporter
    tasks: Tasks
    value: Value
    shown_points: set[int] = field(default_factory=set)

    # --- a point ----------------------------------------------------------------------------------------------

    @cached_property
    def baseline(self) -> dict[str, Any]:
        """The recipe's own values as a study holds them; empty where the space leaves one of them out."""
        own = self.settings.space.encoded(self.settings.space.values_of(self.settings.recipe))
        return {} if None in own.values() else own

    def do(self, trial: Trial, number: int) -> float:
        """The mean metric of a point over its seeds; point 0 is the recipe as it is, also outside of the space."""
        space = self.settings.space
        values = space.values_of(self.settings.recipe) if number == 0 else {}
        if number or self.baseline:
            values = space.suggest(trial)
        trial.set_user_attr("values", values)
        try:
            recipe = point_of(self.settings.recipe, values) if number else self.settings.recipe
        except ValueError as error:  # each value alone was fine
            raise TaskFailed(" ".join(problems_of(error))) from None
        seeds: list[float] = []
        for place in range(self.settings.seeds):
            seeds.append(self.value(recipe, place, must=number == 0))
            trial.set_user_attr("seeds", seeds)
            self.progress.step(self.settings.seeds * len(self.shown_points) + place, {"metric": mean(seeds)})
            if place + 1 < self.settings.seeds:
                trial.report(mean(seeds), place + 1)
                if number and trial.should_prune():
                    raise optuna.TrialPruned
        return mean(seeds)

    # --- the end ----------------------------------------------------------------------------------------------

    @property
    def rows(self) -> list[PointRow]:
        return rows_of(self.tasks.all(), self.points)

    @property
    def best(self) -> PointRow | None:
        return best_of(self.rows, self.settings)

    def confirmed(
        self, storage: Any, best: PointRow, seeds: int, worker: Mapping[str, str]
    ) -> Confirmation | str | None:
        """What new seeds say of the best point; None where it is the baseline, or none are asked for."""
        if not seeds or best["point"] == 0:
            return None
        settings = self.settings
        self.progress.message(f"confirming point {best['point']} on {seeds} seeds that the search did not see")
        study = open_study(storage, f"{settings.study}-confirm-{best['point']}", settings.metric.minimised)
        recipes = point_of(settings.recipe, best["values"]), settings.recipe
        return confirm(Tasks(study, worker), recipes, seeds, settings.metric.minimised, self.value, self.progress)

    def finish(self, best: PointRow | None, said: Confirmation | str | None) -> Mapping[str, Any]:
        """Writes everything; the summary comes last."""
        rows = self.rows
        summary = summary_of(self.settings, rows, best, said)
        with self.folder.turn():
            self._write(rows, best, said)
            self.folder.write_plot(plot(self.settings, rows))
            self.folder.write_summary(summary)
        return summary

    def _write(self, rows: list[PointRow], best: PointRow | None, said: Confirmation | str | None) -> None:
        text = best_recipe(self.settings, best, said) if best is not None else None
        self.folder.write_points(rows, table(self.settings, rows, best, said), text)

    # --- shown meanwhile --------------------------------------------------------------------------------------

    @contextmanager
    def shown(self) -> Iterator[None]:
        """The progress of all workers; what there is is written also where this one is ended."""
        ended = [row["point"] for row in self.rows if row["state"] in _ENDED]
        self.shown_points.update(ended)
        self.progress.start(self.points * self.settings.seeds, len(ended) * self.settings.seeds)
        try:
            yield
        except KeyboardInterrupt:
            with self.folder.turn():
                self.folder.write_plot(plot(self.settings, self.rows))
            raise
        finally:
            self.progress.close()

    def update(self) -> None:
        """Shows and writes the points that ended since, whoever did them."""
        rows = self.rows
        new = [row for row in rows if row["state"] in _ENDED and row["point"] not in self.shown_points]
        for row in new:
            self.shown_points.add(row["point"])
            self.progress.step(self.settings.seeds * len(self.shown_points) - 1)
            self.progress.message(_said(row))
        if new:
            with self.folder.turn():
                self._write(rows, best_of(rows, self.settings), None)


_ENDED = ("complete", "pruned", "failed")


def _said(row: PointRow) -> str:
    values = ", ".join(f"{path} {value:.4g}" if isinstance(value, float) else f"{path} {value}"
                       for path, value in row["values"].items())  # fmt: skip
    shown = row["reason"] if row["mean"] is None else f"{row['mean']:.4g}"
    state = "" if row["state"] == "complete" else f" ({row['state']})"
    return f"point {row['point']}{state}: {shown}; {values}"
