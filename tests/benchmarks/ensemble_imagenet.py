"""Do several ImageNet teachers make better images than one? At equal teacher passes, read by the one left out.

    python -m tests.benchmarks.ensemble_imagenet --val VAL --train TRAIN --output results/ensemble [--seeds 0 1 2 3 4]
        [--size 128] [--passes 300] [--batches 10]

The three EfficientNet-Lites take turns at being left out. Of the other two: each alone, summed, one a step in turn, and
pooled, that is, every other batch (of one batch, every other image) of each alone. All have as many passes (an image's
forwards with gradients) as the others, the ten classes of Imagenette once in each batch, and the settings of the recipe
`imagenet`. VAL and TRAIN are folders or archives with <split>/<WordNet number>/<file>; a thousand of `val` are what is
compared with, as many of `train` as there are made ones are the scale. The contrast is summed, or in turn, against
pooled. Runs that are there are not made again.
"""

from __future__ import annotations

import argparse
from itertools import combinations
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ensemble import Results, invert
from ensemble.data.labelled import load_images
from ensemble.evaluation.estimate import mean_interval
from ensemble.evaluation.judge import Judge, Judgement
from ensemble.machine.files import JsonLines, read_json_lines
from models import create_model
from tests.benchmarks.diversity import pooled

NETWORKS = ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")
CLASSES = [0, 217, 482, 491, 497, 566, 569, 571, 574, 701]
FIGURES = ("frechet", "kernel", "precision", "recall", "coverage", "diversity")


def made(folder: Path, networks: tuple[str, ...], acting: str, seed: int, options: argparse.Namespace) -> Results:
    steps = options.passes // (len(networks) if acting == "all" else 1)
    fields: dict[str, Any] = {
        "teachers": [{"model": f"{name}:input_size={options.size}"} for name in networks],
        "targets": CLASSES,
        "trials": options.batches,
        "seed": 1000 * seed,
        "iterations": steps,
        "verifiers": [],
    }
    sizes = [f"image.size={options.size}", f"stages[0].size={options.size // 2}", f"ensemble.acting={acting}"]
    results = invert("imagenet", *sizes, output=folder, resume=True, progress=False, **fields)
    assert results is not None and not results.summary.get("stopped")
    return results


def row_of(found: Judgement) -> dict[str, float | None]:
    return {"read": found.accuracy.top1} | {name: getattr(found, name) for name in FIGURES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--val", required=True)
    parser.add_argument("--train", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--passes", type=int, default=300)
    parser.add_argument("--batches", type=int, default=10)
    options = parser.parse_args()
    val = load_images(options.val, "val", options.size, at_most=1000)
    train = load_images(options.train, "train", options.size)
    judges = {name: Judge(*create_model(name), val) for name in NETWORKS}
    file = options.output / "figures.jsonl"
    done = {(row["judge"], row["arm"], row["seed"]) for row in read_json_lines(file)}
    with JsonLines(file) as lines:
        for seed in options.seeds:
            alone = {n: made(options.output / f"{n}_{seed}", (n,), "all", seed, options) for n in NETWORKS}
            for pair in combinations(NETWORKS, 2):
                (left_out,) = set(NETWORKS) - set(pair)
                sets = {f"{name} alone": alone[name].images for name in pair}
                for arm, acting in (("summed", "all"), ("in turn", "turn")):
                    folder = options.output / f"{left_out}_{acting}_{seed}"
                    sets[arm] = made(folder, pair, acting, seed, options).images
                each = len(CLASSES) if options.batches > 1 else 1
                sets["pooled"], targets = pooled([alone[name] for name in pair], each)
                for arm, images in sets.items():
                    if (left_out, arm, seed) not in done:
                        found = row_of(judges[left_out](images, targets, arm))
                        lines.write({"judge": left_out, "arm": arm, "seed": seed} | found)
                if (left_out, "real", seed) not in done:
                    found = row_of(judges[left_out].scale(train, len(targets), seed))
                    lines.write({"judge": left_out, "arm": "real", "seed": seed} | found)
            print(f"seed {seed}", flush=True)
    print_tables(read_json_lines(file))


def print_tables(rows: list[dict[str, Any]]) -> None:
    for judge in NETWORKS:
        mine = [row for row in rows if row["judge"] == judge]
        table = Table("arm", "seeds", "read", *FIGURES, box=None, title=f"left out, and judge: {judge}")
        for arm in dict.fromkeys(row["arm"] for row in mine):
            of = [row for row in mine if row["arm"] == arm]
            values = [[row[key] for row in of if row[key] is not None] for key in ("read", *FIGURES)]
            cells = [mean_interval(v) if v else "" for v in values]
            table.add_row(arm, str(len(of)), *cells)
        Console(width=170).print(table)


if __name__ == "__main__":
    main()
