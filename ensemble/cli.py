"""The command line: which command, who tells of a failure, exit codes."""

from __future__ import annotations

import ast
import os
import sys
import time
import traceback
import warnings
from importlib import import_module
from pathlib import Path

from ensemble.applications._options import Parser, check_alone
from ensemble.machine.environment import is_launched, launched_rank
from ensemble.machine.errors import (
    EVERYONE,
    OUT_OF_MEMORY,
    Failure,
    MachineFailure,
    disk_text,
    is_out_of_memory,
    problems_of,
)
from ensemble.machine.streams import unfailing_output
from ensemble.machine.waiting import wait_briefly_beside_others

PROGRAM = "invert.py"
_DEFAULT = "invert"
_APPLICATIONS = Path(__file__).parent / "applications"
_OTHERS_TELL = 10.0
"""Seconds a rank leaves to the one that tells of a failure which both met."""


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0 done (or stopped and saved), 1 a failure of the machine, 2 a mistake of the user, 130 Ctrl-C
    (and 128 + the number of another signal that ended a training).

    Failures are told in one line each, by one rank; what is neither keeps its traceback. A terminal, pipe or file that
    cannot be written takes nothing from what is done, and does not change the exit code.
    """
    with unfailing_output():
        return _main(arguments)


def _main(arguments: list[str] | None) -> int:
    try:
        return _run(sys.argv[1:] if arguments is None else arguments)
    except (Failure, ValueError) as error:
        _tell(error)
        return 1 if isinstance(error, MachineFailure) else 2
    except OSError as error:
        _tell(MachineFailure(disk_text(error), launched_rank()))
        return 1
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        _tell(MachineFailure(OUT_OF_MEMORY, launched_rank()))
        return 1
    except KeyboardInterrupt:
        _tell(MachineFailure("interrupted; nothing was saved since the last checkpoint"))
        return 130


def process() -> None:
    """`main` as the whole of a process."""
    wait_briefly_beside_others()
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    if launched_rank():  # one rank warns
        warnings.simplefilter("ignore")
    try:
        code = main()
    except Exception:
        if not is_launched():
            raise
        with unfailing_output():
            traceback.print_exc()
        code = 1
    if is_launched():
        # All is written; threads of the communication library can abort a rank whose interpreter winds down.
        os._exit(code)
    sys.exit(code)


def commands() -> dict[str, str]:
    """The commands and what they do: a module in `applications` each, whose docstring begins with it."""
    texts = {name: (_APPLICATIONS / f"{name}.py").read_text(encoding="utf-8") for name in _names()}
    return {name: (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0] for name, text in texts.items()}


def _names() -> list[str]:
    return sorted(file.stem for file in _APPLICATIONS.glob("*.py") if not file.stem.startswith("_"))


def _run(arguments: list[str]) -> int:
    named = bool(arguments) and arguments[0] in _names()
    if arguments and not named and not arguments[0].startswith("-"):
        known = ", ".join(_names())
        raise ValueError(f"unknown command {arguments[0]!r}; commands: {known}; see {PROGRAM} --help")
    name = arguments[0] if named else _DEFAULT
    application = import_module(f"ensemble.applications.{name}")
    parser = Parser(f"{PROGRAM} {name}" if named else PROGRAM, application.__doc__ or "")
    if not named and {"-h", "--help"} & set(arguments):
        parser.list_commands(commands())
    application.arguments(parser)
    options = parser.parse_args(arguments[1:] if named else arguments)
    if options.plugin:
        from ensemble.plugins import load_plugin

        for plugin in options.plugin:
            load_plugin(plugin)
    if not getattr(application, "ON_RANKS", False):
        check_alone(name)
    code: int = application.run(options)
    return code


def _tell(error: Failure | ValueError) -> None:
    """One line on stderr a mistake: from the failure's teller, or where there is none or it is everyone, from rank 0.

    The launcher ends all ranks as soon as one has failed. So a rank with nothing to tell does not leave before the
    one that tells. A plain error was met before the ranks met: by all of them, or by this one alone, so that a rank
    which is still there after a while tells.
    """
    teller = error.teller if isinstance(error, Failure) else EVERYONE
    if launched_rank() != (0 if teller == EVERYONE else teller):
        time.sleep(_OTHERS_TELL)
        if isinstance(error, Failure):
            return
    problems = error.problems if isinstance(error, Failure) else problems_of(error)
    where = f"rank {launched_rank()}: " if launched_rank() else ""
    if len(problems) > 1:
        print("\n".join([f"{PROGRAM}: {where}{len(problems)} mistakes", *problems]), file=sys.stderr)
    else:
        print(f"{PROGRAM}: {where}{' '.join(problems[0].split())}", file=sys.stderr)


if __name__ == "__main__":
    process()
