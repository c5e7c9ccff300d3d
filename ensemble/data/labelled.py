"""Labelled images from a folder or a tar archive, in the layout `torchvision.datasets.ImageFolder` reads."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}


@dataclass(frozen=True)
class LabelledImages:
    """`images` uint8 (N, 3, H, W), RGB; `labels` int64 (N,), indices into `class_names`."""

    images: torch.Tensor
    labels: torch.Tensor
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)


def load_images(path: str | Path, split: str, size: int | None = None) -> LabelledImages:
    """All images of `split` as one tensor; classes are the sub-folders' names in sorted order.

    `path` is a folder or an archive (.tar, .tar.gz, .tar.xz) that holds `<split>/<class>/<file>`. With
    `size`, images are resized (bicubic, shorter side) and centre-cropped to size x size; without it they must
    all have one size already.

    Raises ValueError where nothing is found, a file is no image, or sizes differ.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise ValueError(f"data: {path} does not exist")
    files = _from_folder(path, split) if path.is_dir() else _from_archive(path, split)
    decoded: list[tuple[str, str, np.ndarray]] = []
    for class_name, name, stream in files:
        try:
            with Image.open(stream) as image:
                rgb = image.convert("RGB")
                pixels = np.asarray(_fit(rgb, size) if size else rgb)
        except (UnidentifiedImageError, OSError) as error:
            raise ValueError(f"data: {name} in {path} cannot be read as an image ({error})") from None
        decoded.append((class_name, name, pixels))
    if not decoded:
        raise ValueError(f"data: {path} holds no images at {split}/<class>/; expected {sorted(_SUFFIXES)}")
    decoded.sort(key=lambda item: item[:2])
    shapes = {item[2].shape for item in decoded}
    if len(shapes) > 1:
        raise ValueError(f"data: {path} holds images of {len(shapes)} sizes; give a size to resize them to")
    class_names = tuple(sorted({item[0] for item in decoded}))
    index = {name: i for i, name in enumerate(class_names)}
    images = torch.from_numpy(np.stack([item[2] for item in decoded])).permute(0, 3, 1, 2).contiguous()
    return LabelledImages(images, torch.tensor([index[item[0]] for item in decoded]), class_names)


def _from_folder(path: Path, split: str) -> Iterator[tuple[str, str, Path]]:
    for file in sorted((path / split).glob("*/*")):
        if file.suffix.lower() in _SUFFIXES:
            yield file.parent.name, file.name, file


def _from_archive(path: Path, split: str) -> Iterator[tuple[str, str, io.BytesIO]]:
    try:
        archive = tarfile.open(path, "r|*")  # noqa: SIM115
    except tarfile.TarError as error:
        raise ValueError(f"data: {path} is neither a folder nor a tar archive ({error})") from None
    with archive:
        for member in archive:
            parts = PurePosixPath(member.name).parts
            if not member.isfile() or len(parts) < 3 or parts[-3] != split:
                continue
            if PurePosixPath(member.name).suffix.lower() in _SUFFIXES:
                stream = archive.extractfile(member)
                assert stream is not None
                yield parts[-2], parts[-1], io.BytesIO(stream.read())


def _fit(image: Image.Image, size: int) -> Image.Image:
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    left, top = (width - size) // 2, (height - size) // 2
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    return resized.crop((left, top, left + size, top + size))
