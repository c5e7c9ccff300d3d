"""Ranks started, and asked to stop, on this machine."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from ensemble.machine.environment import of_rank
from ensemble.machine.errors import MachineFailure

_STOPS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)]
"""What asks a run to stop: a scheduler, Ctrl-C, a terminal that is closed."""


def launch_ranks(command: Sequence[str], count: int) -> int:
    """Run `command` as `count` ranks on this machine through torch's own launcher; returns the exit code.

    What asks for a stop goes on to the ranks as SIGTERM; they save and stop. When a rank fails the others are ended;
    the exit code is its own; MachineFailure where a signal killed it.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, start_processes
    from torch.distributed.elastic.multiprocessing.api import PContext

    logging.disable(logging.ERROR)  # the ranks tell their errors themselves
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    common = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count))),
    }
    ranks: PContext | None = None
    stop = StopRequest()

    def forward(*_: object) -> None:
        stop.asked = True
        for pid in ranks.pids().values() if ranks else ():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = ""  # torch would raise an error in this process for each of them
    # SIGQUIT too: ranks have sessions of their own, and would be left behind
    with _handling([*_STOPS, *([signal.SIGQUIT] if hasattr(signal, "SIGQUIT") else [])], forward):
        ranks = start_processes(
            "invert",
            command[0],
            {rank: tuple(command[1:]) for rank in range(count)},
            {rank: common | of_rank(rank, count) for rank in range(count)},
            DefaultLogsSpecs(),
        )
        try:
            if stop.asked:  # while they were started
                forward()
            result = ranks.wait(period=0.1)
        finally:
            ranks.close()
    assert result is not None, "the ranks were waited for without a limit"
    codes = {rank: failure.exitcode for rank, failure in result.failures.items()}
    told = [code for code in codes.values() if code > 0]
    if codes and not told:
        # those that were asked to end because of another come last
        rank, code = min(codes.items(), key=lambda item: (item[1] == -signal.SIGTERM, item[0]))
        name = signal.Signals(-code).name
        raise MachineFailure(f"rank {rank} was ended by {name}; to go on, run the same command with --resume")
    return max(told, default=0)


@dataclass
class StopRequest:
    """Set by a signal, read at the end of each step."""

    asked: bool = False


@contextmanager
def stop_on_signals(stop: StopRequest) -> Iterator[None]:
    """SIGTERM, SIGINT and SIGHUP ask for a stop at the end of the step; the handlers before are put back.

    A second SIGINT is a KeyboardInterrupt at once.
    """

    def ask(number: int, _: object) -> None:
        if stop.asked and number == signal.SIGINT:  # a step that hangs is broken off
            raise KeyboardInterrupt
        stop.asked = True

    with _handling(_STOPS, ask):
        yield


class EndedAtOnce(KeyboardInterrupt):
    """A signal asked for an end, as Ctrl-C does."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextmanager
def end_on_signals() -> Iterator[None]:
    """SIGTERM, SIGINT and SIGHUP raise EndedAtOnce, the first of them; the handlers before are put back."""
    ending = StopRequest()

    def end(number: int, _: object) -> None:
        if not ending.asked or number == signal.SIGINT:  # a terminal that is closed may send several
            ending.asked = True
            raise EndedAtOnce(number)

    with _handling(_STOPS, end):
        yield


@contextmanager
def _handling(numbers: Sequence[int], handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Signals go to `handler` inside. One that hangs up and is ignored, as under nohup, stays ignored."""
    if threading.current_thread() is not threading.main_thread():  # only that one may set handlers
        yield
        return
    hang_up = getattr(signal, "SIGHUP", None)
    before = {n: signal.getsignal(n) for n in numbers if n != hang_up or signal.getsignal(n) != signal.SIG_IGN}
    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
