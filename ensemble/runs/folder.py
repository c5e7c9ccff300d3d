"""What observes the loop: the results folder, images, metrics and the progress display."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file

from ensemble.image.pictures import checked_batch, to_bytes
from ensemble.machine.files import replacing

_FILES = ("images.safetensors", "grid.png", "metrics.jsonl", "summary.json", "recipe.yaml")
_CLASS_FOLDER = re.compile(r"\d{4,}(_.+)?")
_IMAGE_FILE = re.compile(r"\d+\.png(\.tmp)?")
_CHECKPOINT_FILE = re.compile(r"\w+-\d{8}\.(json|safetensors)(\.tmp)?")


# ---------------------------------------------------------------------------------------- the folder


def prepare_output(path: str | Path, overwrite: bool = False) -> Path:
    """Makes the results folder and returns it.

    With `overwrite`, removes what an earlier run wrote (recipe, metrics, summary, grid, images, checkpoints)
    and nothing else: in images/ only numbered PNG files in numbered class folders; in checkpoints/, where
    recipe.yaml or metrics.jsonl show that a run of ours wrote here, only files named like checkpoints.

    Raises ValueError where `path` is no folder, is not empty without `overwrite`, or images/ or checkpoints/
    is a link, which could lead anywhere.
    """
    path = Path(path).expanduser()
    check_output(path, overwrite)
    if path.is_dir():
        _remove_results(path)
    path.mkdir(parents=True, exist_ok=True)
    return path


def check_output(path: Path, overwrite: bool) -> None:
    """Raises ValueError where `path` is no folder, or is not empty without `overwrite`; changes nothing."""
    if path.exists() and not path.is_dir():
        raise ValueError(f"output: {path} is a file; give a folder")
    if path.is_dir() and any(path.iterdir()) and not overwrite:
        raise ValueError(
            f"output: {path} is not empty; pass --overwrite to replace its results, --resume to continue "
            "the run, or another folder"
        )


def _remove_results(path: Path) -> None:
    images, checkpoints = path / "images", path / "checkpoints"
    for folder in (images, checkpoints):
        if folder.is_symlink():
            raise ValueError(f"output: {folder} is a link; remove it yourself or give another folder")
    for folder in path.glob("replica*"):  # what a replica left that failed
        if folder.is_dir() and not folder.is_symlink() and folder.name.removeprefix("replica").isdigit():
            _remove_results(folder)
            with suppress(OSError):
                folder.rmdir()
    ours = any((path / name).is_file() for name in ("recipe.yaml", "metrics.jsonl"))
    doomed = [path / name for name in _FILES] + [path / f"{name}.tmp" for name in _FILES]
    class_folders = [
        folder
        for folder in (images.iterdir() if images.is_dir() else ())
        if folder.is_dir() and not folder.is_symlink() and _CLASS_FOLDER.fullmatch(folder.name)
    ]
    for folder in class_folders:
        doomed += [file for file in folder.iterdir() if _IMAGE_FILE.fullmatch(file.name)]
    if ours and checkpoints.is_dir():
        doomed += [file for file in checkpoints.iterdir() if _CHECKPOINT_FILE.fullmatch(file.name)]
    for file in doomed:
        if file.is_file() or file.is_symlink():
            file.unlink()
    for folder in (*class_folders, images, checkpoints):
        with suppress(OSError):  # absent, or holds files that are not ours
            folder.rmdir()


# ---------------------------------------------------------------------------------------- images


def save_images(
    folder: str | Path, images: torch.Tensor, targets: torch.Tensor, class_names: Sequence[str] = ()
) -> None:
    """Writes the batch below `folder` twice: exactly, and as pictures.

    images.safetensors: `images` float32 (N, 3, H, W), RGB in [0, 1], and `targets` int64 (N,).
    images/<class index, 4 digits>_<class name>/<n>.png: 8 bits, n counts within the class from 0.

    Raises ValueError for shapes that do not fit, values that are not finite, or a target without a name.
    """
    images, targets = checked_batch(images, targets, class_names)
    folder = Path(folder)
    with replacing(folder / "images.safetensors") as temporary:
        save_file({"images": images, "targets": targets}, temporary)
    seen: dict[int, int] = {}
    for pixels, target in zip(to_bytes(images), targets.tolist(), strict=True):
        n = seen.get(target, 0)
        seen[target] = n + 1
        name = _file_name(class_names[target]) if class_names else ""
        class_folder = f"{target:04d}_{name}" if name else f"{target:04d}"
        with replacing(folder / "images" / class_folder / f"{n}.png") as file:
            Image.fromarray(pixels.numpy()).save(file, format="PNG")


def _file_name(class_name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", class_name).strip("._-")[:60]


# ---------------------------------------------------------------------------------------- numbers


# ---------------------------------------------------------------------------------------- progress
