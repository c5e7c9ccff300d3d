"""The published recipes beside ours on ImageNet networks that can be had: the same classes, seed and teacher passes.

    python -m tests.benchmarks.published --output results/published [--passes 600] [--size 224] [--seeds 0]

Departures from the recipes: EfficientNet-Lite0 stands for NVlabs' and rafi-cohen's ResNet-50, and Lite0 with Lite1 for
BEGIN's eight teachers; ten classes with one image each; steps in proportion to the passes, an image's forwards with
gradients (weights of priors that a batch's size divides are as published). EfficientNet-Lite2 was no teacher and reads
them. A run that is there is not made again. Prints a table, writes published.json and a picture, a row a recipe.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
from rich.console import Console
from rich.table import Table

from ensemble import Results, invert, load_recipe

ONE, TWO, JUDGE = ["efficientnet_lite0"], ["efficientnet_lite0", "efficientnet_lite1"], "efficientnet_lite2"
RECIPES = {
    "nvlabs_setting0": ONE,
    "nvlabs_setting1": ONE,
    "rafi_cohen_resnet50": ONE,
    "begin_eight_teachers": TWO,
    "imagenet": TWO,
}
CLASSES = [985, 417, 402, 94, 63, 250, 530, 920, 386, 949]  # BEGIN's


def made(folder: Path, name: str, size: int, passes: int, seed: int) -> Results:
    recipe = load_recipe(name)
    acting = recipe.ensemble.acting_of(len(RECIPES[name]))
    changes = [
        f"stages[{i}].size={stage.size * size // (recipe.image.size or 224)}"
        for i, stage in enumerate(recipe.stages)
        if stage.size is not None
    ]
    fields: dict[str, Any] = {
        "teachers": [{"model": model} for model in RECIPES[name]],
        "targets": CLASSES,
        "images_per_class": 1,
        "trials": 1,
        "verifiers": [JUDGE],
        "iterations": passes // acting,
        "seed": seed,
    }
    results = invert(name, *[f"image.size={size}", *changes], output=folder, resume=True, progress=False, **fields)
    assert results is not None and not results.summary.get("stopped")
    return results


def picture(found: dict[str, Results], path: Path) -> None:
    figure, axes = plt.subplots(len(found), len(CLASSES), figsize=(1.6 * len(CLASSES), 1.85 * len(found)))
    for row, (name, results) in zip(axes, found.items(), strict=True):
        for axis, image in zip(row, results.images, strict=True):
            axis.imshow(image.permute(1, 2, 0).numpy())
            axis.set_axis_off()
        row[0].set_title(name, loc="left", fontsize=9)
    figure.tight_layout(pad=0.6, h_pad=1.0)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--passes", type=int, default=600)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()
    table = Table("recipe", "seed", "teachers read", "the judge reads", "seconds", box=None)
    rows = []
    for seed in options.seeds:
        found = {}
        for name in RECIPES:
            found[name] = results = made(options.output / f"{name}_{seed}", name, options.size, options.passes, seed)
            own = [one["accuracy"] for one in results.summary["teachers"].values()]
            (judge,) = (one["accuracy"] for one in results.summary["verifiers"].values())
            seconds = results.summary["wall_seconds"]
            rows.append({"recipe": name, "seed": seed, "own": own, "judge": judge, "seconds": seconds})
            table.add_row(name, str(seed), " ".join(f"{a:.2f}" for a in own), f"{judge:.2f}", f"{seconds:.0f}")
        picture(found, options.output / f"published_{seed}.png")
    (options.output / "published.json").write_text(json.dumps(rows, indent=2))
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
