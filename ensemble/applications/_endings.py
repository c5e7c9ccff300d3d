"""How a command ends that does not end by itself: a signal, a stop that was asked for, no memory left."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from ensemble.machine.environment import is_main_process, is_under_torchrun

Summary = TypeVar("Summary", bound=Mapping[str, Any])
OF_TRAINING = "out of memory; a smaller batch, --set schedule.batch_size=N, needs less"


def ended(
    act: Callable[[], Summary], options: argparse.Namespace, unit: str, no_memory: str = OF_TRAINING
) -> Summary | int:
    """The summary that `act` returns; the exit code where a signal ended it, of which it tells: what was whole is kept.

    Raises MachineFailure with `no_memory` where the memory does not suffice.
    """
    from ensemble.machine.errors import MachineFailure, is_out_of_memory
    from ensemble.machine.launch import EndedAtOnce, end_on_signals

    try:
        with end_on_signals():
            return act()
    except KeyboardInterrupt as end:
        number = end.number if isinstance(end, EndedAtOnce) else signal.SIGINT
        again = f"the same command with --resume{_instead(options)} goes on from the last whole {unit}"
        return _tell_interrupted(number, again)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise MachineFailure(no_memory) from None


def tell_stopped(stop: Exception, options: argparse.Namespace) -> int:
    """A line of a stop that was asked for, which ends with what to do; the exit code."""
    if is_main_process():
        note = "; nothing is lost by what torchrun reports now, its own way to end" if is_under_torchrun() else ""
        print(f"invert.py: {stop}{_instead(options)}{note}", file=sys.stderr)
    return 0


def tell_unread(number: int, options: argparse.Namespace) -> int:
    """A line of a signal while saved images were read; the exit code."""
    again = f"the same command with --resume{_instead(options)} reads them"
    return _tell_interrupted(number, f"the images are saved, and {again}")


def _tell_interrupted(number: int, what_is_kept: str) -> int:
    by = "" if number == signal.SIGINT else f" by {signal.Signals(number).name}"
    print(f"invert.py: interrupted{by}; {what_is_kept}", file=sys.stderr)
    return 128 + number


def _instead(options: argparse.Namespace) -> str:
    return " instead of --overwrite" if options.overwrite else ""
