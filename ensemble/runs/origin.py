"""With what a run or a dataset began, and what follows where it goes on with something else."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from ensemble.recipe import Runtime
from ensemble.teachers.kernels.build import library

NOT_THE_IMAGES = ("runtime", "checkpoint", "record_every", "verifiers")
"""Parts of a recipe that do not decide which images come out."""


@dataclass(frozen=True)
class Origin:
    """What decides images beside the recipe."""

    weights: Mapping[str, str | None]
    """Digests of the teachers' weights and statistics and how they see images, by name; None: not recorded."""
    versions: Mapping[str, str]
    ranks: int
    """That worked on one batch."""

    def check_weights(self, now: Mapping[str, str], what: str) -> None:
        """ValueError where a teacher is not as it was when `what` began."""
        others = [name for name, digest in now.items() if self.weights.get(name) not in (None, digest)]
        if others:
            raise ValueError(
                f"resume: weights, statistics, input size, mean or std of {', '.join(others)} are not those that the "
                f"{what} began with"
            )

    def notes(self, now: Origin, what: str, runtime: Runtime) -> list[str]:
        """What the user should know before `what` goes on with other versions, or on another number of ranks."""
        found = []
        others = [f"{k} {self.versions.get(k)} -> {v}" for k, v in now.versions.items() if self.versions.get(k) != v]
        if others:
            found.append(f"the {what} began with other versions, its images may differ in bits: {', '.join(others)}")
        if runtime.reproducible == "placement" and now.ranks != self.ranks:
            found.append(
                f"the {what} began on {self.ranks} ranks a batch and goes on on {now.ranks}: its images are those of "
                f"an uninterrupted {what} up to rounding, under reproducible ranks (--reproducible ranks) to the bit"
            )
        return found


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
