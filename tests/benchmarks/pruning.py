"""What a pruned network keeps, by the images that say which channels go and that mend what is left.

    python -m tests.benchmarks.pruning --data cifar10.tar.xz --output results/pruning [--model wrn16_2_cifar]
        [--fractions 0.75 0.5 0.25] [--images 1000] [--epochs 60] [--seeds 0 1 2]

For each seed as many images of three kinds: `generated`, by the recipe, of seeds of their own; `noise`, uniform in each
colour value, of the class that the whole network reads in it; `real`, drawn from the training split, of their own
class. Each kind prunes the network to each fraction of its multiplications, as `invert.py prune` does, and what is left
learns from the whole network on the same images: the same steps, seed and settings, the last epoch. Accuracy is of the
real test images, which nothing else reads.

Images and runs that are there are not made again; one that was stopped goes on. Prints a table and writes pruning.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from ensemble.data.labelled import LabelledImages, load_images
from ensemble.data.shards import is_dataset
from ensemble.evaluation.classification import logits_of
from ensemble.evaluation.estimate import mean_interval
from ensemble.machine.files import write_json
from ensemble.machine.rng import generator
from ensemble.training.cut import pruning_library
from ensemble.training.distill import distill
from ensemble.training.distillation import DistillationRecipe, parse_distillation_recipe
from ensemble.training.folder import TrainingFolder
from ensemble.training.reading import evaluate
from models import create_model
from tests.benchmarks.made import dataset_of
from tests.training.made_datasets import write_dataset

KINDS = ("generated", "noise", "real")
CPU = torch.device("cpu")


def images_of(kind: str, seed: int, train: LabelledImages, options: argparse.Namespace) -> Path:
    """The folder of a kind's images at a seed, made unless it is there."""
    folder = options.output / f"seed{seed}" / kind
    if kind == "generated":
        dataset_of(options.recipe, {"seed": 1000 * seed}, options.set, folder, options.images)
    elif not is_dataset(folder):
        net, card = create_model(options.model)
        rng = generator(seed, "pruning", kind)
        if kind == "noise":
            shape = (options.images, 3, card.input_size, card.input_size)
            images = torch.randint(0, 256, shape, generator=rng, dtype=torch.uint8)
        else:
            chosen = torch.randperm(len(train), generator=rng)[: options.images]
            images = train.images[chosen]
        said = logits_of(net, card, images.float() / 255)
        targets = said.argmax(1) if kind == "noise" else labels(train, card.class_names)[chosen]
        write_dataset(folder, images, targets, card.class_names, {options.model: said}, shards=1)
    return folder


def labels(data: LabelledImages, class_names: tuple[str, ...]) -> torch.Tensor:
    """As the network numbers its classes."""
    return torch.tensor([class_names.index(name) for name in data.class_names])[data.labels]


def pruned(dataset: Path, fraction: float, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """The summary of a network with that fraction of its multiplications left, made unless it is there."""
    recipe = parse_distillation_recipe(
        {
            "student": options.model,
            "dataset": [str(dataset)],
            "prune": {"flops": fraction, "importance": options.importance},
            "lesson": {"kind": "live", "teachers": [options.model]},
            "schedule": {"epochs": options.epochs},
            "test": {"path": options.data},
            "seed": seed,
        }
    )
    folder = TrainingFolder(dataset.with_name(f"{dataset.name}_{fraction:g}"), DistillationRecipe)
    return distill(recipe, folder, CPU, resume=folder.path.exists())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--model", default="wrn16_2_cifar")
    parser.add_argument("--recipe", default="quickstart", help="of the generated images")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="a field of that recipe")
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.75, 0.5, 0.25])
    parser.add_argument("--importance", default="taylor")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    pruning_library()
    net, card = create_model(options.model)
    test, train = (load_images(options.data, split, card.input_size) for split in ("test", "train"))
    test = LabelledImages(test.images, labels(test, card.class_names), card.class_names)
    whole = evaluate(net, card, test, CPU)
    rows: list[dict[str, Any]] = []
    for seed in options.seeds:  # whole rounds first: what was stopped has every kind
        for kind in KINDS:
            dataset = images_of(kind, seed, train, options)
            for fraction in options.fractions:
                found = pruned(dataset, fraction, seed, options)
                lost, seconds = found["pruned"], found["wall_seconds"]
                accuracy = found["test_accuracy"]
                row = {"seed": seed, "images": kind, "asked": fraction, "flops": lost["flops"], "accuracy": accuracy}
                rows.append(row | {"parameters": lost["parameters"]["after"], "seconds": seconds})
                print(f"seed {seed}, {kind}, {fraction:g}: {accuracy:.4f} ({seconds:.0f} s)", flush=True)
                asked = {"model": options.model, "images": options.images, "epochs": options.epochs}
                write_json(options.output / "pruning.json", asked | {"whole": whole, "rows": rows})
    table = Table("multiplications left", *(f"{kind}: accuracy" for kind in KINDS), box=None)
    table.add_row("all", *[f"{whole:.3f}"] * len(KINDS))
    for fraction in options.fractions:
        here = [row for row in rows if row["asked"] == fraction]
        by_kind = [[row["accuracy"] for row in here if row["images"] == kind] for kind in KINDS]
        table.add_row(f"at most {fraction:g}", *map(mean_interval, by_kind))
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
