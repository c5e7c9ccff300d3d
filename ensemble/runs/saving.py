"""When a trial is saved, by whom, and what is checked before."""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from ensemble.config.parsing import to_plain
from ensemble.engine.inversion import Inversion
from ensemble.machine.checkpoint import KEPT, CheckpointError, save_checkpoint
from ensemble.machine.errors import CollectiveFailure
from ensemble.machine.ranks import ProcessContext
from ensemble.runs.checkpoints import checkpoint_prefix
from ensemble.runs.plan import Plan
from ensemble.teachers.kernels.build import library


class ReplicaError(CollectiveFailure):
    """The ranks hold different images."""


@dataclass
class Saver:
    """Saves one trial: every N steps, every T seconds of rank 0's clock, and before a stop."""

    plan: Plan
    folder: Path
    context: ProcessContext
    trial: int
    inversion: Inversion
    saved_at: float = field(default_factory=time.monotonic)

    def wants_save(self, step: int) -> bool:
        seconds = self.plan.recipe.checkpoint.seconds
        return self.context.is_main and bool(seconds) and time.monotonic() - self.saved_at >= seconds

    def save(self, step: int) -> None:
        """Raises ReplicaError where the ranks disagree, CheckpointError (on every rank) where the disk refuses."""
        tensors, numbers = self.inversion.state()
        _compare(self.context, tensors, step)
        self._write(step, tensors, {"finished": False, "numbers": numbers}, KEPT)

    def save_finished(self, images: torch.Tensor, values: Mapping[str, float]) -> None:
        """The trial's images and losses, in place of its checkpoints."""
        self._write(self.plan.recipe.iterations, {"images": images}, {"finished": True, "values": values}, 1)

    def _write(self, step: int, tensors: Mapping[str, torch.Tensor], state: Mapping[str, object], keep: int) -> None:
        self.saved_at = time.monotonic()
        problem = None
        if self.context.is_main:
            meta = {
                **state,
                "recipe": to_plain(self.plan.recipe),
                "ranks": self.context.world_size,
                "versions": versions(self.context.device),
            }
            try:
                save_checkpoint(self.folder, checkpoint_prefix(self.trial), step, tensors, meta, keep)
            except CheckpointError as error:
                problem = error
        problems = [error for error in self.context.gather(problem) if isinstance(error, CheckpointError)]
        if problems:
            raise problems[0]


def _compare(context: ProcessContext, tensors: Mapping[str, torch.Tensor], step: int) -> None:
    """Every rank must hold the same image to the bit, and where it steps itself the same optimiser state."""
    if context.world_size == 1:
        return
    held = {k: v for k, v in tensors.items() if not context.mixed or k.startswith("image.")}
    sums = context.gather(checksum(held))
    if len(set(sums)) > 1:
        raise ReplicaError(
            f"step {step}: the ranks hold different images (checksums {', '.join(map(str, sums))}); "
            "the run is stopped, its last checkpoint is good"
        )


def checksum(tensors: Mapping[str, torch.Tensor]) -> str:
    """A hash of all tensors' names and bytes."""
    digest = hashlib.blake2b(digest_size=8)
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def versions(device: torch.device) -> dict[str, str]:
    """Versions of what decides the images, down to the compiled kernel where the device is a CPU."""
    found = {"python": platform.python_version()}
    for package in ("torch", "torchvision", "timm", "numpy", "ensemble-inversion"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    if device.type == "cpu":
        kernel = library()
        found["kernel"] = Path(kernel._name).stem if kernel is not None else "none"
    return found
