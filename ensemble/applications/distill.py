"""Train a student on generated images alone, told by the networks that they come from.

A student without weights begins untrained. Its labels are `hard`, the class that each image was made for; `stored`,
what the teachers said of each image; or `live`, what the teachers say of each view that the student sees. Real images
are read for the final test only.

examples:
  python invert.py distill --dataset results/set --student resnet20_cifar --output results/student
  python invert.py distill --dataset a b --student wrn16_2_cifar --labels hard --test cifar10.tar.xz --output results/c
  python invert.py distill --recipe cifar10 --dataset results/set --set lesson.temperature=8 --output results/d
  python invert.py distill --dataset results/set --student resnet20_cifar --rounds 4 --output results/adaptive
  python invert.py distill --dataset results/set --student resnet20_cifar --output results/student --resume
  python invert.py --models resnet20_cifar@results/student/weights.safetensors
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ensemble.applications._options import Parser, add_device, add_output, add_overrides
from ensemble.applications._training import add_real_images, distilled, tested, with_parts

if TYPE_CHECKING:
    from ensemble.runs.rounds import Rounds


def arguments(p: Parser) -> None:
    """The options; what the recipe, too, can say wins over it."""
    what = p.add_argument_group("what to learn")
    what.add_argument("--recipe", metavar="FILE", help="a YAML distillation recipe or a shipped one's name, as cifar10")
    what.add_argument("--dataset", nargs="+", action="extend", metavar="DIR", help="folders of invert.py dataset")
    what.add_argument("--student", metavar="MODEL", help="NAME[:option=value][@WEIGHTS]; by default untrained")
    what.add_argument("--labels", choices=["hard", "stored", "live"], help="what the student is told (default: live)")
    what.add_argument(
        "--teacher", action="append", metavar="MODEL", help="a teacher, instead of the dataset's; may be repeated"
    )
    what.add_argument("--epochs", type=int, metavar="N", help="passes over the images (default: 200)")
    what.add_argument("--seed", type=int, metavar="N", help="of weights, order and views (default: 0)")
    add_overrides(what, "schedule.lr=0.05")
    turns = p.add_argument_group("in rounds, each with new images on which the student differs from its teachers")
    turns.add_argument(
        "--rounds", type=int, metavar="R", help="how many; the new images are made as the dataset's were"
    )
    turns.add_argument("--round-images", type=int, metavar="N", help="new ones in each (default: 300)")
    turns.add_argument("--round-epochs", type=int, metavar="N", help="before each round (default: 20)")
    turns.add_argument("--competition", type=float, metavar="W", help="weight of the difference (default: 1, 0: none)")
    add_real_images(p).add_argument(
        "--diagnose", action="store_true", help="also test with BatchNorm statistics of real images of the split train"
    )
    add_output(p)
    add_device(p.add_argument_group("how to compute"))


def run(options: argparse.Namespace) -> int:
    """One student, or one in rounds."""
    return distilled(options, described, said, _rounds)


def _rounds(options: argparse.Namespace) -> Rounds | None:
    """What is asked for of rounds; ValueError for parts of them without any."""
    from ensemble.config.parsing import parse
    from ensemble.runs.rounds import Rounds

    said = {"images": options.round_images, "epochs": options.round_epochs, "competition": options.competition}
    given = {name: value for name, value in said.items() if value is not None}
    if options.rounds is None:
        if given:
            option = "--competition" if "competition" in given else f"--round-{next(iter(given))}"
            raise ValueError(f"{option} is about rounds; say how many, with --rounds R")
        return None
    return parse(Rounds, given | {"count": options.rounds}, "rounds")


def described(options: argparse.Namespace) -> dict[str, Any]:
    """The recipe as plain data: the file's, then the options, then --set."""
    from ensemble.config.overrides import apply_override
    from ensemble.runs.recipes import STUDENTS, read_recipe

    data = read_recipe(options.recipe, STUDENTS, "distillation") if options.recipe else {}
    given = {
        "dataset": options.dataset,
        "student": options.student,
        "seed": options.seed,
        "diagnose": options.diagnose or None,
    }
    data |= {key: value for key, value in given.items() if value is not None}
    data = with_parts(
        data,
        schedule={"epochs": options.epochs},
        lesson={"kind": options.labels, "teachers": options.teacher},
        test={"path": options.test, "split": options.test_split},
    )
    if options.labels:
        data["lesson"] = _of_its_kind(data["lesson"])
    for override in options.set:
        data = apply_override(data, override)
    _check(options, data)
    return data


def _of_its_kind(lesson: Mapping[str, Any]) -> dict[str, Any]:
    """The lesson without what only other kinds have: a recipe's temperature is that of stored and live labels alike."""
    from ensemble.config.hints import keys
    from ensemble.training.lessons import Lesson

    others = {name for kind in Lesson.kinds.values() for name in keys(kind)} - {*keys(Lesson.kinds[lesson["kind"]])}
    return {name: value for name, value in lesson.items() if name not in others}


def _check(options: argparse.Namespace, data: dict[str, Any]) -> None:
    """ValueError for what the recipe's own check would tell in words of its fields."""
    for option in ("dataset", "student"):
        if not data.get(option):
            raise ValueError(f"--{option} is missing; give it, or a --recipe that has it; see invert.py distill --help")
    if options.teacher and isinstance(data["lesson"], dict) and data["lesson"].get("kind") == "hard":
        raise ValueError("--teacher: hard labels have no teachers; leave it out, or ask for --labels live")
    test = data.get("test") or {}
    if options.test_split and isinstance(test, Mapping) and not test.get("path"):
        raise ValueError("--test-split names a part of real images; give them, as --test DATA")


def said(summary: dict[str, Any]) -> list[str]:
    """What is told at the end."""
    learned = f"{summary['labels']} labels of {summary['images']} images, {summary['epochs']} epochs"
    lines = [f"{learned}; {tested(summary)}"]
    if "best_along_the_way" in summary:
        best = summary["best_along_the_way"]
        lines.append(f"best along the way {best['test_accuracy']:.2%}, epoch {best['epoch']}: {best['note']}")
    if "diagnosis" in summary:
        found = summary["diagnosis"]
        accuracy = f"{found['test_accuracy_with_real_bn_statistics']:.2%}, {found['note']}"
        lines.append(f"with BatchNorm statistics of {found['real_images_read']['images']} real images {accuracy}")
    return lines
