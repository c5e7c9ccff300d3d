"""Ranks started, and asked to stop, on this machine."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import torch.distributed as dist

from ensemble.machine.errors import MachineFailure


def launch_ranks(command: Sequence[str], count: int) -> int:
    """Run `command` as `count` ranks on this machine through torch's own launcher; returns the exit code.

    SIGTERM and SIGINT go on to the ranks, which save and stop. When a rank fails the others are ended; the
    exit code is its own; MachineFailure where a signal killed it.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, start_processes

    logging.disable(logging.ERROR)  # the ranks tell their errors themselves
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    common = {
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count))),
    }
    ranks = start_processes(
        "invert",
        command[0],
        {rank: tuple(command[1:]) for rank in range(count)},
        {rank: common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)},
        DefaultLogsSpecs(),
    )

    def forward(*_: object) -> None:
        for pid in ranks.pids().values():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    before = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        result = ranks.wait(period=0.1)
    finally:
        ranks.close()
        for number, handler in before.items():
            signal.signal(number, handler)
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
    """SIGTERM and SIGINT ask for a stop at the end of the step; the handlers before are put back.

    A second SIGINT is a KeyboardInterrupt at once.
    """

    def ask(number: int, _: object) -> None:
        if stop.asked and number == signal.SIGINT:  # a step that hangs is broken off
            raise KeyboardInterrupt
        stop.asked = True

    if threading.current_thread() is not threading.main_thread():  # only that one may set handlers
        yield
        return
    before = {s: signal.signal(s, ask) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
