"""Labelled images from a folder or an archive, in the layout `torchvision.datasets.ImageFolder` reads."""

from __future__ import annotations

import io
import lzma
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from PIL import Image

from ensemble.image.files import SUFFIXES, decode, is_clutter, is_picture, left_out
from ensemble.machine.rng import generator


@dataclass(frozen=True)
class LabelledImages:
    """`images` uint8 (N, 3, H, W), RGB; `labels` int64 (N,), indices into `class_names`."""

    images: torch.Tensor
    labels: torch.Tensor
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)


def load_images(
    path: str | Path, split: str, size: int | None = None, *, at_most: int | None = None, seed: int = 0
) -> LabelledImages:
    """All images of `split` as one tensor; classes are the sub-folders' names in sorted order.

    With `at_most`, so many of them that `seed` draws; no others are decoded, and classes are theirs.

    `path` is a folder or an archive (.tar, .tar.gz, .tar.bz2, .tar.xz, .zip) that holds `<split>/<class>/<file>`, or
    files in further folders below the class; an archive may have folders above `<split>`. Pictures are what
    `ensemble.image.files.is_picture` takes for one, decoded by its `decode`. Links are followed, in an archive to
    what it holds itself; nothing is extracted. With `size`, images are resized (bicubic, shorter side) and
    centre-cropped to size x size; without it they must all have one size already.

    Raises ValueError, in one line, where nothing is found, a class is empty, a picture or the archive is damaged, a
    link leads nowhere, or sizes differ.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise ValueError(f"data: {path} does not exist")
    draw = None if at_most is None else partial(_drawn, at_most=at_most, seed=seed)
    decoded = (_from_folder if path.is_dir() else _from_archive)(path, split, size, draw)
    decoded.sort(key=lambda item: item[:2])
    shapes = {pixels.shape for _, _, pixels in decoded}
    if len(shapes) > 1:
        raise ValueError(f"data: {path} holds images of {len(shapes)} sizes; give a size to resize them to")
    class_names = tuple(sorted({name for name, _, _ in decoded}))
    index = {name: i for i, name in enumerate(class_names)}
    height, width, _ = shapes.pop()
    images = torch.empty(len(decoded), 3, height, width, dtype=torch.uint8)
    for image, (_, _, pixels) in zip(images, decoded, strict=True):
        image.copy_(torch.from_numpy(pixels).permute(2, 0, 1))
    return LabelledImages(images, torch.tensor([index[name] for name, _, _ in decoded]), class_names)


def check_same_classes(path: str | Path, splits: Mapping[str, LabelledImages]) -> None:
    """ValueError where the splits of `path` differ in their classes, with those that a split lacks."""
    sets = {split: set(data.class_names) for split, data in splits.items()}
    every = set().union(*sets.values())
    lacking = [f"{split} lacks {_few(every - names)}" for split, names in sets.items() if names != every]
    if lacking:
        counts = " and ".join(f"{split} ({len(names)})" for split, names in sets.items())
        raise ValueError(f"data: the splits {counts} of {path} have different classes: {'; '.join(lacking)}")


_Read = tuple[str, str, np.ndarray]
"""A picture's class, its name below the class, and its pixels (H, W, 3)."""
_Draw = Callable[[list[Any]], list[Any]]
"""Some of a list of classes, names and places."""


def _drawn(found: list[Any], at_most: int, seed: int) -> list[Any]:
    found = sorted(found, key=lambda item: item[:2])
    chosen = torch.randperm(len(found), generator=generator(seed, "images"))[:at_most]
    return [found[i] for i in sorted(chosen.tolist())]


def _from_folder(path: Path, split: str, size: int | None, draw: _Draw | None) -> list[_Read]:
    found = _find(_Folder(path), path, split)
    found = found if draw is None else draw(found)
    return [(label, name, _pixels(file, f"data: {file}", size)) for label, name, file in found]


def _from_archive(path: Path, split: str, size: int | None, draw: _Draw | None) -> list[_Read]:
    """In one pass, and a second one for what links lead to elsewhere in the archive, or what is drawn of it."""
    parts = PurePosixPath(split).parts
    tree, pixels = _Archive(path), dict[int, np.ndarray]()

    def read(wanted: Callable[[_Member], bool]) -> Iterator[_Member]:
        for member, data in _members(path, wanted):
            if data is not None:
                pixels[member.index] = _pixels(data, f"data: {'/'.join(member.path)} in {path}", size)
            yield member

    def in_split(member: _Member) -> bool:
        return draw is None and not any(map(is_clutter, member.path)) and _holds(member.path[:-2], parts)

    for member in read(in_split):
        tree.add(member)
    places = _find(tree, path, split)
    places = places if draw is None else draw(places)
    found = [(label, name, tree.members[place].index) for label, name, place in places]
    missing = {index for _, _, index in found} - pixels.keys()
    if missing:
        list(read(lambda member: member.index in missing))
    return [(label, name, pixels[index]) for label, name, index in found]


def _holds(path: tuple[str, ...], parts: tuple[str, ...]) -> bool:
    """Whether `parts` follow each other anywhere in `path`."""
    return any(path[i : i + len(parts)] == parts for i in range(len(path) - len(parts) + 1))


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


# --- what is in a split --------------------------------------------------------------------------------------------

_Place = TypeVar("_Place")


@dataclass(frozen=True)
class _Child(Generic[_Place]):
    """What a folder holds under a name, links followed."""

    name: str
    place: _Place
    is_folder: bool
    problem: str = ""
    """Why it is neither a file nor a folder, if so."""


class _Tree(Protocol[_Place]):
    """Folders and files, on a disk or in an archive."""

    def splits(self, split: str) -> list[_Place]:
        """The folders of the split."""

    def children(self, folder: _Place) -> Iterable[_Child[_Place]]:
        """What is in the folder."""

    def same(self, folder: _Place) -> object:
        """Equal for one folder reached in two ways."""


def _find(tree: _Tree[_Place], path: Path, split: str) -> list[tuple[str, str, _Place]]:
    """Class, name and place of each picture of the split; ValueError where there is none, or none of a class."""
    found: list[tuple[str, str, _Place]] = []
    others: dict[str, list[str]] = {}  # by class; files that are no pictures
    loose: list[str] = []
    for top in tree.splits(split):
        for child in tree.children(top):
            if is_clutter(child.name):
                continue
            if child.problem:
                raise ValueError(f"data: {split}/{child.name} in {path} {child.problem}")
            if not child.is_folder:
                loose.append(child.name)
                continue
            rest = others.setdefault(child.name, [])
            for name, file in _below(tree, child.place, f"{split}/{child.name}", path):
                if is_picture(file.name):
                    found.append((child.name, name, file.place))
                else:
                    rest.append(file.name)
    expected = f"expected files ending in {', '.join(SUFFIXES)}"
    if not found:
        beside = f"; {len(loose)} in {split} itself, without a class" if loose else ""
        unread = left_out(name for names in others.values() for name in names)
        raise ValueError(f"data: {path} holds no images at {split}/<class>/ ({unread}{beside}); {expected}")
    empty = {name: others[name] for name in sorted(others.keys() - {label for label, _, _ in found})}
    if empty:
        told = _few(f"{split}/{name} ({left_out(names)})" for name, names in empty.items())
        raise ValueError(
            f"data: {len(empty)} of {len(others)} classes of {path} hold no images: {told}; {expected}, "
            "or remove the folder from every split"
        )
    return found


def _below(
    tree: _Tree[_Place], folder: _Place, name: str, path: Path, prefix: str = "", above: tuple[object, ...] = ()
) -> Iterator[tuple[str, _Child[_Place]]]:
    """All files below the folder with their names below it; folders that hold themselves by a link end there."""
    above = (*above, tree.same(folder))
    for child in tree.children(folder):
        if child.problem and is_picture(child.name):
            raise ValueError(f"data: {name}/{prefix}{child.name} in {path} {child.problem}")
        if not child.is_folder:
            yield prefix + child.name, child
        elif not is_clutter(child.name) and tree.same(child.place) not in above:
            yield from _below(tree, child.place, name, path, f"{prefix}{child.name}/", above)


def _few(names: Iterable[str]) -> str:
    """The first of many names."""
    names = sorted(names)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


@dataclass(frozen=True)
class _Folder:
    """A folder on the disk."""

    path: Path

    def splits(self, split: str) -> list[Path]:
        return [folder] if (folder := self.path / split).is_dir() else []

    def children(self, folder: Path) -> Iterator[_Child[Path]]:
        for entry in sorted(folder.iterdir()):
            is_folder, problem = entry.is_dir(), ""
            if not is_folder and not entry.is_file():
                problem = (
                    f"is a link to {os.readlink(entry)}, which is not there" if entry.is_symlink() else "is no file"
                )
            yield _Child(entry.name, entry, is_folder, problem)

    def same(self, folder: Path) -> object:
        return folder.resolve()


# --- archives ------------------------------------------------------------------------------------------------------

_Names = tuple[str, ...]


@dataclass(frozen=True)
class _Member:
    """An entry of an archive."""

    index: int
    path: _Names
    """From the archive's top; a leading `/` and what would lead above it is dropped, as nothing is extracted."""
    kind: str
    """file, folder, link, or other."""
    link: str = ""
    """What the link says."""
    target: _Names = ()
    """Where it leads, from the archive's top."""


@dataclass
class _Archive:
    """The tree in an archive, made of its entries; of two with one name the later counts, as where it is unpacked."""

    path: Path
    members: dict[_Names, _Member] = field(default_factory=dict)
    below: dict[_Names, dict[str, None]] = field(default_factory=lambda: {(): {}})
    """The names in each folder."""

    def add(self, member: _Member) -> None:
        if not member.path:
            return
        self.members[member.path] = member
        for i in range(len(member.path)):
            self.below.setdefault(member.path[:i], {})[member.path[i]] = None
        if member.kind == "folder":
            self.below.setdefault(member.path, {})

    def splits(self, split: str) -> list[_Names]:
        """Those nearest to the archive's top that are there under this name."""
        parts = PurePosixPath(split).parts
        named = [path for path in {**self.below, **self.members} if path[max(0, len(path) - len(parts)) :] == parts]
        named = [path for path in named if self._real(path) in self.below and not any(map(is_clutter, path))]
        depth = min(map(len, named), default=0)
        return list({real: None for path in named if len(path) == depth and (real := self._real(path)) is not None})

    def children(self, folder: _Names) -> Iterator[_Child[_Names]]:
        for name in sorted(self.below[folder]):
            place = (*folder, name)
            real = self._real(place)
            if real is not None and (real in self.below or self.members[real].kind == "file"):
                yield _Child(name, real, real in self.below)
            else:
                there = self.members[place]
                problem = (
                    f"is a link to {there.link}, which is not in the archive; make it anew from the files (tar -h)"
                )
                yield _Child(name, place, False, problem if there.kind == "link" else "is no file")

    def same(self, folder: _Names) -> object:
        return folder

    def _real(self, path: _Names, links: int = 0) -> _Names | None:
        """The path without links; None where it leads to nothing, or on and on."""
        real: _Names = ()
        for i, name in enumerate(path):
            if name == "..":
                real = real[:-1]
                continue
            real = (*real, name)
            member = self.members.get(real)
            if member is not None and member.kind == "link":
                return self._real((*member.target, *path[i + 1 :]), links + 1) if links < 40 else None
        return real if real in self.below or real in self.members else None


def _members(path: Path, wanted: Callable[[_Member], bool]) -> Iterator[tuple[_Member, bytes | None]]:
    """The archive's entries in their order, with the bytes of the files that are wanted and pictures by their names."""
    with path.open("rb") as file:
        is_zip = file.read(4) in (b"PK\x03\x04", b"PK\x05\x06")

    def takes(member: _Member) -> bool:
        return member.kind == "file" and is_picture(member.path[-1]) and wanted(member)

    try:
        yield from (_zip_members if is_zip else _tar_members)(path, takes)
    except (*_DAMAGE, RuntimeError) as error:  # RuntimeError: a zip of another version, or an encrypted link in one
        why = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"data: {path} cannot be read to its end ({why}); it is damaged or cut off") from None


_DAMAGE = (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError, lzma.LZMAError, zlib.error, struct.error)


def _tar_members(path: Path, takes: Callable[[_Member], bool]) -> Iterator[tuple[_Member, bytes | None]]:
    try:
        archive = tarfile.open(path)  # noqa: SIM115
    except _DAMAGE:
        raise ValueError(f"data: {path} is no folder, and no tar or zip archive that can be read") from None
    with archive:
        for i, entry in enumerate(archive):
            kind = "folder" if entry.isdir() else "file" if entry.isreg() else "other"
            member = _Member(i, _inside(entry.name), kind)
            if entry.issym() or entry.islnk():
                member = _link(i, member.path, entry.linkname, from_top=entry.islnk())
            data = None
            if takes(member):
                stream = archive.extractfile(entry)
                assert stream is not None
                data = stream.read()
            yield member, data
        _check_end(archive)


def _check_end(archive: tarfile.TarFile) -> None:
    """EOFError where the archive stops without its end mark, a block of zeros, which `tarfile` does not mind."""
    file = archive.fileobj
    assert file is not None
    if file.tell() - archive.offset < tarfile.BLOCKSIZE:
        raise EOFError("it stops without its end mark")
    if not isinstance(file, io.BufferedReader):  # compressed, where going back is slow, and a digest is at the end
        while file.read(1 << 20):
            pass
        return
    file.seek(archive.offset)
    if any(file.read(tarfile.BLOCKSIZE)):
        raise EOFError(f"no entry at byte {archive.offset}")


def _zip_members(path: Path, takes: Callable[[_Member], bool]) -> Iterator[tuple[_Member, bytes | None]]:
    with zipfile.ZipFile(path) as archive:
        _check_count(path, len(archive.infolist()))
        for i, entry in enumerate(archive.infolist()):
            # Some makers write the other slash.
            name = _inside(entry.filename if "/" in entry.filename else entry.filename.replace("\\", "/"))
            member = _Member(i, name, "folder" if entry.is_dir() else "file")
            if stat.S_ISLNK(entry.external_attr >> 16):
                member = _link(i, name, archive.read(entry).decode(errors="replace"))
            try:
                data = archive.read(entry) if takes(member) else None
            except RuntimeError as error:  # encrypted, or compressed in a way that Python does not know
                raise ValueError(f"data: {entry.filename} in {path} cannot be read ({error})") from None
            except _DAMAGE:
                raise zipfile.BadZipFile(f"at {entry.filename}") from None
            yield member, data


def _check_count(path: Path, found: int) -> None:
    """BadZipFile where a zip's end counts other than `found` entries, which `zipfile` does not mind."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 22 - 65535))
        end = file.read()
    (count,) = struct.unpack_from("<H", end, end.rindex(b"PK\5\6") + 10)
    if count not in (found % 65536, 65535):  # 65535: counted elsewhere
        raise zipfile.BadZipFile(f"{found} of {count} entries")


def _link(index: int, path: _Names, link: str, from_top: bool = False) -> _Member:
    """A link as an entry; `from_top`: it names another entry, as a tar's hard links do."""
    before = () if from_top or link.startswith("/") else path[:-1]
    return _Member(index, path, "link", link, (*before, *_parts(link)))


def _inside(name: str) -> _Names:
    """The path below the archive's top."""
    inside: list[str] = []
    for part in _parts(name):
        inside = inside[:-1] if part == ".." else [*inside, part]
    return tuple(inside)


def _parts(name: str) -> _Names:
    return tuple(part for part in name.split("/") if part not in ("", "."))
