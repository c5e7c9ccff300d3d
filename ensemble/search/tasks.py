"""Numbered tasks in a study of Optuna's, which any number of workers do, each once, also where one of them dies.

A task is done by a trial. Trials are numbered by the database as they are made, and most are for the next task. What a
worker leaves behind that ended or died is given to a further trial, which says so (`task`) from the moment it is made.
So who has which task follows from the trials alone, and two workers that take the same one both see who was first.
"""

from __future__ import annotations

import datetime
import sqlite3
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError, UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial, TrialState

from ensemble.machine.errors import MachineFailure
from ensemble.search.folder import is_gone

HEARTBEAT, GRACE = 10, 60
"""Seconds between signs of life of a trial, and after which one without is given up."""
_TRIES = 3
"""A task of which so many workers died is not tried again: it may be what kills them."""
_POLL = 0.5
_PATIENCE = 60
"""Seconds that a locked database is waited for."""
_ALIVE = (TrialState.RUNNING, TrialState.WAITING, TrialState.COMPLETE, TrialState.PRUNED)


class TaskFailed(Exception):
    """What a task raises that cannot be done; its text is the reason. Others go on."""


class _Surplus(Exception):
    """Another worker has the task, or there is none left."""


@dataclass(frozen=True)
class Task:
    """How a task stands."""

    number: int
    trial: FrozenTrial
    """The one that counts."""
    failed: str | None = None
    """Why it cannot be done."""

    @property
    def ended(self) -> bool:
        return self.failed is not None or self.trial.state in (TrialState.COMPLETE, TrialState.PRUNED)


class Tasks:
    """The tasks of a study, for one worker."""

    def __init__(self, study: optuna.Study, worker: Mapping[str, str]) -> None:
        self.study = study
        self._worker = dict(worker)

    def number(self, trial: FrozenTrial) -> int:
        """Which task a trial is for."""
        return _number(trial, self._trials())

    def all(self) -> list[Task]:
        """Every task that a trial was made for, in their order."""
        by_number: dict[int, list[FrozenTrial]] = {}
        trials = self._trials()
        for trial in trials:
            by_number.setdefault(_number(trial, trials), []).append(trial)
        return [_standing(number, by_number[number]) for number in sorted(by_number)]

    def ended(self, total: int) -> int:
        """How many of the first `total` tasks have ended."""
        return sum(task.ended for task in self.all() if task.number < total)

    def work(self, total: int, do: Callable[[Trial, int], float], after: Callable[[], None]) -> None:
        """Does tasks until the first `total` have ended; calls `after` after each, and while others do the last ones.

        `do` gets a trial and the number of its task and returns its value. TaskFailed and optuna.TrialPruned end a
        task; whatever else it raises ends this worker, and leaves the task to the next one.
        """
        while self.ended(total) < total:
            self._recover(total)
            if self._open(total):
                self._take(total, do)
            else:
                time.sleep(_POLL)
            after()

    def _take(self, total: int, do: Callable[[Trial, int], float]) -> None:
        given_up = []

        def one(trial: Trial) -> float:
            try:
                return self._done(trial, total, do)
            except UpdateFinishedTrialError:  # this process slept, and others waited no longer
                given_up.append(trial)
                raise _Surplus from None

        try:
            self.study.optimize(one, n_trials=1, catch=(TaskFailed, _Surplus))
        except ValueError:  # the study will not hear of it any more
            if not given_up:
                raise

    def _done(self, trial: Trial, total: int, do: Callable[[Trial, int], float]) -> float:
        began = time.perf_counter()
        try:
            value = do(trial, self._claimed(trial, total))
        except TaskFailed as error:
            trial.set_user_attr("failed", str(error))
            raise
        except optuna.TrialPruned:
            trial.set_user_attr("seconds", time.perf_counter() - began)
            raise
        except BaseException:
            trial.set_user_attr("let_go", True)
            raise
        trial.set_user_attr("seconds", time.perf_counter() - began)
        return value

    def _claimed(self, trial: Trial, total: int) -> int:
        """The trial's task; _Surplus where it is not to be done by it."""
        trial.set_user_attr("worker", self._worker)
        trials = self._trials()
        mine = next(one for one in trials if one.number == trial.number)
        number = _number(mine, trials)
        earlier = [one for one in trials if one.number < mine.number and one.state in _ALIVE]
        if number >= total or any(_number(one, trials) == number for one in earlier):
            raise _Surplus
        return number

    def _open(self, total: int) -> bool:
        """Whether a trial that is made now would have something to do."""
        tasks = self.all()
        fresh = sum("task" not in trial.user_attrs for trial in self._trials())
        return fresh < total or any(t.trial.state == TrialState.WAITING for t in tasks if t.number < total)

    def _recover(self, total: int) -> None:
        """Gives up what nobody works on any more, and lets it be done again with the same values."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            optuna.storages.fail_stale_trials(self.study)
        for trial in self._trials():
            if trial.state == TrialState.RUNNING and _is_lost(trial):
                self.study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
        for task in self.all():
            if task.number < total and task.trial.state == TrialState.FAIL and not task.ended:
                drawn = task.trial.params if "values" in task.trial.user_attrs else {}  # else not all of them
                self.study.enqueue_trial(drawn, {"task": task.number})

    def _trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)


def _number(trial: FrozenTrial, trials: Sequence[FrozenTrial]) -> int:
    if "task" in trial.user_attrs:
        return int(trial.user_attrs["task"])
    return sum("task" not in one.user_attrs for one in trials if one.number < trial.number)


def _standing(number: int, trials: Sequence[FrozenTrial]) -> Task:
    """A task by all trials that were made for it."""
    if alive := [trial for trial in trials if trial.state in _ALIVE]:
        ended = [trial for trial in alive if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
        return Task(number, (ended or alive)[0])
    for trial in trials:
        if "failed" in trial.user_attrs:
            return Task(number, trial, trial.user_attrs["failed"])
    died = [trial for trial in trials if not trial.user_attrs.get("let_go")]
    reason = f"{_TRIES} workers ended while they did it" if len(died) >= _TRIES else None
    return Task(number, max(trials, key=lambda trial: (len(trial.params), trial.number)), reason)


def _is_lost(trial: FrozenTrial) -> bool:
    """Whether a running trial's worker is gone, as far as that is known here; its heartbeat tells of the others."""
    worker = trial.user_attrs.get("worker")
    if worker is not None:
        return is_gone(worker)
    began = trial.datetime_start or datetime.datetime.now()
    return (datetime.datetime.now() - began).total_seconds() > GRACE  # it died before its first sign of life


@contextmanager
def database(where: str | Path, turn: AbstractContextManager[None]) -> Iterator[optuna.storages.RDBStorage]:
    """The database, a URL or the folder's own file, with signs of life; silent. Its tables are made within `turn`.

    ValueError where there is none, MachineFailure where it fails later.
    """
    from sqlalchemy.exc import SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    with turn:
        try:
            storage = _opened(where)
        except (SQLAlchemyError, ImportError, RuntimeError) as error:
            why = str(error).strip().splitlines()[0]
            if isinstance(where, Path):
                raise ValueError(f"output: {where} is damaged ({why}); pass --overwrite to search anew") from None
            text = f"--storage{_shown(where)}: {why}; give a database that can be reached"
            raise ValueError(f"{text}, as sqlite:///FILE or postgresql://HOST/NAME") from None
    try:
        yield storage
    except (SQLAlchemyError, StorageInternalError) as error:
        why = str(error.__cause__ or error).strip().splitlines()[0]
        raise MachineFailure(f"the study's database failed ({why}); the same command with --resume goes on") from None
    finally:
        storage.remove_session()
        storage.engine.dispose()


def open_study(storage: Any, name: str, minimised: bool) -> Any:
    """The study of a name, made where there is none."""
    return optuna.create_study(
        storage=storage,
        study_name=name,
        direction="minimize" if minimised else "maximize",
        pruner=optuna.pruners.NopPruner(),
        load_if_exists=True,
    )


def _opened(where: str | Path) -> optuna.storages.RDBStorage:
    arguments: dict[str, Any]
    if isinstance(where, Path):  # no URL, in which a name's ? and % would mean something

        def connected() -> sqlite3.Connection:
            return sqlite3.connect(where, timeout=_PATIENCE, check_same_thread=False)

        url, arguments = "sqlite:///study.db", {"creator": connected}
    else:
        url = where
        arguments = {"connect_args": {"timeout": _PATIENCE}} if where.startswith("sqlite") else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return optuna.storages.RDBStorage(url, arguments, heartbeat_interval=HEARTBEAT, grace_period=GRACE)


def _shown(url: str) -> str:
    """The URL without its password; nothing where it is none."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        return f" {make_url(url).render_as_string(hide_password=True)}"
    except ArgumentError:
        return ""
