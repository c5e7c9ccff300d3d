"""Bytes that ranks exchange in a step, and their share of its time, on the ranks of this machine.

    OMP_NUM_THREADS=1 python -m torch.distributed.run --nproc-per-node 2 tests/benchmarks/communication.py

Time in a collective includes waiting for the slower rank; the second figure is that of the same sums with nobody to
wait for, measured apart.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from ensemble.config.yaml_files import load_yaml  # noqa: E402
from ensemble.machine import hardware  # noqa: E402
from ensemble.machine.hardware import choose_device  # noqa: E402
from ensemble.machine.ranks import process_context  # noqa: E402
from ensemble.recipe import parse_recipe  # noqa: E402
from ensemble.runs.build import build_ensemble, build_inversion  # noqa: E402
from ensemble.runs.plan import make_plan  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=ROOT / "recipes" / "clear.yaml")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--reproducible", default="placement", choices=("placement", "ranks"))
    options = parser.parse_args()
    data = load_yaml(options.recipe) | {"best_every": 0}
    data["runtime"] = {**(data.get("runtime") or {}), "reproducible": options.reproducible}
    recipe = parse_recipe(data).with_iterations(options.steps)
    device = choose_device("auto")
    with process_context(device) as context:
        plan = make_plan(recipe, [device])
        hardware.set_up(plan.recipe.runtime.precision, device)
        inversion = build_inversion(plan, build_ensemble(plan, context), context, 0)
        sizes: list[int] = []
        waited: list[float] = []
        tensors: list[torch.Tensor] = []

        def now() -> float:
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            return time.perf_counter()

        def timed(tensor: torch.Tensor) -> None:
            began = now()
            context.sum_(tensor)
            waited.append(now() - began)
            sizes.append(tensor.numel() * tensor.element_size())
            tensors[:] = [*tensors[-1:], tensor.detach().clone()]

        inversion.loss.reduce = timed
        marks = [now()]
        for _ in inversion:
            marks.append(now())
        steps = [b - a for a, b in itertools.pairwise(marks[3:])]
        alone = []
        for _ in range(30):
            context.gather(None)
            began = now()
            for tensor in tensors:
                context.sum_(tensor)
            alone.append(now() - began)
        if context.is_main:
            step, sums = statistics.median(steps), statistics.median(alone)
            pairs = [a + b for a, b in zip(waited[6::2], waited[7::2], strict=True)]
            print(f"{context.world_size} ranks, {options.reproducible}: {sizes[-2]} + {sizes[-1]} bytes a step")
            print(f"step {1000 * step:.1f} ms; in collectives with waiting {statistics.median(pairs) / step:.1%}, ")
            print(f"without waiting {1000 * sums:.2f} ms = {sums / step:.1%}")


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # threads of the communication library can abort a rank whose interpreter winds down
