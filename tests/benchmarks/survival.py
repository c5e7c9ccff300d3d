"""Kill -9 a random rank at a random step, resume, and compare with the uninterrupted run, many times.

    python tests/benchmarks/survival.py --kills 20 --ranks 3

Prints a table; the exit code is 1 where a resumed run's images differ or a run does not end as it should.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = ROOT / "tests" / "applications" / "tiny.py"


def command(output: Path, ranks: int, steps: int, *more: str) -> list[str]:
    return [
        *(sys.executable, str(ROOT / "invert.py"), "--plugin", str(PLUGIN), "--device", "cpu"),
        *("--models", "tiny_a@random", "tiny_b@random", "--images-per-class", "4"),
        *("--iterations", str(steps), "--nproc", str(ranks), "--output", str(output)),
        *("--set", "checkpoint.every=20", "--set", "record_every=1", *more),
    ]


def children(pid: int) -> dict[int, int]:
    """The ranks of a launcher and their process ids (Linux)."""
    found = {}
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        entries = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        ranks = [int(e[5:]) for e in entries if e.startswith(b"RANK=")]
        if ranks:
            found[ranks[0]] = int(child)
    return found


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def kill_at(output: Path, rank: int, step: int, args: argparse.Namespace) -> tuple[int, int]:
    """(exit code of the run, step at which the rank was killed)."""
    process = subprocess.Popen(
        command(output, args.ranks, args.steps), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while process.poll() is None and lines(output / "metrics.jsonl") <= step:
        time.sleep(0.001)
    reached = lines(output / "metrics.jsonl") - 1
    if process.poll() is None:
        os.kill(children(process.pid)[rank], signal.SIGKILL)
    return process.wait(timeout=120), reached


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--ranks", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    draw = random.Random(args.seed)
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole"
        subprocess.run(command(whole, args.ranks, args.steps), check=True, stdout=subprocess.DEVNULL)
        expected = load_file(whole / "images.safetensors")["images"]
        print("kill  rank  step  exit code  resumed  images")
        for kill in range(args.kills):
            output = Path(folder) / str(kill)
            rank, step = draw.randrange(args.ranks), draw.randrange(args.steps - 50)
            code, reached = kill_at(output, rank, step, args)
            resume = command(output, args.ranks, args.steps, "--resume")
            again = subprocess.run(resume, stdout=subprocess.DEVNULL).returncode
            same = again == 0 and torch.equal(load_file(output / "images.safetensors")["images"], expected)
            failures += not (same and code == 1)
            verdict = "same bits" if same else "DIFFER"
            print(f"{kill + 1:4}  {rank:4}  {reached:4}  {code:9}  {again:7}  {verdict}", flush=True)
    print(f"{args.kills - failures} of {args.kills} runs survived, {args.ranks} ranks, {args.steps} steps")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
