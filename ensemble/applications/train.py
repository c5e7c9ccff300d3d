"""Train a network on images, as a teacher or a judge.

examples:
  python invert.py train --recipe resnet20_cifar --set data.path=cifar10-jpeg.tar.xz --output results/mine
  python invert.py train --recipe resnet20_cifar --set data.path=cifar10-jpeg.tar.xz --output results/mine --resume
  python invert.py train --recipe other.yaml --set schedule.epochs=5 --output results/other --device cuda:0
  python invert.py --models resnet20_cifar@results/mine/weights.safetensors

The images are a folder or an archive with <split>/<class>/<image> inside.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from ensemble.applications._endings import ended
from ensemble.applications._options import Parser, add_device, add_output, add_overrides
from ensemble.machine.files import user_path

_COMMAND = "python invert.py train"


def arguments(p: Parser) -> None:
    """The options."""
    what = p.add_argument_group("what to train")
    what.add_argument(
        "--recipe",
        required=True,
        metavar="FILE",
        help="a YAML training recipe or a shipped one's name, as resnet20_cifar",
    )
    add_overrides(what, "schedule.lr=0.05")
    add_output(p)
    how = p.add_argument_group("how to compute")
    add_device(how)
    bundle = p.add_argument_group("bundled weights")
    bundle.add_argument("--export", metavar="DIR", help="also write NAME.safetensors, rounded, and its record there")


def run(options: argparse.Namespace) -> int:
    """One training run, whose results are written before anything is said of them."""
    from ensemble.config.overrides import apply_override
    from ensemble.machine.hardware import choose_device
    from ensemble.machine.progress import progress_reporter
    from ensemble.runs.recipes import TRAINING, read_recipe, recipe_file
    from ensemble.training.folder import TrainingFolder
    from ensemble.training.recipe import parse_training_recipe
    from ensemble.training.run import run as train

    file, data = recipe_file(options.recipe, "training", TRAINING), read_recipe(options.recipe, TRAINING, "training")
    for override in options.set:
        data = apply_override(data, override)
    recipe = parse_training_recipe(data)
    folder = TrainingFolder(user_path(options.output))
    export = user_path(options.export) if options.export else None
    was_finished = options.resume and export is None and folder.finished
    summary = ended(
        lambda: train(
            recipe,
            folder,
            choose_device(options.device or "auto"),
            resume=options.resume,
            overwrite=options.overwrite,
            export=export,
            command=reproducing_command(file, options),
            progress=progress_reporter(),
        ),
        options,
        "epoch",
    )
    if isinstance(summary, int):
        return summary
    is_finished = "this run is finished: " if was_finished else ""
    print(f"{folder.path}: {is_finished}accuracy {summary['accuracy']:.2%} on {summary['test_images']} test images")
    if export is not None:
        print(f"{export}: exported at accuracy {summary['exported_accuracy']:.2%}")
    return 0


def reproducing_command(recipe: Path, options: argparse.Namespace) -> str:
    """The command line that makes these weights again, without paths of this machine; `recipe` is the recipe's file."""
    named = not user_path(options.recipe).is_file()
    words = [_COMMAND, "--recipe", shlex.quote(options.recipe) if named else _shown(recipe)]
    for override in options.set:
        if not override.startswith("data.path="):
            words += ["--set", shlex.quote(override)]
    for plugin in options.plugin:
        words += ["--plugin", _shown(Path(plugin))]
    return " ".join([*words, "--output", shlex.quote(f"results/{recipe.stem}"), "--export", "models/weights"])


def _shown(file: Path) -> str:
    """Relative to the working directory where it is below that, else the name alone."""
    below_here = file.resolve().is_relative_to(Path.cwd())
    return shlex.quote(file.resolve().relative_to(Path.cwd()).as_posix() if below_here else file.name)
