"""Rounds with competition against rounds without: the study that docs/students.md declares.

    python -m tests.benchmarks.competition --data cifar10.tar.xz --output results/competition
        [--weights 0 1] [--seeds 200 201 202] [--first 300] [--rounds 2] [--images 300] [--epochs 60]

For each seed the quickstart makes a first pool; then for each weight of `competition` a student and new images take
turns (`invert.py distill --rounds`), with hard labels. All weights share the pool, the students' seed and the seeds of
new images. Reported are the accuracy on real test images after the last epoch, and of the last round's images the
share that the student before it reads as another class than their target (disagreement), each with the paired
difference from the first weight (95 %, Student's t).

What is there is not made again; one that was stopped goes on. Prints a table and writes competition.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from ensemble.data.generated import GeneratedImages
from ensemble.evaluation.classification import accuracy
from ensemble.evaluation.estimate import mean_interval
from ensemble.machine.files import write_json
from ensemble.machine.progress import SilentProgress
from ensemble.runs.rounds import Rounds, RoundsFolder, RoundsRun
from ensemble.training.distillation import parse_distillation_recipe
from models import create_model
from tests.benchmarks.made import dataset_of

FIGURES = ("accuracy", "disagreement")
CPU = torch.device("cpu")


def first_pool(seed: int, options: argparse.Namespace) -> Path:
    """Images of the quickstart that all weights begin with."""
    folder: Path = options.output / f"seed{seed}" / "pool"
    return dataset_of("quickstart", {"seed": 1000 * seed}, [], folder, options.first)


def measured(weight: float, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """One student in rounds."""
    recipe = {
        "student": options.student,
        "dataset": [str(first_pool(seed, options))],
        "lesson": {"kind": "hard"},
        "schedule": {"epochs": options.epochs},
        "test": {"path": options.data},
        "seed": seed,
    }
    folder = RoundsFolder(options.output / f"seed{seed}" / f"weight{weight:g}")
    rounds = Rounds(count=options.rounds, images=options.images, epochs=20, competition=weight)
    run = RoundsRun(parse_distillation_recipe(recipe), rounds, folder, CPU)
    summary = run.run(resume=folder.path.exists(), overwrite=False, progress=SilentProgress())
    before = folder.student(options.rounds - 1).weights
    net, card = create_model(f"{options.student.partition('@')[0]}@{before}")
    made = GeneratedImages(folder.images(options.rounds).path).labelled()
    agreed = accuracy(net, card, made.images.float() / 255, made.labels).top1
    return {"weight": weight, "seed": seed, "accuracy": summary["test_accuracy"], "disagreement": 1 - agreed}


def show(rows: list[dict[str, Any]], weights: list[float]) -> None:
    table = Table("competition", "seeds", *FIGURES, *(f"{name}, paired" for name in FIGURES), box=None)
    found = {(row["weight"], row["seed"]): row for row in rows}
    for weight in weights:
        seeds = [s for w, s in found if w == weight and (weights[0], s) in found]
        values = [[found[weight, s][name] for s in seeds] for name in FIGURES]
        apart = [[found[weight, s][name] - found[weights[0], s][name] for s in seeds] for name in FIGURES]
        differences = ["", ""] if weight == weights[0] else [*map(mean_interval, apart)]
        table.add_row(f"{weight:g}", str(len(seeds)), *map(mean_interval, values), *differences)
    Console(width=120).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--weights", type=float, nargs="+", default=[0.0, 1.0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[200, 201, 202])
    parser.add_argument("--student", default="wrn16_2_cifar:width=0.5@random")
    parser.add_argument("--first", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--epochs", type=int, default=60)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for seed in options.seeds:
        for weight in options.weights:
            rows.append(measured(weight, seed, options))
            print(rows[-1], flush=True)
            write_json(options.output / "competition.json", {"options": vars(options) | {"output": ""}, "rows": rows})
    show(rows, options.weights)


if __name__ == "__main__":
    main()
