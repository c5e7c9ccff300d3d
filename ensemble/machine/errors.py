"""Failures of the machine, as against mistakes of the user (ValueError); they end a run with exit code 1."""

from __future__ import annotations


class MachineFailure(Exception):
    """The disk, another rank or the memory failed; the message is one line that says what to do."""


class CollectiveFailure(MachineFailure):
    """A failure that every rank meets at the same point, so that one of them need tell."""

    collective = True


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of a GPU or of the machine, where torch says so in words alone."""
    return type(error).__name__ in ("OutOfMemoryError", "MemoryError") or "can't allocate memory" in str(error)
