"""What the commands that train share: recipes by name, and how a training ends that does not end by itself."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ensemble.applications._inverting import tell_stopped

if TYPE_CHECKING:
    from ensemble.runs.rounds import Rounds


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
    real.add_argument(
        "--test", metavar="DATA", help="folder or archive, SPLIT/CLASS/FILE or CLASS/FILE, read at the end"
    )
    real.add_argument(
        "--test-split", metavar="SPLIT", help="what is read there (default: test, or without splits, all)"
    )
    return real


def with_parts(data: dict[str, Any], /, **parts: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe with what is given of its parts; None is not."""
    for key, values in parts.items():
        named = {name: value for name, value in values.items() if value is not None}
        if named:
            part = data.get(key) or {}
            if not isinstance(part, Mapping):
                raise ValueError(f"{key}: expected a mapping in the recipe, got {part!r}")
            data[key] = {**part, **named}
    return data


def distilled(
    command: str,
    options: argparse.Namespace,
    describe: Callable[[argparse.Namespace], dict[str, Any]],
    tell: Callable[[dict[str, Any]], list[str]],
    rounds: Callable[[argparse.Namespace], Rounds | None] = lambda options: None,
) -> int:
    """One distillation, or one in rounds: its results are written, then told line by line; the exit code."""
    from ensemble.applications._options import check_alone
    from ensemble.machine.hardware import choose_device
    from ensemble.machine.progress import progress_reporter
    from ensemble.plugins import load_entry_points
    from ensemble.runs.rounds import RoundsFolder, RoundsRun
    from ensemble.runs.trial import Interrupted
    from ensemble.training.distill import distill
    from ensemble.training.distillation import DistillationRecipe, parse_distillation_recipe
    from ensemble.training.folder import TrainingFolder

    load_entry_points()
    check_alone(command)
    recipe, asked = parse_distillation_recipe(describe(options)), rounds(options)
    folder = TrainingFolder(Path(options.output).expanduser(), DistillationRecipe)
    device = choose_device(options.device or "auto")
    how = {"resume": options.resume, "overwrite": options.overwrite}

    def act() -> dict[str, Any]:
        if asked is None:
            return distill(recipe, folder, device, progress=progress_reporter(), **how)
        return RoundsRun(recipe, asked, RoundsFolder(folder.path), device).run(progress=progress_reporter(), **how)

    try:
        summary = ended(act, options)
    except Interrupted as stop:  # while a round's images were made
        return tell_stopped(stop, options)
    if isinstance(summary, int):
        return summary
    for line in tell(summary):
        print(f"{folder.path}: {line}")
    return 0


def tested(summary: Mapping[str, Any]) -> str:
    """What a student reads of real images, if any were."""
    if summary["test_accuracy"] is None:
        return "no real images were read"
    from ensemble.evaluation.intervals import clopper_pearson

    read, accuracy = summary["real_images_read"], summary["test_accuracy"]
    low, high = clopper_pearson(round(accuracy * read["images"]), read["images"])
    images = f"{read['images']} real images ({read['split'] or 'all'})"
    return f"test accuracy {accuracy:.2%} on {images}, 95 % interval {low:.1%} to {high:.1%}"


def ended(act: Callable[[], dict[str, Any]], options: argparse.Namespace, unit: str = "epoch") -> dict[str, Any] | int:
    """The summary that `act` returns; the exit code where a signal ended it, of which it tells: what was whole is kept.

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
        text = f"interrupted{by}; the same command with --resume{instead} goes on from the last whole {unit}"
        print(f"invert.py: {text}", file=sys.stderr)
        return 128 + (end.number if isinstance(end, EndedAtOnce) else signal.SIGINT)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise MachineFailure("out of memory; a smaller batch, --set schedule.batch_size=N, needs less") from None
