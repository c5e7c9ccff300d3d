"""One weight for every network: how far images end from the statistics, by convention and network.

    python -m tests.benchmarks.one_weight --of cifar10.tar.xz A B --of imagenette.tar C --output DIR [--steps 150]

Each network alone inverts one batch of images of the ten classes of the data before it with one recipe (saturating
class term, BN matching of weight 1, a little total variation), once with `convention: calibrated` and once with
`paper`. Shown is how far mean and variance of each layer are at the end, in units of what batches of as many real
images of the training split have: the median over layers, and the middle half. A batch is 100 images, or 50 for
networks that see more than 64 pixels. Finished runs are not made again. Writes figures.json and one_weight.png.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import torch

from ensemble import invert
from ensemble.data.labelled import load_images
from ensemble.teachers.calibration import measure_levels
from ensemble.teachers.teacher import Teacher
from models import create_model

matplotlib.use("Agg")
from matplotlib import pyplot as plt

CLASSES = 10
CONVENTIONS = ("calibrated", "paper")


def recipe(convention: str, targets: Sequence[str], images: int, steps: int) -> dict[str, Any]:
    return {
        "targets": list(targets),
        "images_per_class": images // CLASSES,
        "objectives": [
            {"kind": "saturating", "weight": 10.0},
            {"kind": "bn_matching", "weight": 1.0, "convention": convention},
            {"kind": "tv", "weight": 1e-3},
        ],
        "stages": [{"iterations": steps, "jitter": 4, "flip": 0.5}],
    }


@torch.no_grad()
def in_real_units(teacher: Teacher, images: torch.Tensor) -> torch.Tensor:
    """Distances of mean and variance of every layer over those of real batches: (2 L,)."""
    statistics = teacher.statistics
    assert statistics is not None
    found = statistics.distances(teacher.observe(images).moments.double(), len(images))
    return torch.cat([gap / level for gap, level in zip(found, statistics.level(len(images)), strict=True)])


def figures_of(model: str, data: str, output: Path, steps: int) -> list[dict[str, Any]]:
    net, card = create_model(model)
    real = load_images(data, "train", card.input_size, at_most=1000)
    images = 100 if card.input_size <= 64 else 50
    teacher = Teacher(card.name, net, card)
    assert teacher.statistics is not None
    teacher.statistics.calibrate(measure_levels(teacher, (part.float() / 255 for part in real.images.split(images))))
    file = Path(model.partition("@")[2]).name.partition("-")[0]
    rows: list[dict[str, Any]] = []
    for convention in CONVENTIONS:
        folder = output / "_".join(filter(None, (card.name, file, convention)))
        settings = recipe(convention, real.class_names, images, steps)
        results = invert([model], output=folder, resume=True, progress=False, **settings)
        assert results is not None and not results.summary.get("stopped")
        units = in_real_units(teacher, results.images)
        low, middle, high = units.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=units.dtype)).tolist()
        rows.append({"network": f"{card.name}, {file}" if file else card.name, "convention": convention})
        rows[-1] |= {"low": low, "median": middle, "high": high, "layers": len(units) // 2}
        rows[-1]["read"] = results.summary["teachers"][card.name]["accuracy"]
        print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--of", action="append", nargs="+", required=True, metavar="DATA NETWORK")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=150)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for data, *models in options.of:
        for model in models:
            rows += figures_of(model, data, options.output, options.steps)
    (options.output / "figures.json").write_text(json.dumps(rows, indent=2) + "\n")
    draw(rows, options.output / "one_weight.png")


def draw(rows: list[dict[str, Any]], file: Path) -> None:
    names = list(dict.fromkeys(row["network"] for row in rows))
    figure, axes = plt.subplots(figsize=(8, 0.5 * len(names) + 1.2), layout="constrained")
    for shift, convention, colour in ((-0.12, "calibrated", "C0"), (0.12, "paper", "C1")):
        mine = {row["network"]: row for row in rows if row["convention"] == convention}
        y = [names.index(name) + shift for name in mine]
        middle = [row["median"] for row in mine.values()]
        span = [[r["median"] - r["low"] for r in mine.values()], [r["high"] - r["median"] for r in mine.values()]]
        axes.errorbar(middle, y, xerr=span, fmt="o", color=colour, label=convention, capsize=3)
    axes.axvspan(0.5, 2, color="0.9", zorder=0)
    axes.axvline(1, color="0.5", linewidth=1)
    axes.set(xscale="log", yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.5, -0.5))
    axes.set_xlabel("distance from the statistics, in units of a real batch's (median and middle half of layers)")
    axes.legend()
    figure.savefig(file, dpi=120)


if __name__ == "__main__":
    main()
