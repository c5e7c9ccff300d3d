"""Real gloo processes: start, wait with a deadline, and never leave one behind."""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ensemble.machine.ranks import ProcessContext, process_context
from ensemble.teachers.kernels.build import library

Work = Callable[[ProcessContext], dict[str, Any]]


def launch(work: Work, world_size: int, folder: Path, seconds: float = 120) -> list[dict[str, Any]]:
    """What `work` returns on each of `world_size` ranks, in rank order.

    `work` is a function at the top of a module; it returns tensors, numbers and texts by name. Raises
    RuntimeError with every rank's traceback where one fails, or where they take longer than `seconds`.
    """
    library()  # built once here, not by every rank at the same time
    # Forked from a process that has imported torch but computed nothing: neither slow to start nor unsafe.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch.distributed", "torch._dynamo"])  # the last for optimisers
    port = _free_port()
    ranks = [
        context.Process(target=_rank, args=(work, rank, world_size, port, folder, seconds))
        for rank in range(world_size)
    ]
    for process in ranks:
        process.start()
    try:
        deadline = time.monotonic() + seconds
        while any(process.exitcode is None for process in ranks):
            if time.monotonic() > deadline or any(process.exitcode for process in ranks):
                break
            time.sleep(0.02)
        for process in ranks:  # the others may be about to report the same failure
            process.join(2 if any(p.exitcode for p in ranks) else 0)
    finally:
        for process in ranks:
            if process.is_alive():
                process.kill()
            process.join()
    if any(process.exitcode != 0 for process in ranks):
        codes = [process.exitcode for process in ranks]
        reports = [file.read_text() for file in sorted(folder.glob("*.txt"))]
        raise RuntimeError("\n".join([f"exit codes {codes} (-9: killed here, at the deadline or after)", *reports]))
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world_size)]


def _rank(work: Work, rank: int, world_size: int, port: int, folder: Path, seconds: float) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    try:
        with process_context(torch.device("cpu")) as context:
            context.limit(seconds)
            torch.save(work(context), folder / f"{rank}.pt")
    except BaseException:
        (folder / f"{rank}.txt").write_text(f"rank {rank}:\n{traceback.format_exc()}")
        os._exit(1)  # without waiting for peers that wait for this rank


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
