"""Kill -9 at random moments, resume, and compare with what was never stopped, many times.

    python tests/benchmarks/survival.py --kills 20 --ranks 3
    python tests/benchmarks/survival.py --kills 10 --images 400 --json survival.json

The first kills a random rank of a run at a random step, once each run. With --images one dataset job is killed again
and again: the moments are drawn uniformly from the time that its batches take, and what is done again after a kill,
start included, may be hit too. The finished dataset must be that of an uninterrupted job file by file, but for the
seconds in `batches.jsonl` and `cost.json`.

Prints a table, and with --json writes it; the exit code is 1 where what was resumed differs, or does not end as it
should.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = ROOT / "tests" / "applications" / "tiny.py"
SECONDS = ("batches.jsonl", "cost.json")
"""Files of a dataset that say how long it took."""


def run_command(output: Path, ranks: int, steps: int, *more: str) -> list[str]:
    return [
        *(sys.executable, str(ROOT / "invert.py"), "--plugin", str(PLUGIN), "--device", "cpu"),
        *("--models", "tiny_a@random", "tiny_b@random", "--images-per-class", "4"),
        *("--iterations", str(steps), "--nproc", str(ranks), "--output", str(output)),
        *("--set", "checkpoint.every=20", "--set", "record_every=1", *more),
    ]


def dataset_command(output: Path, args: argparse.Namespace) -> list[str]:
    return [
        *(sys.executable, str(ROOT / "invert.py"), "dataset", "--device", "cpu", "--models", args.model),
        *("--images", str(args.images), "--set", f"image.batch_size={args.batch}"),
        *("--iterations", str(args.steps), "--output", str(output), "--resume"),
        *(() if args.ranks == 1 else ("--nproc", str(args.ranks))),
    ]


def children(pid: int) -> dict[int, int]:
    """The ranks of a launcher and their process ids (Linux); none of what ends meanwhile."""
    found = {}
    with suppress(FileNotFoundError, ProcessLookupError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            entries = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
            ranks = [int(e[5:]) for e in entries if e.startswith(b"RANK=")]
            if ranks:
                found[ranks[0]] = int(child)
    return found


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def begun(command: Sequence[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def kill(process: subprocess.Popen[bytes], rank: int, ranks: int) -> int:
    """The exit code after SIGKILL to a rank, to the process itself where it is the only one."""
    if ranks == 1:
        process.kill()
        return process.wait()
    while process.poll() is None:
        victim = children(process.pid).get(rank)
        if victim is not None:
            os.kill(victim, signal.SIGKILL)
            break
        time.sleep(0.01)
    return process.wait(timeout=120)


def waited(process: subprocess.Popen[bytes], until: Callable[[], bool]) -> None:
    while process.poll() is None and not until():
        time.sleep(0.001)


def runs(args: argparse.Namespace, draw: random.Random, folder: Path) -> dict[str, Any]:
    """Runs that are each killed once."""
    whole = folder / "whole"
    subprocess.run(run_command(whole, args.ranks, args.steps), check=True, stdout=subprocess.DEVNULL)
    expected = load_file(whole / "images.safetensors")["images"]
    rows = []
    print("kill  rank  step  exit code  resumed  images")
    for number in range(args.kills):
        output = folder / str(number)
        rank, step = draw.randrange(args.ranks), draw.randrange(args.steps - 50)
        process, metrics = begun(run_command(output, args.ranks, args.steps)), output / "metrics.jsonl"
        waited(process, lambda metrics=metrics, step=step: lines(metrics) > step)  # type: ignore[misc]
        reached = lines(metrics) - 1
        code = kill(process, rank, args.ranks)
        resume = run_command(output, args.ranks, args.steps, "--resume")
        again = subprocess.run(resume, stdout=subprocess.DEVNULL).returncode
        same = again == 0 and torch.equal(load_file(output / "images.safetensors")["images"], expected)
        rows.append({"rank": rank, "step": reached, "exit_code": code, "resumed": again, "same": same})
        verdict = "same bits" if same else "DIFFER"
        print(f"{number + 1:4}  {rank:4}  {reached:4}  {code:9}  {again:7}  {verdict}", flush=True)
    good = sum(row["same"] and row["exit_code"] == 1 for row in rows)
    print(f"{good} of {args.kills} runs survived, {args.ranks} ranks, {args.steps} steps")
    return {"kills": rows, "survived": good, "passed": good == args.kills}


def dataset(args: argparse.Namespace, draw: random.Random, folder: Path) -> dict[str, Any]:
    """One dataset job that is killed again and again, then let end."""
    whole, killed = folder / "whole", folder / "killed"
    began = time.perf_counter()
    subprocess.run(dataset_command(whole, args), check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - began
    batches = lines(whole / "batches.jsonl")
    one = json.loads((whole / "cost.json").read_text())["seconds"] / batches
    rows = []
    print(f"an uninterrupted job: {batches} batches of {args.batch}, {seconds:.0f} s, {one:.2f} s a batch")
    print("kill  rank  batches finished  seconds after its start  exit code")
    for number, moment in enumerate(sorted(draw.uniform(0, batches) for _ in range(args.kills))):
        rank = draw.randrange(args.ranks)
        process, start = begun(dataset_command(killed, args)), time.perf_counter()
        waited(process, lambda moment=moment: lines(killed / "batches.jsonl") >= int(moment))  # type: ignore[misc]
        pause = time.perf_counter() + (moment % 1) * one
        waited(process, lambda pause=pause: time.perf_counter() >= pause)  # type: ignore[misc]
        after, finished = time.perf_counter() - start, lines(killed / "batches.jsonl")
        code = kill(process, rank, args.ranks)
        rows.append({"rank": rank, "batches": finished, "seconds": after, "exit_code": code})
        print(f"{number + 1:4}  {rank:4}  {finished:16}  {after:23.2f}  {code:9}", flush=True)
    last = subprocess.run(dataset_command(killed, args), stdout=subprocess.DEVNULL).returncode
    files, others = described(whole), described(killed)
    differing = sorted(name for name in files.keys() | others.keys() if files.get(name) != others.get(name))
    hit = all(row["exit_code"] == (-signal.SIGKILL if args.ranks == 1 else 1) for row in rows)
    same = last == 0 and not differing
    verdict = "all as in the uninterrupted one" if same else f"DIFFER: {', '.join(differing) or f'exit code {last}'}"
    print(f"{args.images} images after {args.kills} kills: {len(files)} files, {verdict}")
    job = {"images": args.images, "batch": args.batch, "model": args.model, "steps": args.steps, "ranks": args.ranks}
    return {"job": job, "seconds": seconds, "kills": rows, "differing": differing, "passed": same and hit}


def described(folder: Path) -> dict[str, Any]:
    """A dataset's files by name: their bytes, and of those that say times, all else, in the order of batches."""
    found: dict[str, Any] = {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}
    for name in SECONDS:
        rows = (
            [json.loads(row) for row in found[name].splitlines()] if name.endswith("l") else [json.loads(found[name])]
        )
        plain = [{key: value for key, value in row.items() if "seconds" not in key} for row in rows]
        found[name] = sorted(plain, key=lambda row: str(row.get("file")))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--images", type=int, help="of a dataset; without it, runs are killed")
    parser.add_argument("--ranks", type=int, help="default: 3 of a run, 1 of a dataset")
    parser.add_argument("--steps", type=int, help="of a batch; default: 300 of a run, 20 of a dataset")
    parser.add_argument("--batch", type=int, default=20, help="images in a batch of a dataset")
    parser.add_argument("--model", default="resnet20_cifar", help="the dataset's teacher")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    experiment, ranks, steps = (runs, 3, 300) if args.images is None else (dataset, 1, 20)
    args.ranks, args.steps = args.ranks or ranks, args.steps or steps
    with tempfile.TemporaryDirectory() as folder:
        found = experiment(args, random.Random(args.seed), Path(folder))
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n")
    return 0 if found["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
