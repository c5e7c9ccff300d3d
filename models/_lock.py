"""Processes of one machine that want the same download: one fetches it, the others find it in the cache."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

try:
    import fcntl
except ImportError:  # not a Unix
    fcntl = None  # type: ignore[assignment]


@contextmanager
def first_alone(key: str) -> Iterator[None]:
    """Inside, the first process is alone; those that come meanwhile wait for its end, then go on together.

    The lock is a file in torch hub's cache folder. Where none can be had (no fcntl, a folder that cannot be
    written, a file system without locks) all go on at once.
    """
    handle = _open(key)
    try:
        if handle is not None:
            _wait(handle)
        yield
    finally:
        if handle is not None:
            os.close(handle)  # gives the lock back


def _open(key: str) -> int | None:
    if fcntl is None:
        return None
    folder = Path(torch.hub.get_dir()) / "ensemble_inversion_locks"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return os.open(folder / (re.sub(r"[^\w.+-]", "_", key) + ".lock"), os.O_RDWR | os.O_CREAT, 0o666)
    except OSError:
        return None


def _wait(handle: int) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:  # another one is at it
        fcntl.flock(handle, fcntl.LOCK_SH)
    except OSError:
        pass
