"""Pictures in a tar or zip archive, which is read in its order; nothing is extracted."""

from __future__ import annotations

import io
import lzma
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from ensemble.data.tree import Child, Layout, find
from ensemble.image.files import is_clutter, is_picture

_Picture = TypeVar("_Picture")


def pictures(
    path: Path,
    split: str,
    decoded: Callable[[bytes, str], _Picture],
    draw: Callable[[list[Any]], list[Any]] | None = None,
    layout: Layout = "splits",
) -> tuple[str, list[tuple[str, str, _Picture]]]:
    """The split as `find` says, and class, name below it, and what `decoded` makes of each picture's bytes and name.

    In one pass over the archive, and a second one for what links lead to elsewhere in it, for pictures of no split, or
    for those that `draw` takes of a list of classes, names and places and whose bytes did not fit into memory. Raises
    ValueError as `find` does, and where the archive is damaged.
    """
    parts = PurePosixPath(split).parts
    tree, made, kept, room = _Archive(), dict[int, _Picture](), dict[int, bytes](), _ROOM

    def make(member: _Member, data: bytes) -> None:
        made[member.index] = decoded(data, f"{'/'.join(member.path)} in {path}")

    def in_split(member: _Member) -> bool:
        return not any(map(is_clutter, member.path)) and _holds(member.path[:-2], parts)

    for member, data in _members(path, in_split):
        if data is not None and draw is None:
            make(member, data)
        elif data is not None and len(data) <= room:  # until it is known which are drawn
            kept[member.index] = data
            room -= len(data)
        tree.add(member)
    split, places = find(tree, path, split, layout)
    places = places if draw is None else draw(places)
    found = [(label, name, tree.members[place]) for label, name, place in places]
    for _, _, member in found:
        if member.index in kept:
            make(member, kept.pop(member.index))
    missing = {member.index for _, _, member in found} - made.keys()
    for member, data in _members(path, lambda member: member.index in missing) if missing else ():
        if data is not None:
            make(member, data)
    return split, [(label, name, made[member.index]) for label, name, member in found]


_ROOM = 1 << 28
"""Bytes of pictures that are kept until it is known which are drawn; of more, the archive is read again."""


def _holds(path: tuple[str, ...], parts: tuple[str, ...]) -> bool:
    """Whether `parts` follow each other anywhere in `path`."""
    return any(path[i : i + len(parts)] == parts for i in range(len(path) - len(parts) + 1))


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

    def top(self) -> _Names:
        return ()

    def children(self, folder: _Names) -> Iterator[Child[_Names]]:
        for name in sorted(self.below[folder]):
            place = (*folder, name)
            real = self._real(place)
            if real is not None and (real in self.below or self.members[real].kind == "file"):
                yield Child(name, real, real in self.below)
            else:
                there = self.members[place]
                problem = (
                    f"is a link to {there.link}, which is not in the archive; make it anew from the files (tar -h)"
                )
                yield Child(name, place, False, problem if there.kind == "link" else "is no file")

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
