"""Pictures from files: what counts as one, and how every one is decoded."""

from __future__ import annotations

import io
import logging
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ensemble.machine.files import user_path

logging.getLogger("PIL").addHandler(logging.NullHandler())  # else what it logs of damage goes to stderr

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")
"""Endings of pictures, in either case."""

_CLUTTER = {"__macosx", "thumbs.db", "desktop.ini", "@eadir"}
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes the EXIF orientation."""


def is_clutter(name: str) -> bool:
    """Whether systems and notebooks leave files or folders of this name behind; they hold no pictures of the user's.

    Names that begin with a dot, `__MACOSX`, `Thumbs.db`, and the like.
    """
    return name.startswith(".") or name.lower() in _CLUTTER


def is_picture(name: str) -> bool:
    """Whether a file of this name counts as a picture."""
    return PurePosixPath(name).suffix.lower() in SUFFIXES and not is_clutter(name)


def left_out(names: Iterable[str]) -> str:
    """The files that are no pictures by their names, counted by their endings: `3 files left out: 2 .heic, 1 .txt`."""
    kinds = Counter("hidden" if is_clutter(n) else PurePosixPath(n).suffix.lower() or "without ending" for n in names)
    total = sum(kinds.values())
    if not total:
        return "no files"
    return f"{total} file{'s' * (total > 1)} left out: " + ", ".join(f"{n} {kind}" for kind, n in kinds.most_common())


def decode(source: Path | bytes, name: str) -> Image.Image:
    """The picture in a file or in its bytes: RGB, 8 bits, upright by the camera's orientation, the first frame of many.

    Grey values of more than 8 bits are scaled to 0..255, not clipped: 16 bits from 0..65535, other integers from
    the smallest of 0..255 and 0..65535 that holds them, floats from the smallest of 0..1, 0..255 and 0..65535.
    Transparency is dropped and the stored colours stay, as `convert("RGB")` in torchvision's loader does: there is
    no background.

    Raises ValueError, one line that begins with `name`, where this is no picture, a damaged one, or one of more
    pixels than Pillow takes (`PIL.Image.MAX_IMAGE_PIXELS`, twice). Warns of nothing.
    """
    try:
        # Warnings tell of unusual metadata, and of half the number of pixels that is refused.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(source if isinstance(source, Path) else io.BytesIO(source)) as opened:
                with _quiet() if opened.format == "TIFF" else nullcontext():
                    opened.load()
                image = _eight_bits(opened) if opened.mode.startswith(("I", "F")) else opened.convert("RGB")
                turn = _UPRIGHT.get(_orientation(opened))
    except MemoryError:
        raise
    # Damage shows as whatever the format's reader trips over: OSError, SyntaxError, struct.error, EOFError, ...
    except Exception as error:
        raise ValueError(f"{name} cannot be read as an image ({_reason(error)})") from None
    return image if turn is None else image.transpose(turn)


def read_image(path: str | Path, size: int, about: str = "initial image") -> Tensor:
    """The image in the file, RGB in [0, 1], (3, size, size), float32; the camera's orientation is applied.

    Raises ValueError, which begins with `about`, if the file is missing or cannot be read as an image.
    """
    path = user_path(path)
    if not path.is_file():
        raise ValueError(f"{about}: {path} is not a file; give an image, or use kind 'folder' for a folder")
    fitted = ImageOps.fit(decode(path, f"{about}: {path}"), (size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(fitted)).permute(2, 0, 1).float() / 255


def list_images(path: str | Path, about: str = "initial image") -> list[Path]:
    """The image files directly in the folder, by their names (`is_picture`), in the order of their names.

    Raises ValueError, which begins with `about`, if the folder is missing or holds no image.
    """
    path = user_path(path)
    if not path.is_dir():
        raise ValueError(f"{about}: {path} is not a folder; give a folder, or use kind 'image' for a file")
    files = sorted(file for file in path.iterdir() if not file.is_dir())
    pictures = [file for file in files if is_picture(file.name)]
    if not pictures:
        raise ValueError(
            f"{about}: {path} holds no images ({left_out(file.name for file in files)}); "
            f"expected files ending in {', '.join(SUFFIXES)}"
        )
    return pictures


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of more than 8 bits as RGB."""
    values = np.asarray(image)
    low, high = values.min(), values.max()
    if image.mode.startswith("I;"):
        top = 2 ** getattr(image, "tag_v2", {}).get(258, (16,))[0] - 1  # a TIFF's bits per sample: 12 or 16
    elif image.mode == "I" and image.format == "PNG":
        top = 65535  # what older versions of Pillow make of 16 bits
    else:
        tops = (1, 255, 65535) if image.mode == "F" else (255, 65535)
        top = next((top for top in tops if low >= 0 and high <= top), 0)
    if not top:
        raise ValueError(f"grey values from {low:g} to {high:g}; save it with 8 or 16 bits")
    return Image.fromarray(np.rint(values * (255 / top)).astype(np.uint8)).convert("RGB")


@contextmanager
def _quiet() -> Iterator[None]:
    """Nothing is written to the process's stderr: libtiff tells there of damage, which Pillow raises as well."""
    try:
        before = os.dup(2)
    except OSError:  # there is none
        yield
        return
    try:
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; upright (1) where the metadata are damaged, for the picture need not be."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        return 1


def _reason(error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return f"it has more than {2 * (Image.MAX_IMAGE_PIXELS or 0)} pixels; make it smaller"
    if isinstance(error, UnidentifiedImageError):
        return "an unknown format, or damaged from the start"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__
