"""Failures that know who tells of them, and mistakes of the user (ValueError) as against failures of the machine."""

from __future__ import annotations

from collections.abc import Sequence

EVERYONE = -1
"""As a teller: every rank meets the failure at the same point, so rank 0 tells."""
NOBODY = -2
"""As a teller: another rank has told already."""


class Failure(Exception):
    """A failure of a run over ranks: a line for each thing that is wrong, and the global rank that tells of it.

    `teller` may also be EVERYONE or NOBODY.
    """

    def __init__(self, problems: str | Sequence[str], teller: int = EVERYONE) -> None:
        super().__init__(problems)
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        self.teller = teller

    def __str__(self) -> str:
        return "\n".join(self.problems)


class Mistake(Failure, ValueError):
    """A mistake of the user that ranks have agreed on; a plain ValueError is one that this process met."""


class MachineFailure(Failure):
    """The disk, another rank or the memory failed; the text is one line that says what to do."""


def told_by(error: Exception, teller: int) -> Failure:
    """`error` as a failure that `teller` tells; one that has a teller keeps its class."""
    if isinstance(error, Failure):
        error.teller = teller
        return error
    if isinstance(error, ValueError):
        return Mistake(problems_of(error), teller)
    if isinstance(error, OSError):
        return MachineFailure(disk_text(error), teller)
    assert is_out_of_memory(error), f"{error!r} is neither a mistake nor a failure of the machine"
    return MachineFailure(OUT_OF_MEMORY, teller)


def problems_of(error: ValueError) -> list[str]:
    """A line for each thing that is wrong: several where the error holds a list, else one."""
    held = error.args[0] if error.args else ""
    return [" ".join(str(line).split()) for line in (held if isinstance(held, list) else [error])]


OUT_OF_MEMORY = "out of memory; pass micro_batch auto (--micro-batch auto), or make fewer or smaller images"


def disk_text(error: OSError) -> str:
    """One line about a file that could not be read or written."""
    return f"{error.filename or 'the disk'}: {error.strerror or error}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of a GPU or of the machine, where torch says so in words alone."""
    names = {base.__name__ for base in type(error).__mro__}
    said = ("can't allocate memory", "Storage size calculation overflowed")
    return bool(names & {"OutOfMemoryError", "MemoryError"}) or any(text in str(error) for text in said)
