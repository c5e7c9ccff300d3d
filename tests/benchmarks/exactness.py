"""How far any number of ranks is from one process: the figures behind the distributed tests.

python -m tests.benchmarks.exactness
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "distributed"))

from launch import launch
from problem import MICRO_BATCHES, STEPS, TEACHERS, work

WORLDS = (1, 2, 3, 4)


def relative(value: torch.Tensor, expected: torch.Tensor) -> float:
    return float((value.double() - expected.double()).norm() / expected.double().norm())


def main() -> None:
    runs = {}
    for world in WORLDS:
        with tempfile.TemporaryDirectory() as folder:
            runs[world] = launch(work, world, Path(folder), seconds=600)
    one = runs[1][0]
    table = Table("ranks", "teachers", "micro-batch", "gradient, fp64", f"images, {STEPS} steps, fp64", box=None)
    for head in ("gradient, fp32", "fixed point, bits"):
        table.add_column(head)
    for world in WORLDS:
        for teachers in TEACHERS:
            same = all(torch.equal(r[f"fixed/{teachers}"], one[f"fixed/{teachers}"]) for r in runs[world])
            for micro_batch in MICRO_BATCHES:
                case, whole = f"{teachers}/{micro_batch}", f"{teachers}/None"
                gradient = max(relative(r[f"gradient/{case}"], one[f"gradient/{whole}"]) for r in runs[world])
                single = max(relative(r[f"gradient32/{case}"], one[f"gradient/{whole}"]) for r in runs[world])
                images = max(float((r[f"images/{case}"] - one[f"images/{whole}"]).abs().max()) for r in runs[world])
                shown = "on" if micro_batch else "off"
                figures = (f"{gradient:.1e}", f"{images:.1e}", f"{single:.1e}", "equal" if same else "DIFFER")
                table.add_row(str(world), str(teachers), shown, *figures)
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
