"""The process context and its collectives: the only file that imports torch.distributed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist


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
            dist.all_reduce(staged)
            tensor.copy_(staged)
        else:
            dist.all_reduce(tensor)

    def gather(self, value: object) -> list[object]:
        """`value` of every rank, in rank order, on every rank. Small Python objects outside the loop only."""
        if self.backend is None:
            return [value]
        values: list[object] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values


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
            f"device: {local_size} ranks on a machine with {count} GPU(s); start fewer, or name one with --device cuda:0"
        )
    return torch.device("cuda", local_rank)


@contextmanager
def process_context(device: torch.device, timeout: timedelta) -> Iterator[ProcessContext]:
    """The context of this process: a group under torchrun (nccl with one GPU a rank, else gloo), none without."""
    if "RANK" not in os.environ:
        yield ProcessContext(0, 1, device)
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(backend, timeout=timeout)
    try:
        yield ProcessContext(dist.get_rank(), dist.get_world_size(), device, backend)
    finally:
        dist.destroy_process_group()
