"""Whole steps of three teachers: a rank each, all in one process, and the peers' way, threads and a busy wait.

    python -m tests.benchmarks.ranks [--rounds 3] [--json FILE]

The peers' way (after BEGIN, from its description): a thread per teacher runs forward and backward on its own copy of
the image, the main thread spins until all are done, adds the gradients and steps. Rounds are interleaved.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import nn

from models import create_model
from tests.benchmarks.step import QUICKSTART

ROOT = Path(__file__).resolve().parents[2]
IMAGES, STEPS = 40, 10


def ours(*options: str) -> float:
    """Seconds per step of invert.py in the steady state."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "invert.py"), "--models", *QUICKSTART, "--iterations", str(STEPS + 2)]
        command += ["--images-per-class", str(IMAGES // 10), "--set", "best_every=0"]
        command += ["--compile", "off", "--device", "cpu"]
        done = subprocess.run([*command, "--output", folder, *options], capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr)
        return 1 / json.loads((Path(folder) / "summary.json").read_text())["steps_per_second"]


class _Worker(threading.Thread):
    """One teacher: waits for a step, computes its gradient, says so."""

    def __init__(self, name: str, targets: torch.Tensor) -> None:
        super().__init__(daemon=True)
        self.net = create_model(name)[0].requires_grad_(True)
        self.targets, self.begin, self.done = targets, threading.Event(), False
        self.losses: list[torch.Tensor] = []
        self.image = torch.empty(0)
        for module in self.net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.register_forward_hook(self.hook)

    def hook(self, module: nn.BatchNorm2d, inputs: tuple[torch.Tensor, ...], _: torch.Tensor) -> None:
        x = inputs[0]
        var = x.permute(1, 0, 2, 3).contiguous().view(x.shape[1], -1).var(1, unbiased=False)
        own = [module.get_buffer(name) for name in ("running_mean", "running_var")]
        self.losses.append((own[1] - var).norm() + (own[0] - x.mean((0, 2, 3))).norm())

    def run(self) -> None:
        while True:
            self.begin.wait()
            self.begin.clear()
            self.losses.clear()
            loss = F.cross_entropy(self.net(self.image), self.targets) + torch.stack(self.losses).sum()
            loss.backward()
            self.net.zero_grad()
            self.done = True


def threads() -> float:
    """Seconds per step of the peers' way."""
    targets = torch.arange(IMAGES) % 10
    image = torch.randn(IMAGES, 3, 32, 32, requires_grad=True)
    optimizer = torch.optim.Adam([image], lr=0.1)
    workers = [_Worker(name, targets) for name in QUICKSTART]
    for worker in workers:
        worker.start()
    marks = []
    for _ in range(STEPS + 2):
        for worker in workers:
            worker.image, worker.done = image.detach().clone().requires_grad_(), False
            worker.begin.set()
        while not all(worker.done for worker in workers):
            pass
        image.grad = torch.stack([grad for worker in workers if (grad := worker.image.grad) is not None]).sum(0)
        optimizer.step()
        marks.append(time.perf_counter())
    return (marks[-1] - marks[1]) / STEPS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    cases = {
        "threads and a busy wait, fp32": threads,
        "one process, fp32": lambda: ours("--precision", "fp32"),
        "3 ranks, fp32": lambda: ours("--precision", "fp32", "--nproc", "3"),
        "one process, bf16": lambda: ours("--precision", "bf16"),
        "3 ranks, bf16": lambda: ours("--precision", "bf16", "--nproc", "3"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(options.rounds):
        for name, case in cases.items():
            seconds[name].append(case())
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    base = next(iter(medians.values()))
    table = Table(f"{len(QUICKSTART)} teachers, {IMAGES} images", "ms a step", "threads / it", box=None)
    for name, value in medians.items():
        table.add_row(name, f"{1000 * value:.0f}", f"{base / value:.1f}")
    Console(width=100).print(table)
    if options.json:
        options.json.write_text(json.dumps(medians, indent=2))


if __name__ == "__main__":
    main()
