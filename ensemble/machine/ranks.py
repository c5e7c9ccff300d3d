"""This process among the ranks: sums, agreement, and a roll call when one is lost."""

from __future__ import annotations

import json
import platform
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

from ensemble.machine.environment import is_launched, launched_rank
from ensemble.machine.errors import EVERYONE, NOBODY, Failure, MachineFailure, is_out_of_memory, told_by

T = TypeVar("T")

_STARTUP = timedelta(minutes=30)
"""How long ranks may wait for each other before the first step: downloads and compilation take their time."""
_ROLL_CALL = 2.0
"""Seconds for the ranks that are left to find each other after a collective failed."""


class RankLostError(MachineFailure):
    """A collective failed because ranks died or hang. The first of those left tells."""


@dataclass(frozen=True)
class ProcessContext:
    """This process among the `world_size` that work on one batch. `backend` is None where it works alone.

    Ranks form a mesh (replica, rank): replicas make batches of their own, side by side.
    """

    rank: int
    world_size: int
    device: torch.device
    backend: str | None = None
    mixed: bool = False
    """The ranks' devices are of different types and round differently: rank 0 owns the image."""
    replica: int = 0
    replicas: int = 1
    group: dist.ProcessGroup | None = None
    """The ranks of this replica; None for all."""

    @property
    def is_main(self) -> bool:
        """Whether this is the first rank of its replica."""
        return self.rank == 0

    @property
    def first(self) -> int:
        """The global rank of this replica's rank 0."""
        return self.replica * self.world_size

    def split(self, replicas: int) -> ProcessContext:
        """This process in its replica, of `replicas` equal ones. All ranks must call it."""
        size = self.world_size // replicas
        assert size * replicas == self.world_size and self.replicas == 1
        if replicas == 1:
            return self
        firsts = range(0, self.world_size, size)
        groups = [dist.new_group(list(range(f, f + size)), timeout=_STARTUP) for f in firsts]
        replica, rank = divmod(self.rank, size)
        backend = self.backend if size > 1 else None
        return replace(
            self,
            rank=rank,
            world_size=size,
            backend=backend,
            replica=replica,
            replicas=replicas,
            group=groups[replica],  # type: ignore[arg-type]
        )

    def sum_(self, tensor: torch.Tensor) -> None:
        """Replace `tensor` by its sum over all ranks; without a group there is nothing to do."""
        if self.backend is not None:
            self._on_wire(tensor, lambda t: dist.all_reduce(t, group=self.group))

    def from_owner_(self, tensor: torch.Tensor) -> None:
        """Replace `tensor` by rank 0's where ranks would not compute the same bits."""
        if self.backend is not None and self.mixed:
            self._on_wire(tensor, lambda t: dist.broadcast(t, src=self.first, group=self.group))

    @contextmanager
    def agree(self) -> Iterator[None]:
        """What fails inside on any rank fails on all of them, with the first rank's error: nobody is left waiting."""
        problem: Exception | None = None
        try:
            yield
        except Exception as error:
            if self.backend is None or isinstance(error, RankLostError) or not _is_foreseen(error):
                raise
            problem = error
        problems = self.gather(None if problem is None else told_by(problem, EVERYONE))
        first = next((p for p in problems if p is not None), None)
        if first is not None:
            raise first from problem

    def gather(self, value: T) -> list[T]:
        """`value` of every rank, in rank order, on every rank. Small Python objects outside the loop only."""
        if self.backend is None:
            return [value]
        values: list[T | None] = [None] * self.world_size
        self._collective(lambda: dist.all_gather_object(values, value, group=self.group))
        return values  # type: ignore[return-value]

    def collect(self, value: T) -> list[T]:
        """`value` of every rank, in rank order, on rank 0; an empty list on the others."""
        if self.backend is None:
            return [value]
        values: list[T | None] | None = [None] * self.world_size if self.is_main else None
        self._collective(lambda: dist.gather_object(value, values, dst=self.first, group=self.group))
        return values or []  # type: ignore[return-value]

    def broadcast(self, value: T) -> T:
        """Rank 0's `value`, on every rank."""
        if self.backend is None:
            return value
        values = [value]
        self._collective(lambda: dist.broadcast_object_list(values, src=self.first, group=self.group))
        return values[0]

    def limit(self, seconds: float) -> None:
        """From now on a collective gives up on a rank after so many seconds."""
        if self.backend is not None:
            _set_timeout(timedelta(seconds=seconds), self.group)

    def _on_wire(self, tensor: torch.Tensor, call: Callable[[torch.Tensor], object]) -> None:
        """gloo sums and sends in main memory; tensors of a GPU go there and back."""
        if self.backend == "gloo" and tensor.is_cuda:
            staged = tensor.cpu()
            self._collective(lambda: call(staged))
            tensor.copy_(staged)
        else:
            self._collective(lambda: call(tensor))

    def _collective(self, call: Callable[[], object]) -> None:
        try:
            call()
        except RuntimeError as error:
            raise self._lost(str(error)) from None

    def _lost(self, reason: str) -> RankLostError:
        """Calls the roll over the store: who does not answer is at fault, the first of the others tells."""
        slow = "timed out" in reason.lower() or "timeout" in reason.lower()
        how = "did not answer in time; it hangs or is far slower than the others" if slow else "died"
        me, everyone = self.first + self.rank, range(self.first, self.first + self.world_size)
        present, absent = [me], [r for r in everyone if r != me]
        try:
            store = _get_default_store()
            store.set(f"present/{me}", "")
            if self.backend == "gloo":
                dist.destroy_process_group()  # ranks that wait for this one notice at once
            deadline = time.monotonic() + _ROLL_CALL
            while absent and time.monotonic() < deadline:
                time.sleep(0.05)
                if any(store.check([f"failed/{r}"]) for r in absent):
                    return RankLostError("another rank failed and told why", NOBODY)
                present += [r for r in absent if store.check([f"present/{r}"])]
                absent = [r for r in absent if r not in present]
        except RuntimeError:
            absent = [0]  # the store lives in rank 0 where no launcher keeps it
            present = [r for r in everyone if r]
        what = f"a collective failed ({_one_line(reason)})"
        if absent:
            what = f"rank {', '.join(map(str, absent))} {how}"
        text = f"{what}; to go on, run the same again with resume (--resume)"
        return RankLostError(text, min(present))


def _set_timeout(timeout: timedelta, group: dist.ProcessGroup | None) -> None:
    if hasattr(dist, "set_timeout"):  # torch 2.11 has only the private name
        dist.set_timeout(timeout, group)
    else:
        dist.distributed_c10d._set_pg_timeout(timeout, group)


def _one_line(text: str) -> str:
    return " ".join(text.split())[:200]


@contextmanager
def process_context(device: torch.device) -> Iterator[ProcessContext]:
    """The context of this process: a group under torchrun, none without.

    Ranks that each have a GPU of their own talk by nccl, all others by gloo.
    Collectives wait for half an hour, until `limit` says otherwise. An error that only this rank meets becomes a
    Failure that it tells, and the other ranks will know that it has told why.
    """
    if not is_launched():
        yield ProcessContext(0, 1, device)
        return
    if dist.is_initialized():
        raise ValueError(
            "a process group exists already; call this where it does not, or end it with destroy_process_group()"
        )
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        store, rank, world_size = _meet()
        backend, mixed = _backend(store, rank, world_size, device)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=_STARTUP)
    except RuntimeError as error:
        raise RankLostError(f"the ranks could not find each other ({_one_line(str(error))})", launched_rank()) from None
    context = ProcessContext(rank, world_size, device, backend, mixed)
    try:
        yield context
    except BaseException as error:
        failure = _own_failure(error, context.rank)
        alone = not isinstance(failure, Failure) or failure.teller == context.rank
        if alone and not isinstance(failure, RankLostError):
            with suppress(RuntimeError):
                _get_default_store().set(f"failed/{context.rank}", "")
        if backend == "gloo" and dist.is_initialized():
            dist.destroy_process_group()  # nccl would wait for the others, which wait for this rank
        if failure is error:
            raise
        raise failure from error
    if dist.is_initialized():
        dist.destroy_process_group()


def _own_failure(error: BaseException, rank: int) -> BaseException:
    """`error`, or where only this rank met it and it was foreseen, the failure that says so."""
    if isinstance(error, Failure) or not _is_foreseen(error):
        return error
    assert isinstance(error, Exception)
    return told_by(error, rank)


def _is_foreseen(error: BaseException) -> bool:
    """Whether it is a mistake of the user or a failure of the machine, which one line tells."""
    return isinstance(error, ValueError | Failure | OSError) or is_out_of_memory(error)


def _meet() -> tuple[dist.Store, int, int]:
    """(the launcher's store under a prefix that only the ranks now alive share, rank, world size).

    torchrun keeps one store over its restarts, and in it the addresses of ranks that are dead. Rank 0 draws the
    prefix and hands it to each rank that answers: a rank of an earlier start cannot.
    """
    store, rank, world_size = next(dist.rendezvous("env://", timeout=_STARTUP))
    mine = uuid.uuid4().hex
    if rank:
        store.set(f"arrived/{rank}", mine)
        prefix = store.get(f"prefix/{mine}").decode()
        store.set(f"{prefix}/met/{rank}", "")
        return dist.PrefixStore(prefix, store), rank, world_size
    absent = set(range(1, world_size))
    deadline = time.monotonic() + _STARTUP.total_seconds()
    while absent:
        for other in [r for r in absent if store.check([f"arrived/{r}"])]:
            store.set(f"prefix/{store.get(f'arrived/{other}').decode()}", mine)
        absent = {r for r in absent if not store.check([f"{mine}/met/{r}"])}
        if absent and time.monotonic() > deadline:
            raise RuntimeError(f"rank {', '.join(map(str, sorted(absent)))} did not come")
        time.sleep(0.02)
    return dist.PrefixStore(mine, store), rank, world_size


def _backend(store: dist.Store, rank: int, world_size: int, device: torch.device) -> tuple[str, bool]:
    """(nccl or gloo, whether devices of different kinds meet, which would round differently)."""
    kind, which = "cpu", str(rank)
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        kind, which = properties.name, str(properties.uuid)
    store.set(f"device/{rank}", json.dumps([device.type, kind, f"{which} of {platform.node()}"]))
    devices = [tuple(json.loads(store.get(f"device/{r}"))) for r in range(world_size)]
    own = all(name == "cuda" for name, _, _ in devices) and len(set(devices)) == world_size
    return ("nccl" if own else "gloo"), len({kind for _, kind, _ in devices}) > 1
