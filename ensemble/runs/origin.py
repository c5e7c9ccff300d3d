"""With what a run or a dataset began, and what follows where it goes on with something else."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from ensemble.image.files import is_picture
from ensemble.machine.files import user_path
from ensemble.recipe import Runtime
from ensemble.teachers.kernels.build import library
from models import sha256

NOT_THE_IMAGES = ("runtime", "checkpoint", "record_every", "verifiers")
"""Parts of a recipe that do not decide which images come out."""
_CONTENTS = "the contents of "
"""What a file's name among the digests begins with, which no teacher's does."""


@dataclass(frozen=True)
class Origin:
    """What decides images beside the recipe."""

    weights: Mapping[str, str | None]
    """Digests of the teachers' weights and statistics and how they see images, by name, and of further files that
    decide images (`file_digests`); None: not recorded."""
    versions: Mapping[str, str]
    ranks: int
    """That worked on one batch."""

    def check_weights(self, now: Mapping[str, str], what: str) -> None:
        """ValueError where a teacher or a file is not as it was when `what` began."""
        others = changed(self.weights, now)
        files = [name for name in others if name.startswith(_CONTENTS)]
        teachers = ", ".join(name for name in others if name not in files)
        of_teachers = [f"weights, statistics, input size, mean or std of {teachers}"] if teachers else []
        if others:
            raise ValueError(
                f"resume: {' and '.join([*of_teachers, *files])} are not those that the {what} began with; put those "
                "back, or pass overwrite (--overwrite) instead to begin anew"
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


def changed(before: Mapping[str, str | None], now: Mapping[str, str]) -> list[str]:
    """The names of what has another digest now; of what was not recorded nothing is known."""
    return [name for name, digest in now.items() if before.get(name) not in (None, digest)]


def file_digests(files: Iterable[str]) -> dict[str, str]:
    """The SHA-256 of each file or folder of pictures, by a name with its path, as it was written."""
    return {f"{_CONTENTS}{file}": _digest(user_path(file)) for file in files}


def _digest(path: Path) -> str:
    """Of a folder's pictures, names and contents; a word where nothing can be read: who has to read it tells."""
    try:
        if not path.is_dir():
            return sha256(path)
        files = sorted(file for file in path.iterdir() if is_picture(file.name) and not file.is_dir())
        return hashlib.sha256("".join(f"{file.name!a} {sha256(file)}\n" for file in files).encode()).hexdigest()
    except FileNotFoundError:
        return "not there"
    except OSError:
        return "unreadable"


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
