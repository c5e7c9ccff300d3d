"""A folder that one process writes at a time."""

from __future__ import annotations

import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK, OWNER = ".lock", ".lock.owner"
"""The file that the system locks; and the one that stands for a lock where the system has none."""
_REFRESHED_EVERY = 30.0
_STALE_AFTER = 600.0
"""Seconds after which a file that was not refreshed is that of a process which is gone, where nothing else tells."""
_TRIES = 100
_tokens: set[str] = set()
"""Of the folders that this process holds without the system's locks."""


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Holds the folder, which is made where there is none, against other processes, and other calls in this one.

    The system locks a file in it, and unlocks it when the process ends, however it ends. Where the file system has no
    locks, a file stands for one: it is refreshed, and stale when its process is gone, or, on another machine, when it
    was not refreshed for long.

    Afterwards the files are gone, and so is the folder where it was made here and nothing was written. Raises
    ValueError, which names the process, where another holds the folder, and OSError where it cannot be written.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        with _locked(folder):
            yield
    finally:
        for path in made:
            with suppress(OSError):  # not empty
                path.rmdir()


def holder(folder: Path) -> str | None:
    """Who holds the folder, in words; None where nobody does. Makes nothing."""
    with suppress(OSError):
        descriptor = os.open(folder / LOCK, os.O_RDWR)
        try:
            if _lock(descriptor, shared=True) is False:
                return _words(folder / LOCK)
        finally:
            os.close(descriptor)
    return _words(folder / OWNER) if _is_live(folder / OWNER) else None


def in_use(folder: Path, by: str) -> ValueError:
    """The mistake of a second start."""
    return ValueError(f"output: {folder} is in use by {by}; let it end first, or give another folder")


def contents(folder: Path) -> set[str]:
    """The names in the folder, but for what a lock leaves; none where there is no folder. ValueError for a file."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output: {folder} is a file; give a folder")
    return {file.name for file in folder.iterdir()} - {LOCK, OWNER} if folder.is_dir() else set()


def not_empty(folder: Path, instead: str) -> ValueError:
    """The mistake of writing where something is: somebody writes it now, or `instead` says what to do."""
    by = holder(folder)
    return ValueError(f"output: {folder} is not empty; {instead}") if by is None else in_use(folder, by)


# --- locked by the system -------------------------------------------------------------------------------------


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor, locked = _take(folder)
    try:
        if locked:
            with suppress(OSError):  # a full disk: who comes second will not learn the name
                os.truncate(descriptor, 0)
                os.write(descriptor, json.dumps(_own_record()).encode())
            try:
                yield
            finally:
                with suppress(OSError):
                    (folder / LOCK).unlink()  # before it is let go: who has opened it meanwhile sees that it is gone
        else:
            with _owned(folder):
                yield
    finally:
        os.close(descriptor)


def _take(folder: Path) -> tuple[int, bool]:
    """The open file, and whether the system could lock it."""
    for tries in range(_TRIES):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # who held the folder has just removed it
            continue
        locked = _lock(descriptor)
        if locked is None:
            return descriptor, False
        if locked and _is_at(folder / LOCK, descriptor):
            if not _is_live(folder / OWNER):
                return descriptor, True
            os.close(descriptor)  # held by a machine that has no locks here
            raise in_use(folder, _words(folder / OWNER))
        os.close(descriptor)
        if not locked:
            time.sleep(0.2)  # until it has written who it is; or it is only one that looks
            if tries:
                break
    raise in_use(folder, _words(folder / LOCK))


def _lock(descriptor: int, shared: bool = False) -> bool | None:
    """Whether the file is locked by this now, and not by another; None where the system cannot say."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # ENOLCK, ENOSYS, EOPNOTSUPP: network file systems
        return None
    return True


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


# --- without the system's locks -------------------------------------------------------------------------------


@contextmanager
def _owned(folder: Path) -> Iterator[None]:
    path, mine = folder / OWNER, _own_record() | {"token": uuid.uuid4().hex}
    _tokens.add(mine["token"])
    ended = threading.Event()

    def refresh() -> None:
        while not ended.wait(_REFRESHED_EVERY):
            with suppress(OSError):
                os.utime(path)

    refreshing = threading.Thread(target=refresh, daemon=True)
    try:
        _own(path, mine)
        refreshing.start()
        yield
    finally:
        ended.set()
        _tokens.discard(mine["token"])
        if _record(path) == mine:
            with suppress(OSError):
                path.unlink()
                (folder / LOCK).unlink()


def _own(path: Path, mine: dict[str, Any]) -> None:
    """Makes the file, or takes the place of one that is stale."""
    if _make(path, mine):
        return
    if _is_live(path):
        time.sleep(0.2)  # until it has written who it is
        raise in_use(path.parent, _words(path))
    path.unlink(missing_ok=True)
    _make(path, mine)
    time.sleep(0.5)  # two may have found it stale, and the later one removes what the first has made
    if _record(path) != mine:
        raise in_use(path.parent, _words(path))


def _make(path: Path, record: dict[str, Any]) -> bool:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(json.dumps(record))
    except FileExistsError:
        return False
    return True


def _is_live(path: Path) -> bool:
    """Whether the process that made the file is still there, as far as can be known."""
    try:
        age = time.time() - path.stat().st_mtime
    except OSError:
        return False
    record = _record(path)
    if record.get("host") != platform.node() or os.name != "posix":
        return age < _STALE_AFTER
    if record["pid"] == os.getpid():  # or that of one before, which had the same number
        return record.get("token") in _tokens
    try:
        os.kill(record["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it is somebody else's
    return True


# --- who it is ------------------------------------------------------------------------------------------------


def _own_record() -> dict[str, Any]:
    return {"pid": os.getpid(), "host": platform.node(), "since": time.strftime("%Y-%m-%d %H:%M:%S %z")}


def _record(path: Path) -> dict[str, Any]:
    """What the file says; empty where it says nothing whole."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return {"pid": int(record["pid"]), **record}
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def _words(path: Path) -> str:
    record = _record(path)
    if not {"pid", "host", "since"} <= record.keys():
        return "another process"
    words = f"process {record['pid']} on {record['host']}, since {record['since']}"
    return f"{words} (if that is no run of yours any more, remove {path})" if "token" in record else words
