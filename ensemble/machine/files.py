"""Files written whole or not at all: bytes, JSON, and JSON lines that survive a crash."""

from __future__ import annotations

import dataclasses
import json
import math
import numbers
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


def user_path(text: str | Path) -> Path:
    """The path that a user gave: `~` is their home; where nobody knows whose, a name like any other, which is not there
    (`Path.expanduser` raises RuntimeError)."""
    return Path(os.path.expanduser(text))


@contextmanager
def leaving_no_empty(folder: Path) -> Iterator[None]:
    """Of the folder and those above it, what is made inside is gone afterwards where it is empty."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    finally:
        for path in made:
            with suppress(OSError):  # not empty
                path.rmdir()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`; what is written there replaces `path` at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    try:
        yield temporary
        _as_others(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def why_unwritable(folder: Path) -> str:
    """What keeps files from being made in the folder, or the folder itself; empty where nothing does."""
    there = next(above for above in (folder, *folder.absolute().parents) if above.exists())
    if not there.is_dir():
        return f"{there} is a file"
    return "" if os.access(there, os.W_OK | os.X_OK) else f"{there} may not be written"


def _as_others(file: Path) -> None:
    """The mode that a new file has; libraries make some readable by their owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    file.chmod(0o666 & ~mask)


def write_bytes(path: Path, data: bytes) -> None:
    """Writes the file, whole or not at all, and on the disk when this returns."""
    with replacing(path) as temporary, temporary.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_text(path: Path, text: str) -> None:
    """Writes the file as UTF-8, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: str | Path, obj: Any) -> None:
    """Writes `obj` as JSON, whole or not at all; dataclasses as objects, NaN and infinities as null."""
    text = json.dumps(_plain(obj), indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    write_text(Path(path), text)


def read_json(path: Path) -> Any:
    """What a JSON file holds; ValueError with its name where it is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as JSON ({error})") from None


def write_json_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes one JSON object a line, whole or not at all; NaN and infinities as null."""
    write_text(path, "".join(_line(row) for row in rows))


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines; a line that a crash cut short is left out, a missing file has none."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").split("\n"):
        with suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict)]


class JsonLines:
    """Appends one JSON object per line to a file; a line is on its way to the disk when `write` returns.

    A last line that a crash cut short is removed when the file is opened again. Close it, or use `with`.
    """

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        _drop_cut_line(path)
        self._file = path.open("a", encoding="utf-8", errors="backslashreplace")

    def write(self, values: Mapping[str, Any]) -> None:
        """Appends `values`; NaN and infinities become null."""
        self._file.write(_line(values))
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _line(values: Mapping[str, Any]) -> str:
    return json.dumps(_plain(values), allow_nan=False, ensure_ascii=False) + "\n"


def _drop_cut_line(path: Path) -> None:
    if path.exists():
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(path, whole)


def _plain(obj: Any) -> Any:
    """`obj` in JSON's own types."""
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        return {f.name: _plain(getattr(obj, f.name)) for f in dataclasses.fields(obj)}
    if isinstance(obj, Mapping):
        return {str(key): _plain(value) for key, value in obj.items()}
    if isinstance(obj, (list, tuple)):
        return [_plain(value) for value in obj]
    if isinstance(obj, (bool, str)) or obj is None:
        return obj
    if isinstance(obj, numbers.Integral):
        return int(obj)
    if isinstance(obj, numbers.Real):
        return float(obj) if math.isfinite(obj) else None
    if isinstance(obj, Path):
        return str(obj)
    raise TypeError(f"cannot write a {type(obj).__name__} as JSON")
