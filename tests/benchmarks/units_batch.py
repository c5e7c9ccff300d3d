"""Units in one batch against one by one: whether the images are the same, and the seconds of both.

    python -m tests.benchmarks.units_batch --output results/units_batch.json [--model resnet20_cifar] [--layer layer3.1]
        [--units 64] [--methods gd lbfgs] [--iterations 50] [--rounds 3] [--precision fp32]

Sums of a batch come in another order than those of one image, and gd's clipping and the searches of L-BFGS make the
last bits larger, so in fp32 pixels differ here and there; in fp64 they do not. Methods that draw views for each image
(fourier, maco) have other draws in a batch.

Seconds are of the whole call, start-up of the process left out. Each round makes all in one batch, then one by one.
Prints a table and writes JSON.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from rich.table import Table

from ensemble import prefer
from ensemble.image.pictures import to_eight_bits
from ensemble.machine.files import write_json


def made(units: str, method: str, options: argparse.Namespace) -> tuple[torch.Tensor, float]:
    """The saved 8 bits, and the seconds."""
    began = time.perf_counter()
    settings = {"iterations": options.iterations, "precision": options.precision, "progress": False}
    found = prefer(options.model, units, method=method, **settings)
    assert found is not None
    return to_eight_bits(found.images).int(), time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--model", default="resnet20_cifar")
    parser.add_argument("--layer", default="layer3.1")
    parser.add_argument("--units", type=int, default=64)
    parser.add_argument("--methods", nargs="+", default=["gd", "lbfgs"])
    parser.add_argument("--iterations", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", default="fp32")
    options = parser.parse_args()
    table = Table(
        "method", "one batch, s", "one by one, s", "ratio", "same pixels", "largest difference of 255", box=None
    )
    rows = []
    for method in options.methods:
        batches, singles = [], []
        for _ in range(options.rounds):
            batch, seconds = made(f"{options.layer}:0-{options.units - 1}", method, options)
            batches.append(seconds)
            each = [made(f"{options.layer}:{k}", method, options) for k in range(options.units)]
            singles.append(sum(seconds for _, seconds in each))
        gap = (torch.cat([image for image, _ in each]) - batch).abs()
        row = {
            "method": method,
            "batch_seconds": median(batches),
            "single_seconds": median(singles),
            "ratio": median(singles) / median(batches),
            "same": float((gap == 0).double().mean()),
            "largest": int(gap.max()),
        }
        rows.append(row)
        table.add_row(
            method,
            f"{row['batch_seconds']:.1f}",
            f"{row['single_seconds']:.1f}",
            f"{row['ratio']:.1f}",
            f"{row['same']:.4f}",
            str(row["largest"]),
        )
    Console().print(table)
    write_json(options.output, rows)


if __name__ == "__main__":
    main()
