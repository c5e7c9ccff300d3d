"""A tree of pictures as `torchvision.datasets.ImageFolder` reads it, written whole or not at all."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from PIL import Image

from ensemble.data.shards import distinct
from ensemble.image.files import is_clutter
from ensemble.machine.files import leaving_no_empty

_NEVER = re.compile(r"[/\\\x00-\x1f]")
"""What no folder's name can have."""


@contextmanager
def write_tree(folder: Path, split: str, labels: Sequence[str]) -> Iterator[Callable[[torch.Tensor, int], None]]:
    """A function that writes pixels, uint8 (3, H, W), as `<split>/<label of the target>/<number>.png`.

    Numbers count within a class from 0, with zeros in front. All is written into a hidden folder and takes its place at
    the end. Raises ValueError where `folder` is not empty, or cannot be written.
    """
    check_empty(folder)
    names = _folder_names(labels)
    written: Counter[int] = Counter()

    def write(pixels: torch.Tensor, target: int) -> None:
        file = beside / split / names[target] / f"{written[target]:06d}.png"
        if not written[target]:
            file.parent.mkdir(parents=True)
        written[target] += 1
        Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()).save(file, format="PNG")

    with leaving_no_empty(folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            beside = Path(tempfile.mkdtemp(prefix=".", dir=folder))
        except OSError as error:
            raise ValueError(f"export: {folder} cannot be made ({error.strerror}); give another folder") from None
        try:
            yield write
            os.replace(beside / split, folder / split)
        finally:
            shutil.rmtree(beside, ignore_errors=True)


def check_empty(folder: Path) -> None:
    """ValueError where there is a file, or a folder that is not empty."""
    if folder.is_dir():
        if any(folder.iterdir()):
            raise ValueError(f"export: {folder} is not empty; give another folder")
    elif folder.exists() or folder.is_symlink():
        raise ValueError(f"export: {folder} is a file; give a folder")


def _folder_names(labels: Sequence[str]) -> tuple[str, ...]:
    """A folder's name for each label; no two alike, and none that a reader of pictures passes over."""
    names = [re.sub(r"^\.", "_", _NEVER.sub("_", label).strip()) or "_" for label in labels]
    names = [f"_{name}" if is_clutter(name) else name for name in names]
    short = [name if len(name.encode()) < 200 else f"{name[:60]} ({index})" for index, name in enumerate(names)]
    return distinct(short)
