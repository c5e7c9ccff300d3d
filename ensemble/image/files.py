"""Pictures from files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


def read_image(path: str | Path, size: int) -> Tensor:
    """The image in the file, RGB in [0, 1], (3, size, size), float32; the camera's orientation is applied.

    Raises ValueError if the file is missing or cannot be read as an image.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise ValueError(f"initial image: {path} is not a file; give an image, or use kind 'folder' for a folder")
    try:
        with Image.open(path) as opened:
            upright = ImageOps.exif_transpose(opened).convert("RGB")
    # A damaged PNG raises SyntaxError, an oversized file DecompressionBombError.
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"initial image: {path} cannot be read as an image ({error})") from None
    fitted = ImageOps.fit(upright, (size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(fitted)).permute(2, 0, 1).float() / 255


def list_images(path: str | Path) -> list[Path]:
    """The image files directly in the folder, by suffix (`SUFFIXES`), in the order of their names.

    Raises ValueError if the folder is missing or holds no image.
    """
    path = Path(path).expanduser()
    if not path.is_dir():
        raise ValueError(f"initial image: {path} is not a folder; give a folder, or use kind 'image' for a file")
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())
    if not files:
        raise ValueError(f"initial image: {path} holds no images; expected files ending in {', '.join(SUFFIXES)}")
    return files
