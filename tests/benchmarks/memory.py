"""Peak memory and time of a large batch: whole, and in micro-batches.

    python -m tests.benchmarks.memory [--json FILE]

Each case is a process of its own, three steps on random weights. Memory is the process' peak resident size (on a
GPU: the peak of allocated memory) above that of the same network with a batch of one image.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
CASES = (
    ("resnet20_cifar@random", 1216, (None, 304, 76)),
    ("resnet18@random", 256, (None, 64, 16)),
)


def measure(model: str, images: int, micro_batch: int | None, device: str) -> dict[str, float]:
    """The summary of three steps of `model` on `images` images."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "invert.py"), "--models", model, "--iterations", "3", "--output", folder]
        command += ["--set", f"image.batch_size={images}", "--set", "best_every=0", "--device", device]
        command += ["--set", "stages=[{iterations: 3}]"]
        if micro_batch is not None:
            command += ["--micro-batch", str(micro_batch)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr)
        return json.loads((Path(folder) / "summary.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    table = Table("network", "images", "micro-batch", "memory, MiB", "of whole", "s a step", "of whole", box=None)
    rows = []
    for model, images, micro_batches in CASES:
        base = measure(model, 1, None, options.device)["peak_memory_bytes"]
        whole: tuple[float, float] | None = None
        for micro_batch in micro_batches:
            summary = measure(model, images, micro_batch, options.device)
            memory, seconds = summary["peak_memory_bytes"] - base, 1 / summary["steps_per_second"]
            whole = whole or (memory, seconds)
            ratios = memory / whole[0], seconds / whole[1]
            rows.append(
                {"model": model, "images": images, "micro_batch": micro_batch, "bytes": memory, "seconds": seconds}
            )
            shown = "none" if micro_batch is None else str(micro_batch)
            figures = f"{memory / 2**20:.0f}", f"{ratios[0]:.2f}", f"{seconds:.2f}", f"{ratios[1]:.2f}"
            table.add_row(model, str(images), shown, *figures)
    Console(width=120).print(table)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
