"""The process context, its collectives and the launch of ranks: all that uses torch.distributed."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

from ensemble.errors import MachineFailure

T = TypeVar("T")

_STARTUP = timedelta(minutes=30)
"""How long ranks may wait for each other before the first step: downloads and compilation take their time."""
_ROLL_CALL = 2.0
"""Seconds for the ranks that are left to find each other after a collective failed."""


class RankLostError(MachineFailure):
    """A collective failed because ranks died or hang. One rank of those left has `report` set and tells."""

    def __init__(self, message: str, report: bool = True) -> None:
        super().__init__(message)
        self.report = report


@dataclass(frozen=True)
class ProcessContext:
    """This process among its peers. `backend` is None where there is one process and no group."""

    rank: int
    world_size: int
    device: torch.device
    backend: str | None = None

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum_(self, tensor: torch.Tensor) -> None:
        """Replace `tensor` by its sum over all ranks; without a group there is nothing to do."""
        if self.backend is None:
            return
        if self.backend == "gloo" and tensor.is_cuda:
            staged = tensor.cpu()
            self._collective(lambda: dist.all_reduce(staged))
            tensor.copy_(staged)
        else:
            self._collective(lambda: dist.all_reduce(tensor))

    def gather(self, value: object) -> list[object]:
        """`value` of every rank, in rank order, on every rank. Small Python objects outside the loop only."""
        if self.backend is None:
            return [value]
        values: list[object] = [None] * self.world_size
        self._collective(lambda: dist.all_gather_object(values, value))
        return values

    def broadcast(self, value: T) -> T:
        """Rank 0's `value`, on every rank."""
        if self.backend is None:
            return value
        values = [value]
        self._collective(lambda: dist.broadcast_object_list(values, src=0))
        return values[0]

    def limit(self, seconds: float) -> None:
        """From now on a collective gives up on a rank after so many seconds."""
        if self.backend is not None:
            _set_timeout(timedelta(seconds=seconds))

    def _collective(self, call: Callable[[], object]) -> None:
        try:
            call()
        except RuntimeError as error:
            raise self._lost(str(error)) from None

    def _lost(self, reason: str) -> RankLostError:
        """Calls the roll over the store: who does not answer is at fault, the first of the others tells."""
        slow = "timed out" in reason.lower() or "timeout" in reason.lower()
        how = "did not answer in time; it hangs or is far slower than the others" if slow else "died"
        present, absent = [self.rank], [r for r in range(self.world_size) if r != self.rank]
        try:
            store = _get_default_store()
            store.set(f"present/{self.rank}", "")
            dist.destroy_process_group()  # ranks that wait for this one notice at once
            deadline = time.monotonic() + _ROLL_CALL
            while absent and time.monotonic() < deadline:
                time.sleep(0.05)
                if any(store.check([f"failed/{r}"]) for r in absent):
                    return RankLostError("another rank failed and told why", report=False)
                present += [r for r in absent if store.check([f"present/{r}"])]
                absent = [r for r in absent if r not in present]
        except RuntimeError:
            absent = [0]  # the store lives in rank 0 where no launcher keeps it
            present = [r for r in range(1, self.world_size)]
        what = f"a collective failed ({_one_line(reason)})"
        if absent:
            what = f"rank {', '.join(map(str, absent))} {how}"
        text = f"{what}; to go on, run the same command with --resume"
        return RankLostError(text, report=self.rank == min(present))


def _set_timeout(timeout: timedelta) -> None:
    if hasattr(dist, "set_timeout"):  # torch 2.11 has only the private name
        dist.set_timeout(timeout)
    else:
        dist.distributed_c10d._set_pg_timeout(timeout)


def _one_line(text: str) -> str:
    return " ".join(text.split())[:200]


def launched_ranks() -> int:
    """How many processes torchrun (or our own launcher) started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Whether this process is rank 0, known before any group exists."""
    return os.environ.get("RANK", "0") == "0"


def choose_device(requested: str) -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:N`; `auto` and `cuda` take the GPU of this process' local rank.

    Raises ValueError where CUDA is asked for and absent, or where a machine has more ranks than GPUs.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    available = torch.cuda.is_available()
    if requested == "cpu" or (requested == "auto" and not available):
        return torch.device("cpu")
    try:
        device = torch.device("cuda" if requested == "auto" else requested)
    except RuntimeError:
        raise ValueError(f"device: {requested!r} is none of auto, cpu, cuda, cuda:N") from None
    if device.type != "cuda":
        raise ValueError(f"device: {requested!r} is none of auto, cpu, cuda, cuda:N")
    if not available:
        raise ValueError(f"device: {requested} was asked for, but this machine has no CUDA device; use --device cpu")
    count = torch.cuda.device_count()
    if device.index is not None:
        if device.index >= count:
            raise ValueError(f"device: {requested} does not exist; this machine has {count} CUDA device(s)")
        return device
    if local_size > count:
        raise ValueError(
            f"device: {local_size} ranks on a machine with {count} GPU(s); start fewer, "
            "or name one with --device cuda:0"
        )
    return torch.device("cuda", local_rank)


@contextmanager
def process_context(device: torch.device) -> Iterator[ProcessContext]:
    """The context of this process: a group under torchrun (nccl on CUDA, else gloo), none without.

    Collectives wait for half an hour, until `limit` says otherwise. An exception that only this rank meets
    gets its number as `failing_rank`, and the other ranks will know that it has told why.
    """
    if "RANK" not in os.environ:
        yield ProcessContext(0, 1, device)
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        dist.init_process_group(backend, timeout=_STARTUP)
    except RuntimeError as error:
        text = f"rank {os.environ['RANK']}: the ranks could not find each other ({_one_line(str(error))})"
        raise RankLostError(text) from None
    context = ProcessContext(dist.get_rank(), dist.get_world_size(), device, backend)
    try:
        yield context
    except BaseException as error:
        if not isinstance(error, RankLostError) and not getattr(error, "collective", False):
            error.failing_rank = context.rank  # type: ignore[attr-defined]
            with suppress(RuntimeError):
                _get_default_store().set(f"failed/{context.rank}", "")
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def launch_ranks(command: Sequence[str], count: int) -> int:
    """Run `command` as `count` ranks on this machine through torch's own launcher; returns the exit code.

    SIGTERM and SIGINT go on to the ranks, which save and stop. When a rank fails the others are ended; the
    exit code is its own, or 1 where a signal killed it, which is told.
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
        rank, code = min(codes.items())
        name = signal.Signals(-code).name
        text = f"rank {rank} was ended by {name}; to go on, run the same command with --resume"
        print(f"invert.py: {text}", file=sys.stderr)
        return 1
    return max(told, default=0)
