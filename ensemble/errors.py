"""Failures of the machine, as against mistakes of the user (ValueError); they end a run with exit code 1."""

from __future__ import annotations


class MachineFailure(Exception):
    """The disk, another rank or the memory failed; the message is one line that says what to do."""


class CollectiveFailure(MachineFailure):
    """A failure that every rank meets at the same point, so that one of them need tell."""

    collective = True
