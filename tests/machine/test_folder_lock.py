"""One process writes a folder at a time, whatever ends it."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ensemble.machine import lock
from ensemble.machine.lock import held, holder

ROOT = Path(__file__).resolve().parents[2]
HOLD = """
import sys, time
from pathlib import Path
from ensemble.machine import lock
if sys.argv[2] == "no locks":
    lock.fcntl = None
while time.time() < float(sys.argv[3]):
    pass
try:
    with lock.held(Path(sys.argv[1])):
        print("held", flush=True)
        sys.stdin.read()
except ValueError as error:
    print(error, flush=True)
"""
WAYS = ["locks", "no locks"]


def start(folder: Path, way: str, at: float = 0.0) -> subprocess.Popen[str]:
    """A process that holds the folder until its stdin is closed; it tries at the time `at`."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", HOLD, str(folder), way, str(at)]
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})


def says(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


def ends(process: subprocess.Popen[str]) -> None:
    process.communicate(timeout=30)


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With the system's locks, and without."""
    if request.param == "no locks":
        monkeypatch.setattr(lock, "fcntl", None)
    return request.param


def test_a_folder_that_was_made_for_nothing_is_gone(way: str, tmp_path: Path) -> None:
    with held(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b" / ".lock").is_file()
    assert not list(tmp_path.iterdir())
    with pytest.raises(RuntimeError), held(tmp_path / "a"):
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_what_was_written_stays(way: str, tmp_path: Path) -> None:
    with held(tmp_path / "a"):
        (tmp_path / "a" / "file").touch()
    assert [file.name for file in (tmp_path / "a").iterdir()] == ["file"]


def test_the_second_of_one_process_is_refused(way: str, tmp_path: Path) -> None:
    with held(tmp_path):
        with pytest.raises(ValueError, match=rf"in use by process {os.getpid()} on ") as caught, held(tmp_path):
            pass
        assert "\n" not in str(caught.value)
        assert holder(tmp_path)
    assert holder(tmp_path) is None
    with held(tmp_path):
        pass


def test_another_process_is_named_and_a_killed_one_is_forgotten(way: str, tmp_path: Path) -> None:
    other = start(tmp_path, way)
    assert says(other) == "held"
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=rf"in use by process {other.pid} on "), held(tmp_path):
        pass
    assert f"process {other.pid}" in str(holder(tmp_path))
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    other.send_signal(signal.SIGKILL)
    ends(other)
    assert (tmp_path / ".lock").exists() and holder(tmp_path) is None
    with held(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("left", ["nothing", "locks", "no locks"])
@pytest.mark.parametrize("way", WAYS)
def test_of_starts_at_one_moment_exactly_one_wins(way: str, left: str, tmp_path: Path) -> None:
    for i in range(3):
        folder = tmp_path / str(i)
        if left != "nothing":  # of a process that was killed
            dead = start(folder, left)
            assert says(dead) == "held"
            dead.kill()
            ends(dead)
        at = time.time() + 1
        starts = [start(folder, way, at) for _ in range(4)]
        said = [says(process) for process in starts]
        winner = said.index("held") if "held" in said else None
        assert winner is not None and said.count("held") == 1, said
        if way == "locks":  # else one that gave way to a later one may have been named
            assert all(f"process {starts[winner].pid} on" in text for text in said if text != "held"), said
        for process in starts:
            ends(process)


def test_a_file_of_another_machine_is_stale_after_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = {"pid": 1, "host": "elsewhere", "since": "yesterday", "token": "x"}
    for name in (".lock", ".lock.owner"):
        (tmp_path / name).write_text(json.dumps(record) if name.endswith("owner") else "")
    for fcntl in (lock.fcntl, None):  # also for who has locks
        monkeypatch.setattr(lock, "fcntl", fcntl)
        with pytest.raises(ValueError, match="in use by process 1 on elsewhere"), held(tmp_path):
            pass
    assert holder(tmp_path)
    os.utime(tmp_path / ".lock.owner", (0, time.time() - 3600))
    assert holder(tmp_path) is None
    with held(tmp_path):
        assert json.loads((tmp_path / ".lock.owner.x").read_text())["pid"] == os.getpid()
    assert not list(tmp_path.iterdir())


def test_a_file_alone_is_refreshed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "fcntl", None)
    monkeypatch.setattr(lock, "_REFRESHED_EVERY", 0.05)
    with held(tmp_path):
        os.utime(tmp_path / ".lock.owner", (0, 0))
        deadline = time.monotonic() + 20
        while not (tmp_path / ".lock.owner").stat().st_mtime and time.monotonic() < deadline:
            time.sleep(0.02)
        assert (tmp_path / ".lock.owner").stat().st_mtime > 0


def test_a_process_that_had_this_ones_number_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container the first process always has the same."""
    monkeypatch.setattr(lock, "fcntl", None)
    with held(tmp_path):
        text = (tmp_path / ".lock.owner").read_text()
    (tmp_path / ".lock.owner").write_text(text)
    with held(tmp_path):
        pass


@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize("killed", [0, 1, 3])
def test_one_that_is_held_up_does_not_take_what_another_has(
    killed: int, keeps: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever time passes between that it looks and that it takes."""
    monkeypatch.setattr(lock, "fcntl", None)
    for _ in range(killed):
        dead = start(tmp_path, "no locks")
        assert says(dead) == "held"
        dead.kill()
        ends(dead)
    other = held(tmp_path)
    looks = lock._owner

    def held_up(folder: Path) -> Path | None:
        monkeypatch.setattr(lock, "_owner", looks)
        owner = looks(folder)
        other.__enter__()
        if not keeps:
            other.__exit__(None, None, None)
        return owner

    monkeypatch.setattr(lock, "_owner", held_up)
    if keeps:
        with pytest.raises(ValueError, match="in use by"), held(tmp_path):
            pass
        assert holder(tmp_path)
        other.__exit__(None, None, None)
    else:
        with held(tmp_path):
            assert holder(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", refuses)
    with held(tmp_path):
        assert (tmp_path / ".lock.owner").is_file()


def test_a_full_disk_does_not_stop_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with held(tmp_path), pytest.raises(ValueError, match="in use by another process"), held(tmp_path):
        pass


def test_a_file_in_the_folders_place(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(OSError), held(tmp_path / "out"):
        pass
