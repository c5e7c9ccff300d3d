"""The pictures of a split, found in a tree of folders on the disk or in an archive."""

from __future__ import annotations

import os
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Generic, Literal, Protocol, TypeVar

from ensemble.image.files import SUFFIXES, is_clutter, is_picture, left_out
from ensemble.machine.words import plural

Place = TypeVar("Place")
Layout = Literal["splits", "classes", "pictures"]
"""What is taken: `<split>/<class>/<file>`; where there is no such split, `<class>/<file>`, too; and where there are no
classes, any `<file>` of the split or the top, too, as one class without a name."""

SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}


@dataclass(frozen=True)
class Child(Generic[Place]):
    """What a folder holds under a name, links followed."""

    name: str
    place: Place
    is_folder: bool
    problem: str = ""
    """Why it is neither a file nor a folder, if so."""


class Tree(Protocol[Place]):
    """Folders and files, on a disk or in an archive."""

    def splits(self, split: str) -> list[Place]:
        """The folders of the split."""

    def top(self) -> Place:
        """The folder that holds all others."""

    def children(self, folder: Place) -> Iterable[Child[Place]]:
        """What is in the folder."""

    def same(self, folder: Place) -> object:
        """Equal for one folder reached in two ways."""


def find(
    tree: Tree[Place], path: Path, split: str, layout: Layout = "splits"
) -> tuple[str, list[tuple[str, str, Place]]]:
    """The split, empty where there is none and all count, and class, name and place of each picture.

    ValueError where there is none, or none of a class.
    """
    found: list[tuple[str, str, Place]] = []
    others: dict[str, list[str]] = {}  # by class; files that are no pictures
    loose: list[Child[Place]] = []
    tops = tree.splits(split)
    top, there = _top(tree)
    if layout != "splits" and _are_classes(tree, there):
        tops, split = [top], ""
    inside = f"{split}/" if split else ""
    for top in tops:
        above = (tree.same(tree.top()), tree.same(top))
        for child in tree.children(top):
            if is_clutter(child.name):
                continue
            if child.problem:
                raise ValueError(f"data: {inside}{child.name} in {path} {child.problem}")
            if not child.is_folder:
                loose.append(child)
                continue
            if tree.same(child.place) in above:  # a link to a folder that holds it
                continue
            label = unicodedata.normalize("NFC", child.name)  # some systems store accents apart from their letters
            rest = others.setdefault(label, [])
            for name, file in _below(tree, child.place, f"{inside}{child.name}", path, above=above):
                if is_picture(file.name):
                    found.append((label, name, file.place))
                else:
                    rest.append(file.name)
    if layout == "pictures":
        found += [("", child.name, child.place) for child in loose if is_picture(child.name)]
    expected = f"expected files ending in {', '.join(SUFFIXES)}"
    if not found:
        beside = f"; {len(loose)} in {split or 'it'} itself, without a class" if loose else ""
        unread = left_out(name for names in others.values() for name in names)
        unread += f"; its folders are {few(child.name for child in there)}" if there and not tops else ""
        if not tops and any(child.name.lower() in SPLITS for child in there):
            expected = f"name the split that is meant; {expected}"
        raise ValueError(f"data: {path} holds no images at {inside}<class>/ ({unread}{beside}); {expected}")
    empty = {name: others[name] for name in sorted(others.keys() - {label for label, _, _ in found})}
    if empty and layout != "pictures":
        told = few(f"{inside}{name} ({left_out(names)})" for name, names in empty.items())
        raise ValueError(
            f"data: {len(empty)} of {len(others)} classes of {path} hold no images: {told}; {expected}, "
            "or remove the folder from every split"
        )
    no_pictures = [child.name for child in loose if not is_picture(child.name)]
    no_pictures += [name for names in others.values() for name in names]
    if strangers := [name for name in no_pictures if not (is_clutter(name) or _is_text(name))]:
        warnings.warn(f"data: {path}: {left_out(strangers)}, beside {plural(len(found), 'picture')}", stacklevel=2)
    return split, found


def _is_text(name: str) -> bool:
    """Whether it may well lie beside pictures."""
    return PurePath(name).suffix.lower() in (".csv", ".html", ".json", ".md", ".tsv", ".txt", ".xml", ".yaml", ".yml")


def _folders(tree: Tree[Place], folder: Place) -> list[Child[Place]]:
    return [child for child in tree.children(folder) if child.is_folder and not is_clutter(child.name)]


def _top(tree: Tree[Place]) -> tuple[Place, list[Child[Place]]]:
    """The top and its folders; one that is all there is, and no split, and holds several, stands for what it holds."""
    top = tree.top()
    while True:
        there = _folders(tree, top)
        if len(there) != 1 or there[0].name.lower() in SPLITS or any(is_picture(c.name) for c in tree.children(top)):
            return top, there
        if len(_folders(tree, there[0].place)) < 2:
            return top, there
        top = there[0].place


def _are_classes(tree: Tree[Place], folders: Sequence[Child[Place]]) -> bool:
    """Whether these are classes and no splits; a class may be called `train` beside others, but holds no folders."""
    called = [folder for folder in folders if folder.name.lower() in SPLITS]
    if any(_folders(tree, folder.place) for folder in called) or (folders and len(called) == len(folders)):
        return False
    return not any(c.name.lower() in SPLITS for folder in folders for c in _folders(tree, folder.place))


def _below(
    tree: Tree[Place], folder: Place, name: str, path: Path, prefix: str = "", above: tuple[object, ...] = ()
) -> Iterator[tuple[str, Child[Place]]]:
    """All files below the folder with their names below it; folders that hold themselves by a link end there."""
    above = (*above, tree.same(folder))
    for child in tree.children(folder):
        if child.problem and is_picture(child.name):
            raise ValueError(f"data: {name}/{prefix}{child.name} in {path} {child.problem}")
        if not child.is_folder:
            yield prefix + child.name, child
        elif not is_clutter(child.name) and tree.same(child.place) not in above:
            yield from _below(tree, child.place, name, path, f"{prefix}{child.name}/", above)


def few(names: Iterable[str]) -> str:
    """The first of many names."""
    names = sorted(names)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


@dataclass(frozen=True)
class Folder:
    """A folder on the disk."""

    path: Path

    def splits(self, split: str) -> list[Path]:
        return [folder] if (folder := self.path / split).is_dir() else []

    def top(self) -> Path:
        return self.path

    def children(self, folder: Path) -> Iterator[Child[Path]]:
        with os.scandir(folder) as listed:  # which knows what is a folder without another look
            entries = sorted(listed, key=lambda entry: entry.name)
        for entry in entries:
            is_folder, problem = _is(entry.is_dir), ""
            if not is_folder and not _is(entry.is_file):
                problem = (
                    f"is a link to {os.readlink(entry)}, which is not there" if entry.is_symlink() else "is no file"
                )
            yield Child(entry.name, Path(entry.path), is_folder, problem)

    def same(self, folder: Path) -> object:
        return folder.resolve()


def _is(asked: Callable[[], bool]) -> bool:
    """What `os.DirEntry` answers; no for a link that leads around in a circle."""
    try:
        return asked()
    except OSError:
        return False
