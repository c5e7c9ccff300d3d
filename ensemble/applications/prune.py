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
from typing import Any

from ensemble.applications._options import Parser, add_device, add_output, add_overrides
from ensemble.applications._training import add_real_images, distilled, tested, with_parts


def arguments(p: Parser) -> None:
    """The options."""
    what = p.add_argument_group("what to prune")
    what.add_argument("--model", required=True, metavar="MODEL", help="NAME[:option=value][@WEIGHTS], trained")
    what.add_argument(
        "--dataset",
        required=True,
        nargs="+",
        action="extend",
        metavar="DIR",
        help="folders of invert.py dataset",
    )
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
    add_overrides(what, "schedule.lr=0.02")
    add_real_images(p)
    add_output(p)
    add_device(p.add_argument_group("how to compute"))


def run(options: argparse.Namespace) -> int:
    """One network, narrower."""
    from ensemble.training.cut import pruning_library

    pruning_library()
    return distilled(options, described, said)


def described(options: argparse.Namespace) -> dict[str, Any]:
    """The recipe of the distillation that it is, as plain data."""
    from ensemble.config.overrides import apply_override
    from models import parse_spec

    if parse_spec(options.model).weights == "random":
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
    if not data["prune"]:
        raise ValueError("prune: it says what the network loses; leave --set prune out")
    return data


def said(summary: dict[str, Any]) -> list[str]:
    """What is told at the end."""
    lost = summary["pruned"]
    parameters = f"{lost['parameters']['after']} of {lost['parameters']['before']} parameters"
    return [f"{lost['flops']:.1%} of the multiplications and {parameters} are left; {tested(summary)}"]
