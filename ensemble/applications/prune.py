"""Make a trained network narrower without its data: channels go by what generated images say of them.

What is left learns from the whole network, on the generated images, as `invert.py distill` has it. Real images are read
for the final test only. Needs torch-pruning: pip install -e '.[prune]'.

examples:
  python invert.py prune --model resnet20_cifar --dataset results/set --flops 0.5 --output results/half
  python invert.py prune --model resnet20_cifar --dataset results/set --flops 0.5 --test cifar10.tar.xz --output o
  python invert.py --models resnet20_cifar@results/half/weights.safetensors
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ensemble.applications._options import Parser, add_device, add_output, add_overrides, check_alone
from ensemble.applications._training import add_real_images, ended, with_parts


def arguments(p: Parser) -> None:
    """The options."""
    what = p.add_argument_group("what to prune")
    what.add_argument("--model", required=True, metavar="MODEL", help="NAME[:option=value][@WEIGHTS], trained")
    what.add_argument("--dataset", required=True, nargs="+", metavar="DIR", help="folders of invert.py dataset")
    what.add_argument(
        "--flops", required=True, type=float, metavar="FRACTION", help="share of the multiplications that is left"
    )
    what.add_argument(
        "--importance",
        choices=["taylor", "magnitude", "bn_scale"],
        help="what a channel is worth (default: taylor, on the generated images)",
    )
    what.add_argument("--epochs", type=int, metavar="N", help="passes over the images afterwards (default: 200)")
    what.add_argument("--seed", type=int, metavar="N", help="of images drawn, order and views (default: 0)")
    add_overrides(what)
    add_real_images(p)
    add_output(p)
    add_device(p.add_argument_group("how to compute"))


def run(options: argparse.Namespace) -> int:
    """One network, whose results are written before anything is said of them."""
    from ensemble.machine.hardware import choose_device
    from ensemble.machine.progress import progress_reporter
    from ensemble.plugins import load_entry_points
    from ensemble.training.cut import pruning_library
    from ensemble.training.distill import distill
    from ensemble.training.distillation import DistillationRecipe, parse_distillation_recipe
    from ensemble.training.folder import TrainingFolder

    load_entry_points()
    check_alone("prune")
    recipe = parse_distillation_recipe(described(options))
    pruning_library()
    folder = TrainingFolder(Path(options.output).expanduser(), DistillationRecipe)
    summary = ended(
        lambda: distill(
            recipe,
            folder,
            choose_device(options.device or "auto"),
            resume=options.resume,
            overwrite=options.overwrite,
            progress=progress_reporter(),
        ),
        options,
    )
    if isinstance(summary, int):
        return summary
    print(f"{folder.path}: {said(summary)}")
    return 0


def described(options: argparse.Namespace) -> dict[str, Any]:
    """The recipe of the distillation that it is, as plain data."""
    from ensemble.config.overrides import apply_override

    if "@random" in options.model:
        raise ValueError("--model: random weights have nothing to lose; give trained ones, NAME or NAME@FILE")
    data = {
        "student": options.model,
        "dataset": options.dataset,
        "prune": {"flops": options.flops} | ({"importance": options.importance} if options.importance else {}),
        "lesson": {"kind": "live", "teachers": [options.model]},
        **({"seed": options.seed} if options.seed is not None else {}),
    }
    data = with_parts(
        data,
        schedule={"epochs": options.epochs},
        test={"path": options.test, "split": options.test_split},
    )
    for override in options.set:
        data = apply_override(data, override)
    return data


def said(summary: dict[str, Any]) -> str:
    """What is told at the end."""
    lost = summary["pruned"]
    text = f"{lost['flops']:.1%} of the multiplications and {lost['parameters']['after']} of "
    text += f"{lost['parameters']['before']} parameters are left"
    if summary["test_accuracy"] is None:
        return f"{text}; no real images were read"
    read = summary["real_images_read"]
    return f"{text}; test accuracy {summary['test_accuracy']:.2%} on {read['images']} real images ({read['split']})"
