"""What a launcher says of this process, known before any group exists and without torch; nobody else reads it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

_RANK, _RANKS, _LOCAL_RANK, _LOCAL_RANKS = "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"
_RESTARTS = "TORCHELASTIC_RESTART_COUNT"


def launched_rank() -> int:
    """This process' global rank; 0 without a launcher."""
    return int(os.environ.get(_RANK, "0"))


def launched_ranks() -> int:
    """How many processes torchrun (or our own launcher) started; 1 without it."""
    return int(os.environ.get(_RANKS, "1"))


def local_rank() -> int | None:
    """This process' rank on its machine; None without a launcher."""
    return int(os.environ[_LOCAL_RANK]) if _LOCAL_RANK in os.environ else None


def local_ranks() -> int:
    """How many ranks are on this machine; 1 without a launcher."""
    return int(os.environ.get(_LOCAL_RANKS, "1"))


def is_launched() -> bool:
    """Whether a launcher started this process as a rank."""
    return _RANK in os.environ


def is_under_torchrun() -> bool:
    """Whether that launcher is torchrun, which has a report of its own when a rank ends."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def is_restarted() -> bool:
    """Whether torchrun started the ranks anew after a failure."""
    return int(os.environ.get(_RESTARTS, "0")) > 0


def is_main_process() -> bool:
    """Whether this process is rank 0."""
    return launched_rank() == 0


def of_rank(rank: int, ranks: int) -> dict[str, str]:
    """What a launcher on one machine says to each of its ranks."""
    named = {_RANK: rank, _RANKS: ranks, _LOCAL_RANK: rank, _LOCAL_RANKS: ranks, _RESTARTS: 0}
    return {name: str(value) for name, value in named.items()}


@contextmanager
def alone() -> Iterator[None]:
    """Inside, this process is no rank: what is computed there is its own, and meets no other."""
    names = (_RANK, _RANKS, _LOCAL_RANK, _LOCAL_RANKS, _RESTARTS)
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)
