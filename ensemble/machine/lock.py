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

from ensemble.machine.files import leaving_no_empty

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK, OWNER = ".lock", ".lock.owner"
"""The file that the system locks; and the one that stands for a lock where the system has none.

Whoever follows one that is gone adds a file, named after the token of the one before: `.lock.owner.TOKEN`. Such a chain
has one end, whoever looks when, as only one process can make a file; its end is who holds the folder.
"""
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
    with leaving_no_empty(folder), _locked(folder):
        yield


def holder(folder: Path) -> str | None:
    """Who holds the folder, in words; None where nobody does. Makes nothing."""
    with suppress(OSError):
        descriptor = os.open(folder / LOCK, os.O_RDWR)
        try:
            if _lock(descriptor, shared=True) is False:
                return _words(folder / LOCK)
        finally:
            os.close(descriptor)
    owner = _owner(folder)
    return _words(owner) if owner and _is_live(owner) else None


def in_use(folder: Path, by: str) -> ValueError:
    """The mistake of a second start."""
    return ValueError(f"output: {folder} is in use by {by}; let it end first, or give another folder")


def contents(folder: Path) -> set[str]:
    """The names in the folder, but for what a lock leaves; none where there is no folder. ValueError for a file."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output: {folder} is a file; give a folder")
    names = {file.name for file in folder.iterdir()} if folder.is_dir() else set()
    return {name for name in names if name != LOCK and not name.startswith(OWNER)}


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
            owner = _owner(folder)
            if owner is None or not _is_live(owner):
                return descriptor, True
            os.close(descriptor)  # held by a machine that has no locks here
            raise in_use(folder, _words(owner))
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
    mine = _own_record() | {"token": uuid.uuid4().hex}
    _tokens.add(mine["token"])
    ended = threading.Event()

    def refresh() -> None:
        while not ended.wait(_REFRESHED_EVERY):
            with suppress(OSError):
                os.utime(path)

    refreshing = threading.Thread(target=refresh, daemon=True)
    try:
        path = _own(folder, mine)
        refreshing.start()
        try:
            yield
        finally:
            ended.set()
            _disown(folder, path)
    finally:
        _tokens.discard(mine["token"])


def _own(folder: Path, mine: dict[str, Any]) -> Path:
    """Adds this process to the chain, and returns its file."""
    for _ in range(_TRIES):
        owner = _owner(folder)
        if owner and _is_live(owner):
            time.sleep(0.2)  # until it has written who it is
            raise in_use(folder, _words(owner))
        path = _after(owner) if owner else folder / OWNER
        folder.mkdir(parents=True, exist_ok=True)
        try:
            file = path.open("x", encoding="utf-8")
        except (FileExistsError, FileNotFoundError):  # another was faster; or has just removed the folder
            continue
        try:
            with file:
                file.write(json.dumps(mine))
        except OSError:  # a full disk
            path.unlink()
            raise
        if _owner(folder) == path:
            return path
        path.unlink()  # the chain that it was to lengthen has ended meanwhile, and is gone
    raise in_use(folder, "another process")


def _disown(folder: Path, path: Path) -> None:
    """Removes the chain, its first file first: a file that others still add to the rest then stands for nothing."""
    chain = _chain(folder)
    if chain[-1:] == [path]:
        with suppress(OSError):
            for file in (*chain, folder / LOCK):
                file.unlink()


def _owner(folder: Path) -> Path | None:
    """The end of the chain: the file of who holds the folder, or held it last and was killed."""
    chain = _chain(folder)
    return chain[-1] if chain else None


def _chain(folder: Path) -> list[Path]:
    chain, path = [], folder / OWNER
    while path.exists():
        chain.append(path)
        path = _after(path)
    return chain


def _after(path: Path) -> Path:
    """Where the one that follows this file's process puts its own."""
    token = _record(path).get("token")
    return path.with_name(f"{OWNER}.{token}" if token else f"{path.name}.unknown")


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
