"""What the fast forms do to the result: the recipe `clear` in bf16, eager and compiled, against fp32 eager.

    python -m tests.benchmarks.quality --output results/quality [--seeds 5] [--verifiers MODEL ...] [--json FILE]

Two tables: what verifiers read, mean and 95 % interval over seeds; and the error of the moments, on the images made in
fp32 at seed 0, of

    sums        the kernel's sums against float64 sums over the same feature maps, relative to the sum of magnitudes
    statistics  a teacher's batch mean and variance against those of the same network in float64, in units of the
                running standard deviation and variance

Runs that are finished are not made again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from ensemble import Results, invert
from ensemble.evaluation.estimate import mean_interval
from ensemble.machine.hardware import PRECISIONS
from ensemble.teachers.teacher import Teacher
from models import create_model
from tests.benchmarks.step import QUICKSTART

CASES = {"fp32": ("fp32", "off"), "bf16": ("bf16", "off"), "bf16, compiled": ("bf16", "on")}


def made(folder: Path, case: str, seed: int, verifiers: list[str]) -> Results:
    """The recipe's images and what the verifiers read, made unless they are there."""
    precision, compiled = CASES[case]
    how: dict[str, Any] = {"precision": precision, "compile": compiled}
    output = folder / f"{case.replace(', ', '_')}_{seed}"
    results = invert("clear", output=output, resume=True, progress=False, seed=seed, verifiers=verifiers, **how)
    assert results is not None, "one process"
    if results.summary.get("stopped"):
        raise SystemExit("stopped; the same command goes on")
    return results


@torch.no_grad()
def errors(name: str, dtype: torch.dtype, images: torch.Tensor) -> dict[str, float]:
    """Largest errors over all channels of all layers of one network (see above)."""
    net, card = create_model(name)
    exact, fast = (Teacher(name, net, card, dtype=d) for d in (torch.float64, dtype))
    fast.rewrite()
    worst = torch.zeros((), dtype=torch.float64)

    def compare(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], _: object) -> None:
        nonlocal worst
        centred = inputs[0].double() - module.get_buffer("running_mean").double()[:, None, None]
        found = fast._sink[-1].double()
        for moment, values in zip(found, (centred, centred.square()), strict=True):
            error = (moment - values.sum((0, 2, 3))).abs() / values.abs().sum((0, 2, 3))
            worst = torch.maximum(worst, error.max())

    handles = [module.register_forward_hook(compare) for layer in fast.layers.values() if (module := layer.module)]
    moments = fast.observe(images).moments.double()
    for handle in handles:
        handle.remove()
    known = exact.statistics
    assert known is not None
    expected = known.batch_statistics(exact.observe(images.double()).moments, len(images))
    found = known.batch_statistics(moments, len(images))
    mean_error = (found[0] - expected[0]).abs() / known.var.sqrt()
    var_error = (found[1] - expected[1]).abs() / known.var
    return {
        "sums": float(worst),
        "mean, median": float(mean_error.median()),
        "mean, largest": float(mean_error.max()),
        "variance, median": float(var_error.median()),
        "variance, largest": float(var_error.max()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5, choices=range(2, 6))
    parser.add_argument("--verifiers", nargs="+", default=["mobilenetv2_slim_cifar"], metavar="MODEL")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    runs: dict[str, list[Results]] = {case: [] for case in CASES}
    accuracy: dict[str, dict[str, list[float]]] = {case: {} for case in CASES}
    for seed in range(options.seeds):
        for case in CASES:
            runs[case].append(made(options.output, case, seed, options.verifiers))
            for name, read in runs[case][-1].summary["verifiers"].items():
                accuracy[case].setdefault(name.partition("@")[0], []).append(read["accuracy"])
            print(f"seed {seed}: {case}", flush=True)
    names = list(accuracy["fp32"])
    table = Table("clear", *names, box=None, title=f"read as their target, seeds 0 to {options.seeds - 1}")
    for case, values in accuracy.items():
        table.add_row(case, *(mean_interval(values[name]) for name in names))
    Console(width=110).print(table)
    images = runs["fp32"][0].images
    found = {(name, p): errors(name, PRECISIONS[p], images) for name in QUICKSTART for p in ("fp32", "bf16")}
    table = Table("network", "precision", *next(iter(found.values())), box=None, title="error of the moments")
    for (name, precision), wrong in found.items():
        table.add_row(name, precision, *(f"{value:.1e}" for value in wrong.values()))
    Console(width=140).print(table)
    if options.json:
        rows = [{"network": name, "precision": p, **wrong} for (name, p), wrong in found.items()]
        options.json.write_text(json.dumps({"accuracy": accuracy, "moments": rows}, indent=2))


if __name__ == "__main__":
    main()
