"""The studies that docs/students.md declares: who makes a student's images, at equal passes of teachers.

    python -m tests.benchmarks.students --data cifar10.tar.xz --output results/students
        [--teachers MODEL ..] [--arms pool summed] [--labels hard] [--images 1000] [--epochs 190] [--seeds 100 ..]

For each synthesis seed, each arm makes its images in batches of 100, and a student learns from them and is tested on
the real test images after its last epoch. An arm of several makers has a batch of each in turn. Images, students and
their order are those of the seed, so arms are paired by it. `real`, `noise` and `leaves` are no inversions: training
images, uniform noise and dead leaves, these of the classes that the teachers together read. `alone0` is the first
teacher's arm.

What is there is not made again; one that was stopped goes on. Prints a table and the paired differences from `pool`
(95 %, Student's t), and writes students.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from ensemble.data.generated import GeneratedImages
from ensemble.data.labelled import load_images
from ensemble.data.shards import is_dataset
from ensemble.evaluation.classification import logits_of
from ensemble.evaluation.estimate import mean_interval
from ensemble.image.dead_leaves import dead_leaves
from ensemble.machine.files import read_json, write_json
from ensemble.machine.rng import generator
from ensemble.runs.plan import unique_names
from ensemble.training.distill import distill
from ensemble.training.distillation import DistillationRecipe, parse_distillation_recipe
from ensemble.training.folder import TrainingFolder
from models import ModelCard, create_model
from tests.benchmarks.made import dataset_of
from tests.training.made_datasets import write_dataset

TEACHERS = ("resnet20_cifar", "vgg16_bn_slim_cifar", "wrn16_2_cifar")
BATCH = 100
CPU = torch.device("cpu")


Maker = tuple[str, dict[str, Any]]
"""A recipe and its fields."""
PAIRS: dict[str, Any] = {"ensemble.acting": "random", "ensemble.count": 2, "ensemble.per": "batch"}
PAIRS |= {"stages[0].iterations": 93, "optimizer.lr": 0.1}
OTHERS = ("real", "noise", "leaves")


def makers_of(teachers: Sequence[str]) -> dict[str, list[Maker]]:
    """By arm, who makes its images."""
    alone: list[Maker] = [("quickstart", {"teachers": [{"model": teacher}]}) for teacher in teachers]
    together = {"teachers": [{"model": teacher} for teacher in teachers]}
    return {
        "pool": alone,
        "summed": [("summed", together)],
        "turn": [("quickstart", together)],
        "pairs": [("quickstart", PAIRS | together)],
        **{f"alone{k}": [one] for k, one in enumerate(alone)},
        "pixels": [("pixels", together)],
    }


def made(makers: Sequence[Maker], seed: int, folder: Path, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images uint8 and targets, a batch of each maker in turn."""
    parts = []
    for j, (recipe, fields) in enumerate(makers):
        batches = len(range(j, count // BATCH, len(makers)))
        whole: dict[str, Any] = {"seed": 1000 * seed + 100 * j}
        whole |= {key: value for key, value in fields.items() if "." not in key}
        paths = [f"{key}={value}" for key, value in fields.items() if "." in key]
        part = dataset_of(recipe, whole, paths, folder / f"part{j}", batches * BATCH)
        parts.append(GeneratedImages(part).labelled())
    return torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts])


def other(arm: str, seed: int, count: int, card: ModelCard, data: str) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Images uint8 that are no inversions, and targets where they have some."""
    rng, size = generator(seed, "students", arm), card.input_size
    if arm == "real":
        train = load_images(data, "train", size).ordered(card.class_names)
        chosen = torch.randperm(len(train), generator=rng)[:count]
        return train.images[chosen], train.labels[chosen]
    if arm == "noise":
        return torch.randint(0, 256, (count, 3, size, size), generator=rng, dtype=torch.uint8), None
    return (dead_leaves(count, size, size / 32, size / 2, rng) * 255).round().byte(), None


def dataset(arm: str, seed: int, options: argparse.Namespace) -> Path:
    """The folder of an arm's images with all teachers' logits, made unless it is there."""
    folder = options.output / f"{options.images}_seed{seed}" / arm
    if is_dataset(folder / "set"):
        return folder / "set"
    names = unique_names(options.teachers)
    networks = {name: create_model(model) for name, model in zip(names, options.teachers, strict=True)}
    card = next(iter(networks.values()))[1]
    images: torch.Tensor
    targets: torch.Tensor | None
    if arm in OTHERS:
        images, targets = other(arm, seed, options.images, card, options.data)
    else:
        images, targets = made(makers_of(options.teachers)[arm], seed, folder, options.images)
    said: Mapping[str, torch.Tensor] = {n: logits_of(net, c, images.float() / 255) for n, (net, c) in networks.items()}
    if targets is None:
        targets = torch.stack([z.softmax(1) for z in said.values()]).mean(0).argmax(1)
    return write_dataset(folder / "set", images, targets, card.class_names, said, shards=1)


def accuracy(arm: str, labels: str, seed: int, options: argparse.Namespace) -> float:
    """Of the student, on the test images."""
    folder = dataset(arm, seed, options)
    recipe = {
        "student": options.student,
        "dataset": [str(folder)],
        "lesson": {"kind": labels},
        "schedule": {"epochs": options.epochs},
        "test": {"path": options.data},
        "seed": seed,
    }
    results = TrainingFolder(folder.with_name(labels), DistillationRecipe)
    return float(
        distill(parse_distillation_recipe(recipe), results, CPU, resume=results.path.exists())["test_accuracy"]
    )


def show(rows: list[dict[str, Any]]) -> None:
    found = {(row["arm"], row["labels"], row["seed"]): row["accuracy"] for row in rows}
    table = Table("images", "labels", "seeds", "student", "less pool, paired", box=None)
    for arm, labels in dict.fromkeys((row["arm"], row["labels"]) for row in rows):
        seeds = [s for a, n, s in found if (a, n) == (arm, labels)]
        paired = [found[arm, labels, s] - found["pool", labels, s] for s in seeds if ("pool", labels, s) in found]
        values = [found[arm, labels, s] for s in seeds]
        difference = "" if arm == "pool" or not paired else mean_interval(paired)
        table.add_row(arm, labels, str(len(seeds)), mean_interval(values), difference)
    Console(width=110).print(table)
    print(f"{len(rows)} students; the mean over all is {mean(found.values()):.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--teachers", nargs="+", default=[*TEACHERS], metavar="MODEL")
    parser.add_argument("--arms", nargs="+", default=["pool", "summed"], metavar="ARM")
    parser.add_argument("--labels", nargs="+", default=["hard"], choices=("hard", "stored"))
    parser.add_argument("--student", default="wrn16_2_cifar:width=0.5@random")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=190)
    parser.add_argument("--seeds", type=int, nargs="+", default=[100, 101, 102, 103, 104])
    options = parser.parse_args()
    known = (*makers_of(options.teachers), *OTHERS)
    if unknown := [arm for arm in options.arms if arm not in known]:
        parser.error(f"--arms: {', '.join(unknown)}; there are {', '.join(known)}")
    found = options.output / "students.json"
    rows: list[dict[str, Any]] = read_json(found)["rows"] if found.is_file() else []
    for seed in options.seeds:  # whole rounds first: what was stopped has every arm
        for arm in options.arms:
            for labels in options.labels:
                value = accuracy(arm, labels, seed, options)
                row = {"arm": arm, "labels": labels, "seed": seed, "images": options.images, "accuracy": value}
                rows = [old for old in rows if {**old, "accuracy": value} != row] + [row]
                print(f"seed {seed}, {arm}, {labels}: {value:.4f}", flush=True)
                asked = {"teachers": options.teachers, "student": options.student, "epochs": options.epochs}
                write_json(found, asked | {"rows": rows})
    show([row for row in rows if row["images"] == options.images])


if __name__ == "__main__":
    main()
