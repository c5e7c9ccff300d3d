"""What the commands that train share."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ensemble.applications._endings import ended, tell_stopped
from ensemble.machine.files import user_path

if TYPE_CHECKING:
    from ensemble.runs.rounds import Rounds


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
    options: argparse.Namespace,
    describe: Callable[[argparse.Namespace], dict[str, Any]],
    tell: Callable[[dict[str, Any]], list[str]],
    rounds: Callable[[argparse.Namespace], Rounds | None] = lambda options: None,
) -> int:
    """One distillation, or one in rounds: its results are written, then told line by line; the exit code."""
    from ensemble.machine.hardware import choose_device
    from ensemble.machine.progress import progress_reporter
    from ensemble.plugins import load_entry_points
    from ensemble.runs.rounds import RoundsFolder, RoundsRun
    from ensemble.runs.trial import Interrupted
    from ensemble.training.distill import distill
    from ensemble.training.distillation import DistillationRecipe, parse_distillation_recipe
    from ensemble.training.folder import TrainingFolder

    load_entry_points()
    recipe, asked = parse_distillation_recipe(describe(options)), rounds(options)
    folder = TrainingFolder(user_path(options.output), DistillationRecipe)
    device = choose_device(options.device or "auto")
    how = {"resume": options.resume, "overwrite": options.overwrite}

    def act() -> dict[str, Any]:
        if asked is None:
            return distill(recipe, folder, device, progress=progress_reporter(), **how)
        return RoundsRun(recipe, asked, RoundsFolder(folder.path), device).run(progress=progress_reporter(), **how)

    try:
        summary = ended(act, options, "epoch")
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
