"""Who does which task of a study, and what becomes of those whose worker died."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import optuna
import pytest

from ensemble.machine.errors import MachineFailure
from ensemble.search.folder import SearchFolder
from ensemble.search.tasks import TaskFailed, Tasks, database, open_study

pytestmark = pytest.mark.filterwarnings("ignore:Heartbeat of storage")  # trials that nobody works on are asked for


@pytest.fixture
def tasks(tmp_path: Path) -> Iterator[Tasks]:
    folder = SearchFolder(tmp_path)
    with folder.worker() as worker, database(folder.database, nullcontext()) as storage:
        yield Tasks(open_study(storage, "study", minimised=True), worker)


def nothing() -> None:
    pass


def done(tasks: Tasks, total: int) -> list[int]:
    """The numbers of the tasks that are done now, in their order."""
    numbers: list[int] = []

    def do(trial: optuna.Trial, number: int) -> float:
        numbers.append(number)
        return float(number)

    tasks.work(total, do, nothing)
    return numbers


def values(tasks: Tasks) -> list[tuple[int, Any]]:
    return [(task.number, task.trial.value) for task in tasks.all()]


def test_each_task_is_done_once_and_more_go_on_from_there(tasks: Tasks) -> None:
    assert done(tasks, 3) == [0, 1, 2]
    assert done(tasks, 3) == []
    assert done(tasks, 5) == [3, 4]
    assert values(tasks) == [(n, float(n)) for n in range(5)]


def test_what_an_end_leaves_is_done_next_with_the_same_values(tasks: Tasks) -> None:
    drawn: list[tuple[int, float]] = []

    def do(trial: optuna.Trial, number: int) -> float:
        drawn.append((number, trial.suggest_float("x", 0, 1)))
        trial.set_user_attr("values", {"x": drawn[-1][1]})  # all of them are drawn
        if len(drawn) in (2, 4, 5, 6):
            raise KeyboardInterrupt
        return 0.0

    for _ in range(4):  # more often than a task may kill its worker: Ctrl-C is no death
        with pytest.raises(KeyboardInterrupt):
            tasks.work(3, do, nothing)
    tasks.work(3, do, nothing)
    assert [number for number, _ in drawn] == [0, 1, 1, 2, 2, 2, 2]
    assert drawn[1] == drawn[2] and len(set(drawn[3:])) == 1
    assert [number for number, _ in values(tasks)] == [0, 1, 2]


def test_what_ends_before_all_values_are_drawn_draws_them_anew(tasks: Tasks) -> None:
    """With the first alone given, a sampler would take the second for the first."""

    def half(trial: optuna.Trial, number: int) -> float:
        trial.suggest_float("x", 0, 1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tasks.work(1, half, nothing)
    assert done(tasks, 1) == [0]
    assert tasks.study.get_trials()[-1].system_attrs["fixed_params"] == {}


def test_a_task_that_cannot_be_done_is_not_tried_again(tasks: Tasks) -> None:
    def do(trial: optuna.Trial, number: int) -> float:
        if number == 1:
            raise TaskFailed("it is odd")
        return 0.0

    tasks.work(3, do, nothing)
    assert [task.failed for task in tasks.all()] == [None, "it is odd", None]
    assert done(tasks, 3) == []


def test_of_two_that_take_one_task_the_first_has_it(tasks: Tasks) -> None:
    first = tasks.study.ask()  # by another worker, which lives
    first.set_user_attr("worker", {"host": "elsewhere", "folder": "nowhere"})
    for _ in range(2):
        tasks.study.enqueue_trial({}, {"task": 0})

    def after() -> None:
        if len(tasks.all()) == 2 and tasks.all()[1].ended:
            tasks.study.tell(first.number, 7.0, skip_if_finished=True)

    numbers: list[int] = []

    def do(trial: optuna.Trial, number: int) -> float:
        numbers.append(number)
        return 0.0

    tasks.work(2, do, after)
    assert numbers == [1] and values(tasks) == [(0, 7.0), (1, 0.0)]


def test_a_worker_of_this_machine_that_died_is_known_at_once(tasks: Tasks, tmp_path: Path) -> None:
    dead = tasks.study.ask()
    left = tmp_path / "workers" / "dead"
    left.mkdir()
    with SearchFolder(tmp_path).worker() as living:
        dead.set_user_attr("worker", {**living, "folder": str(left)})
        alive = tasks.study.ask()
        alive.set_user_attr("worker", living)
        tasks._recover(2)
        states = [trial.state.name for trial in tasks.study.get_trials()]
    assert states == ["FAIL", "RUNNING", "WAITING"]
    tasks.study.tell(alive.number, 1.0)
    assert done(tasks, 3) == [0, 2]


def test_a_worker_elsewhere_is_given_up_when_it_shows_no_sign_of_life(tasks: Tasks, tmp_path: Path) -> None:
    trial = tasks.study.ask()
    trial.set_user_attr("worker", {"host": "elsewhere", "folder": "nowhere"})
    tasks.study._storage.record_heartbeat(trial._trial_id)
    tasks._recover(1)
    assert tasks.all()[0].trial.state.name == "RUNNING"
    with sqlite3.connect(tmp_path / "study.db") as base:
        base.execute("UPDATE trial_heartbeats SET heartbeat = datetime(heartbeat, '-100 seconds')")
    assert done(tasks, 1) == [0]


def test_a_task_that_kills_its_workers_is_given_up(tasks: Tasks) -> None:
    for _ in range(3):
        trial = tasks.study.ask()
        tasks.study.tell(trial.number, state=optuna.trial.TrialState.FAIL)  # as for one that is found dead
        tasks._recover(1)
    assert tasks.all()[0].failed == "3 workers ended while they did it"
    assert tasks.ended(1) == 1 and done(tasks, 2) == [1]


def test_a_process_that_slept_too_long_goes_on(tasks: Tasks) -> None:
    """Others have given its trial up: what it found does not count, and is done again."""
    slept: list[int] = []

    def do(trial: optuna.Trial, number: int) -> float:
        if not slept:
            slept.append(number)
            tasks.study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        return 1.0

    tasks.work(2, do, nothing)
    assert values(tasks) == [(0, 1.0), (1, 1.0)]


def test_a_database_that_fails_is_a_failure_of_the_machine(tmp_path: Path) -> None:
    failing = pytest.raises(MachineFailure, match="the same command with --resume goes on")
    with failing, database(f"sqlite:///{tmp_path / 'study.db'}", nullcontext()) as storage:
        study = open_study(storage, "study", minimised=True)
        with sqlite3.connect(tmp_path / "study.db") as base:
            base.execute("DROP TABLE trials")
        study.ask()
