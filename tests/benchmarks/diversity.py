"""How varied images are and what a student learns from them, for settings ("arms") of the quickstart's teachers.

    python -m tests.benchmarks.diversity --data cifar10.tar.xz --judge mobilenetv2_slim_cifar --judge MODEL
        --arms tests/benchmarks/diversity.yaml --output results/diversity [--images 1000] [--seeds 0 1 2 3 4] [--tune]

Each arm is a name with a recipe's fields, on top of the quickstart's, or of those of the arm that `base` names; or
`pool: [ARM, ARM]`, which takes a batch from each in turn. A run that is there is not made again. For each arm and seed:
seconds, each judge's readings and distances, and the accuracy on real images of a small student trained on the set, by
hard labels and by one soft label an image: the mean of the quickstart's teachers' probabilities, whichever of them made
the image. `real` images of the training split are the scale.
With --tune all figures are against training images that no student saw, and the test split is not read.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from ensemble import Results, invert, load_recipe
from ensemble.config.yaml_files import load_yaml
from ensemble.data.labelled import LabelledImages, load_images
from ensemble.evaluation.classification import logits_of
from ensemble.evaluation.estimate import mean_interval
from ensemble.evaluation.judge import Judge
from ensemble.machine.files import JsonLines, read_json_lines
from ensemble.machine.rng import generator
from models import create_model
from tests.benchmarks.student import accuracy_of_student

FIGURES = ("frechet", "kernel", "precision", "recall", "coverage", "diversity")
BATCH = 100
HELD_OUT = 10000


def load_arms(path: Path) -> dict[str, dict[str, Any]]:
    """The fields of each arm, a base's among them."""
    arms: dict[str, dict[str, Any]] = {}
    for name, fields in load_yaml(path).items():
        arms[name] = {**(arms[fields.pop("base")] if "base" in fields else {}), **fields}
    return arms


def made(folder: Path, fields: dict[str, Any], seed: int, images: int) -> tuple[Results, float]:
    """The images of an arm at a seed, and the seconds they took."""
    data = {"seed": 1000 * seed, "trials": images // BATCH, "images_per_class": BATCH // 10, **fields}
    results = invert(data.pop("recipe", "quickstart"), output=folder, resume=True, progress=False, **data)
    assert results is not None and not results.summary.get("stopped")
    return results, results.summary["wall_seconds"]


def pooled(results: list[Results], batch: int = BATCH) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and targets, a batch of each in turn."""
    take = torch.arange(len(results[0].images)) // batch % len(results)
    images, targets = (torch.stack([getattr(one, name) for one in results]) for name in ("images", "targets"))
    return images[take, torch.arange(len(take))], targets[take, torch.arange(len(take))]


class SoftLabels:
    """One soft label an image: the mean of the quickstart's teachers' probabilities."""

    def __init__(self) -> None:
        self.nets = [create_model(teacher.model) for teacher in load_recipe("quickstart").teachers]

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return torch.stack([logits_of(net, card, images).softmax(1) for net, card in self.nets]).mean(0)


def figures(
    judges: dict[str, Judge],
    images: torch.Tensor,
    targets: torch.Tensor,
    soft: torch.Tensor | None,
    real: LabelledImages,
    students: int,
) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name, judge in judges.items():
        found = judge(images, targets, name)
        row |= {f"{name}/read": found.accuracy.top1} | {f"{name}/{key}": getattr(found, key) for key in FIGURES}
    for kind, label in (("hard", None), ("soft", soft)):
        if students and (kind == "hard" or soft is not None):
            scores = [
                accuracy_of_student(images, targets, real.images, real.labels, seed=k, soft=label)
                for k in range(students)
            ]
            row[f"student/{kind}"] = sum(scores) / len(scores)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--judge", action="append", required=True, metavar="MODEL")
    parser.add_argument("--arms", type=Path, required=True)
    parser.add_argument("--only", nargs="+", default=None, metavar="ARM")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--students", type=int, default=2)
    parser.add_argument("--tune", action="store_true")
    options = parser.parse_args()
    arms = load_arms(options.arms)
    asked = [name for name in options.only or arms if name != "real"]
    soft = SoftLabels()
    train = load_images(options.data, "train", 32)
    order = torch.randperm(len(train), generator=generator(0, "held out"))
    real = train.subset(order[:HELD_OUT]) if options.tune else load_images(options.data, "test", 32)
    rest = train.subset(order[HELD_OUT:])
    judges = {}
    for model in options.judge:
        net, card = create_model(model)
        judges[card.name] = Judge(net, card, real)
    file = options.output / f"figures_{options.images}{'_tune' if options.tune else ''}.jsonl"
    done = {(row["arm"], row["seed"]) for row in read_json_lines(file)}
    with JsonLines(file) as lines:
        for seed in options.seeds:
            for arm in asked:
                if (arm, seed) in done:
                    continue
                began = time.perf_counter()
                runs = [
                    made(options.output / f"{one}_{options.images}_{seed}", dict(arms[one]), seed, options.images)
                    for one in arms[arm].get("pool", [arm])
                ]
                images, targets = pooled([results for results, _ in runs])
                row: dict[str, Any] = {"arm": arm, "seed": seed}
                if len(runs) == 1:
                    row["seconds"] = runs[0][1]
                for results, _ in runs:
                    row |= {f"{name}/own": said["accuracy"] for name, said in results.summary["teachers"].items()}
                row |= figures(judges, images, targets, soft(images), real, options.students)
                lines.write(row)
                print(f"{arm} {seed}: {time.perf_counter() - began:.0f} s", flush=True)
            if ("real", seed) not in done and (not options.only or "real" in options.only):
                by_class = [torch.nonzero(rest.labels == c)[:, 0] for c in range(10)]
                rng = generator(seed, "real")
                index = torch.cat([c[torch.randperm(len(c), generator=rng)][: options.images // 10] for c in by_class])
                one = rest.subset(index)
                lines.write(
                    {"arm": "real", "seed": seed}
                    | figures(judges, one.images.float() / 255, one.labels, None, real, options.students)
                )
    print_tables(read_json_lines(file), list(judges))


def print_tables(rows: list[dict[str, Any]], judges: list[str]) -> None:
    arms = list(dict.fromkeys(row["arm"] for row in rows))

    def cell(arm: str, key: str) -> str:
        values = [row[key] for row in rows if row["arm"] == arm and row.get(key) is not None]
        return mean_interval(values) if values else ""

    for name in judges:
        table = Table("arm", "seeds", "read", *FIGURES, box=None, title=f"judge: {name}")
        for arm in arms:
            count = str(sum(row["arm"] == arm for row in rows))
            table.add_row(arm, count, *(cell(arm, f"{name}/{key}") for key in ("read", *FIGURES)))
        Console(width=180).print(table)
    table = Table("arm", "student, hard labels", "student, soft labels", "seconds", box=None)
    for arm in arms:
        table.add_row(arm, *(cell(arm, key) for key in ("student/hard", "student/soft", "seconds")))
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
