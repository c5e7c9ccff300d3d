"""Networks that learned disjoint parts of the training images, so that none alone knows all classes well.

    python -m tests.benchmarks.shards --data cifar10.tar.xz --output results/shards
        [--recipe resnet20_cifar] [--shards 3] [--beta 0.3] [--epochs 30] [--images N] [--seed 0]

Of each class a Dirichlet distribution (all parameters `beta`) says which share goes to which network: small ones give
most of a class to one (Hsu, Qi and Brown 2019). A tenth of the images is kept from all, and says what each knows; the
test split is not read. Each network is trained by the recipe's schedule and augmentation from weights of its own.

Writes shard0.safetensors, shard1.., and shards.json; prints images and accuracy by class. A network that is there is
not trained again. `tests.benchmarks.students --teachers` takes them.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from ensemble.data.labelled import LabelledImages, load_images
from ensemble.evaluation.classification import logits_of
from ensemble.machine.files import write_json
from ensemble.machine.rng import generator
from ensemble.privacy.training import learned
from ensemble.runs.recipes import TRAINING, read_recipe
from ensemble.training.recipe import parse_training_recipe
from ensemble.training.weights import save_weights
from models import create_model, model_card

HELD_OUT = 0.1


def dealt(labels: torch.Tensor, shards: int, beta: float, seed: int) -> list[torch.Tensor]:
    """Indices of each shard: of each class a share that is drawn, all of them disjoint and together everything."""
    rng = generator(seed, "shards")
    parts: list[list[torch.Tensor]] = [[] for _ in range(shards)]
    for c in labels.unique():
        index = torch.nonzero(labels == c)[:, 0]
        index = index[torch.randperm(len(index), generator=rng)]
        share = torch._sample_dirichlet(torch.full((shards,), beta), generator=rng)
        ends = (share.cumsum(0)[:-1] * len(index)).round().long()
        for part, some in zip(parts, index.tensor_split(ends), strict=True):
            part.append(some)
    return [torch.cat(part).sort().values for part in parts]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--recipe", default="resnet20_cifar", help="a training recipe")
    parser.add_argument("--shards", type=int, default=3)
    parser.add_argument("--beta", type=float, default=0.3)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--images", type=int, default=None, help="of the training split; default: all")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    recipe = parse_training_recipe(read_recipe(options.recipe, TRAINING, "training"))
    card = model_card(recipe.model)
    data = load_images(options.data, "train", card.input_size).ordered(card.class_names)
    order = torch.randperm(len(data), generator=generator(options.seed, "held out"))[: options.images]
    held = round(len(order) * HELD_OUT)
    held_out, rest = (data.subset(part.sort().values) for part in (order[:held], order[held:]))
    schedule = replace(recipe.schedule, epochs=options.epochs, precision="auto")
    asked = {name: getattr(options, name) for name in ("recipe", "shards", "beta", "epochs", "seed")}
    rows = []
    for k, index in enumerate(dealt(rest.labels, options.shards, options.beta, options.seed)):
        shard, file = rest.subset(index), options.output / f"shard{k}.safetensors"
        if not file.exists():
            net, made = learned(
                *(recipe.model, shard, held_out),
                schedule=schedule,
                augmentation=recipe.augmentation,
                seed=options.seed * options.shards + k,
            )
            save_weights(net, file, made)
        counts = shard.labels.bincount(minlength=card.num_classes).tolist()
        rows.append({"file": file.name, "images": counts, "accuracy": by_class(f"{card.name}@{file}", held_out)})
        print(f"shard {k}: {len(shard)} images, {rows[-1]['accuracy'][-1]:.3f} of held-out ones", flush=True)
        write_json(options.output / "shards.json", asked | {"class_names": list(card.class_names), "shards": rows})
    table = Table("class", *(f"shard {k}: images" for k in range(len(rows))), *("it reads" for _ in rows), box=None)
    for c, name in enumerate((*card.class_names, "all")):
        images = [str(row["images"][c] if c < card.num_classes else sum(row["images"])) for row in rows]
        table.add_row(name, *images, *(f"{row['accuracy'][c]:.2f}" for row in rows))
    Console(width=120).print(table)


def by_class(model: str, images: LabelledImages) -> list[float]:
    """The share of each class's images that are read as it, and of all."""
    net, card = create_model(model)
    right = (logits_of(net, card, images.images.float() / 255).argmax(1) == images.labels).float()
    each = [float(right[images.labels == c].mean()) for c in range(card.num_classes)]
    return [*each, float(right.mean())]


if __name__ == "__main__":
    main()
