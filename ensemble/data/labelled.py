"""Labelled images from a folder or an archive, in the layout `torchvision.datasets.ImageFolder` reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from ensemble.data.archives import pictures
from ensemble.data.tree import Folder, Layout, few, find
from ensemble.image.files import decode
from ensemble.machine.files import user_path
from ensemble.machine.rng import generator


class Hash(Protocol):
    """Of hashlib."""

    def update(self, data: bytes, /) -> None: ...


@dataclass(frozen=True)
class LabelledImages:
    """`images` uint8 (N, 3, H, W), RGB; `labels` int64 (N,), indices into `class_names`; `split`, if any; `there`, how
    many there were where they were loaded, of which these may have been drawn; `files`, CLASS/FILE of each, if any."""

    images: torch.Tensor
    labels: torch.Tensor
    class_names: tuple[str, ...]
    split: str = ""
    there: int = 0
    files: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, index: torch.Tensor | slice) -> LabelledImages:
        """These images alone, with the same classes."""
        files = tuple(self.files[i] for i in torch.arange(len(self))[index].tolist()) if self.files else ()
        return replace(self, images=self.images[index], labels=self.labels[index], files=files)

    def hash_into(self, digest: Hash) -> None:
        """Feeds the images and their labels."""
        for values in (self.images, self.labels):
            digest.update(values.numpy().tobytes())

    def ordered(self, class_names: Sequence[str]) -> LabelledImages:
        """The same with the classes, which are the same, in this order."""
        known = {name: index for index, name in enumerate(class_names)}
        return replace(self, labels=self.numbered(known), class_names=tuple(class_names))

    def numbered(self, known: Mapping[str, int]) -> torch.Tensor:
        """The labels by the index that each class has in `known`."""
        return torch.tensor([known[name] for name in self.class_names])[self.labels]


def load_images(
    path: str | Path,
    split: str,
    size: int | None = None,
    *,
    at_most: int | None = None,
    evenly: bool = False,
    seed: int = 0,
    layout: Layout = "splits",
) -> LabelledImages:
    """All images of `split` as one tensor; classes are the sub-folders' names in sorted order.

    With `at_most`, so many of them that `seed` draws; no others are decoded, and classes are theirs. They are drawn of
    all alike, or `evenly`: of each class as many, or all it has, so that each has some.

    `path` is a folder or an archive (.tar, .tar.gz, .tar.bz2, .tar.xz, .zip) that holds `<split>/<class>/<file>`, or
    files in further folders below the class; an archive may have folders above `<split>`. `layout` says what may be
    left out: the split, or the class, too. Pictures are what
    `ensemble.image.files.is_picture` takes for one, decoded by its `decode`. Links are followed, in an archive to
    what it holds itself; nothing is extracted. With `size`, images are resized (bicubic, shorter side) and
    centre-cropped to size x size; without it they must all have one size already.

    Raises ValueError, in one line, where nothing is found, a class is empty, a picture or the archive is damaged, a
    link leads nowhere, sizes differ, or `at_most` is fewer than the classes that are to have as many.
    """
    path = user_path(path)
    if not path.exists():
        raise ValueError(f"data: {path} does not exist")
    there = 0

    def some(most: int, found: list[Any]) -> list[Any]:
        nonlocal there
        there = len(found)
        return _drawn(found, most, seed, evenly)

    draw = None if at_most is None else partial(some, at_most)
    split, decoded = (_from_folder if path.is_dir() else _from_archive)(path, split, size, draw, layout)
    decoded.sort(key=lambda item: item[:2])
    shapes = {pixels.shape for _, _, pixels in decoded}
    if len(shapes) > 1:
        raise ValueError(f"data: {path} holds images of {len(shapes)} sizes; give a size to resize them to")
    class_names = tuple(sorted({name for name, _, _ in decoded}))
    for name in class_names:
        if any("\ud800" <= letter <= "\udfff" for letter in name):  # bytes that are no UTF-8
            raise ValueError(f"data: {path} has a class folder whose name is not UTF-8, {name!a}; rename it")
    index = {name: i for i, name in enumerate(class_names)}
    height, width, _ = shapes.pop()
    images = torch.empty(len(decoded), 3, height, width, dtype=torch.uint8)
    for image, (_, _, pixels) in zip(images, decoded, strict=True):
        image.copy_(torch.from_numpy(pixels).permute(2, 0, 1))
    labels = torch.tensor([index[name] for name, _, _ in decoded])
    files = tuple("/".join(filter(None, names)) for *names, _ in decoded)
    return LabelledImages(images, labels, class_names, split, there or len(decoded), files)


def any_images(
    path: str | Path, split: str | None, size: int, *, at_most: int | None = None, seed: int = 0
) -> LabelledImages:
    """Images of whatever classes, or none: of `split`, which must be there.

    Where none is named, those of `train`, or of a tree without splits all. Otherwise as `load_images`.
    """
    layout: Layout = "pictures" if split is None else "splits"
    return load_images(path, split or "train", size, at_most=at_most, seed=seed, layout=layout)


def check_same_classes(path: str | Path, splits: Mapping[str, LabelledImages]) -> None:
    """ValueError where the splits of `path` differ in their classes, with those that a split lacks."""
    sets = {split: set(data.class_names) for split, data in splits.items()}
    every = set().union(*sets.values())
    lacking = [f"{split} lacks {few(every - names)}" for split, names in sets.items() if names != every]
    if lacking:
        counts = " and ".join(f"{split} ({len(names)})" for split, names in sets.items())
        raise ValueError(f"data: the splits {counts} of {path} have different classes: {'; '.join(lacking)}")


_Read = tuple[str, str, np.ndarray]
"""A picture's class, its name below the class, and its pixels (H, W, 3)."""
_Draw = Callable[[list[Any]], list[Any]]
"""Some of a list of classes, names and places."""


def _drawn(found: list[Any], at_most: int, seed: int, evenly: bool) -> list[Any]:
    found = sorted(found, key=lambda item: item[:2])
    order = torch.randperm(len(found), generator=generator(seed, "images")).tolist()
    if evenly:
        turns: Counter[str] = Counter()
        turn: dict[int, int] = {}
        for i in order:
            turns[found[i][0]] += 1
            turn[i] = turns[found[i][0]]
        if at_most < len(turns):
            raise ValueError(f"data: {at_most} images are fewer than the {len(turns)} classes; ask for more")
        order.sort(key=turn.__getitem__)  # every class's first one before any one's second
    return [found[i] for i in sorted(order[:at_most])]


_Decoded = tuple[str, list[_Read]]
"""The split, empty where there is none, and its pictures."""


def _from_folder(path: Path, split: str, size: int | None, draw: _Draw | None, layout: Layout) -> _Decoded:
    split, found = find(Folder(path), path, split, layout)
    found = found if draw is None else draw(found)
    return split, [(label, name, _pixels(file, f"data: {file}", size)) for label, name, file in found]


def _from_archive(path: Path, split: str, size: int | None, draw: _Draw | None, layout: Layout) -> _Decoded:
    return pictures(path, split, lambda data, name: _pixels(data, f"data: {name}", size), draw, layout)


def _pixels(source: Path | bytes, name: str, size: int | None) -> np.ndarray:
    image = decode(source, name)
    return np.array(_fit(image, size) if size else image)


def _fit(image: Image.Image, size: int) -> Image.Image:
    longest = 16 * min(image.size)
    if max(image.size) > longest:  # a strip, which would be enlarged whole for the square in its middle
        left, top = (max(0, side - longest) // 2 for side in image.size)
        image = image.crop((left, top, image.width - left, image.height - top))
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    left, top = (width - size) // 2, (height - size) // 2
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    return resized.crop((left, top, left + size, top + size))
