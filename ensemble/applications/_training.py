"""What the commands that train share: recipes by name, and how a training ends that does not end by itself."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any


def recipe_path(name: str, folder: str = "training") -> Path:
    """The file, or that of the shipped recipe FOLDER/NAME; ValueError where there is neither."""
    from ensemble.runs.recipes import recipe_file

    if not Path(name).suffix and not Path(name).is_file():
        with suppress(ValueError):
            return recipe_file(f"{folder}/{name}")
    return recipe_file(name)


def add_real_images(p: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """What a student of generated images is tested on."""
    real = p.add_argument_group("real images")
    real.add_argument("--test", metavar="DATA", help="a folder or archive with SPLIT/CLASS/FILE, read at the end")
    real.add_argument("--test-split", metavar="SPLIT", help="what is read there (default: test)")
    return real


def with_parts(data: dict[str, Any], **parts: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe with what is given of its parts; None is not."""
    for key, values in parts.items():
        named = {name: value for name, value in values.items() if value is not None}
        if named:
            part = data.get(key) or {}
            if not isinstance(part, Mapping):
                raise ValueError(f"{key}: expected a mapping in the recipe, got {part!r}")
            data[key] = {**part, **named}
    return data


def ended(act: Callable[[], dict[str, Any]], options: argparse.Namespace) -> dict[str, Any] | int:
    """The summary that `act` returns; the exit code where a signal ended it, of which it tells.

    Raises MachineFailure where the memory does not suffice.
    """
    from ensemble.machine.errors import MachineFailure, is_out_of_memory
    from ensemble.machine.launch import EndedAtOnce, end_on_signals

    try:
        with end_on_signals():
            return act()
    except KeyboardInterrupt as end:
        by = f" by {end}" if isinstance(end, EndedAtOnce) and end.number != signal.SIGINT else ""
        instead = " instead of --overwrite" if options.overwrite else ""
        text = f"interrupted{by}; the same command with --resume{instead} goes on from the last whole epoch"
        print(f"invert.py: {text}", file=sys.stderr)
        return 128 + (end.number if isinstance(end, EndedAtOnce) else signal.SIGINT)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise MachineFailure("out of memory; a smaller batch, --set schedule.batch_size=N, needs less") from None
