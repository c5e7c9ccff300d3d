"""What a user adds: a Python file, or an installed package's entry point."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from importlib.metadata import entry_points
from pathlib import Path

from models._table import undone_on_error

GROUP = "ensemble_inversion.models"

_tables: list[Callable[[], AbstractContextManager[set[str]]]] = [undone_on_error]
_loaded_files: dict[str, tuple[str, ...]] = {}
_loaded_entry_points: set[str] = set()


def add_plugin_table(undone_on_error: Callable[[], AbstractContextManager[set[str]]]) -> None:
    """From now on plugins may register in another table too, beside that of the networks.

    Each plugin is loaded inside `undone_on_error()`: it yields a set and fills it at the end with the names that
    were registered inside, or takes these back where an exception passes. Call it once the table has what it
    comes with; a plugin that is being loaded meanwhile is not covered.
    """
    _tables.append(undone_on_error)


def load_plugin(path: str | Path) -> tuple[str, ...]:
    """Runs a user's .py file, which calls `register_model` and the like; returns the names it registered.

    Networks come first, then the names in each further table (`add_plugin_table`), each part sorted. A file that
    was loaded before and has not changed since is not run again.
    Raises ValueError where the file is missing or no .py, and where it fails: with its line and exception.
    """
    path = Path(os.path.expanduser(path)).resolve()
    if path.suffix != ".py" or not path.is_file():
        raise ValueError(f"plugin {path} {'is not a .py file' if path.exists() else 'does not exist'}")
    digest = hashlib.sha256(str(path).encode() + b"\0" + path.read_bytes()).hexdigest()[:16]
    module_name = f"_plugin_{path.stem}_{digest}"
    if module_name in _loaded_files:
        return _loaded_files[module_name]
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses and pickling look classes' modules up there
    try:
        with _whole_or_not_at_all() as registered:
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[module_name]
        raise ValueError(f"plugin {path}{_line(error, path)}: {type(error).__name__}: {_text(error)}") from error
    _loaded_files[module_name] = tuple(name for names in registered for name in sorted(names))
    return _loaded_files[module_name]


def load_entry_points() -> None:
    """Loads what installed packages offer in the group `ensemble_inversion.models`, each once.

    Raises ValueError where one fails, with its name.
    """
    for point in entry_points(group=GROUP):
        key = f"{point.name}={point.value}"
        if key in _loaded_entry_points:
            continue
        _loaded_entry_points.add(key)  # before loading: it may look a network up itself
        try:
            with _whole_or_not_at_all():
                point.load()
        except (Exception, SystemExit) as error:
            _loaded_entry_points.discard(key)
            text = f"{type(error).__name__}: {_text(error)}"
            raise ValueError(f"entry point {point.name!r} of {GROUP} ({point.value}): {text}") from error


@contextmanager
def _whole_or_not_at_all() -> Iterator[list[set[str]]]:
    """Yields what each table's names will be; an exception takes them back from all tables."""
    with ExitStack() as stack:
        yield [stack.enter_context(undone()) for undone in _tables]


def _line(error: BaseException, path: Path) -> str:
    """`, line N`: the last line of the user's file that the exception passed through."""
    if isinstance(error, SyntaxError) and error.lineno:
        return f", line {error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f", line {lines[-1]}" if lines else ""


def _text(error: BaseException) -> str:
    return " ".join((error.msg if isinstance(error, SyntaxError) else str(error)).split())
