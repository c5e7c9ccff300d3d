"""What is on disk after two starts into one folder, a terminal that is closed, and an output that cannot be written.

    python tests/benchmarks/folders.py --tries 20 --json folders.json

Prints a table; the exit code is 1 where a result is lost or mixed.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = ROOT / "tests" / "applications" / "tiny.py"
STEPS = 200


def command(output: Path, seed: int, *more: str, steps: int = STEPS) -> list[str]:
    return [
        *(sys.executable, str(ROOT / "invert.py"), "--plugin", str(PLUGIN), "--device", "cpu"),
        *("--models", "tiny_a@random", "--precision", "fp32", "--iterations", str(steps), "--seed", str(seed)),
        *("--set", "record_every=1", "--output", str(output), *more),
    ]


def start(words: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def images(folder: Path) -> torch.Tensor:
    return load_file(folder / "images.safetensors")["images"]


def whole(folder: Path, expected: torch.Tensor) -> bool:
    """Whether the folder holds one run: its images, one line a step, and nothing of a lock."""
    try:
        same = torch.equal(images(folder), expected) and (folder / "summary.json").exists()
        steps = [json.loads(text)["step"] for text in (folder / "metrics.jsonl").read_text().splitlines()]
    except (OSError, ValueError):
        return False
    return same and steps == list(range(STEPS)) and not list(folder.glob(".lock*"))


def two_at_once(folder: Path, expected: list[torch.Tensor], draw: random.Random, *how: str) -> str:
    """Two seeds are started into one folder at the same moment."""
    runs = [start(command(folder, seed, *how)) for seed in (0, 1)]
    errors = [run.communicate(timeout=300)[1] for run in runs]
    codes = [run.returncode for run in runs]
    if sorted(codes) != [0, 2]:
        return f"exit codes {codes}"
    won = codes.index(0)
    if f"in use by process {runs[won].pid} on " not in errors[1 - won]:
        after = "is not empty" in errors[1 - won]  # the first had ended
        return "one won, whole" if after and not how and whole(folder, expected[won]) else "refused in other words"
    return "one won, whole" if whole(folder, expected[won]) else "MIXED"


def overwritten(folder: Path, expected: list[torch.Tensor], draw: random.Random) -> str:
    """--overwrite on a run in the middle of its steps, which is held for a moment so that it is live."""
    first = start(command(folder, 0))
    reach(first, folder, draw.randrange(STEPS // 2))
    first.send_signal(signal.SIGSTOP)
    second = start(command(folder, 1, "--overwrite"))
    error = second.communicate(timeout=300)[1]
    first.send_signal(signal.SIGCONT)
    first.communicate(timeout=300)
    refused = second.returncode == 2 and f"in use by process {first.pid} on " in error
    if first.returncode or not refused:
        return f"exit codes {[first.returncode, second.returncode]}"
    return "first whole" if whole(folder, expected[0]) else "MIXED"


def hung_up(folder: Path, expected: list[torch.Tensor], draw: random.Random) -> str:
    """SIGHUP at a random step, then --resume."""
    run = start(command(folder, 0))
    reach(run, folder, draw.randrange(STEPS // 2))
    run.send_signal(signal.SIGHUP)
    run.communicate(timeout=300)
    saved = len(list((folder / "checkpoints").glob("*.json")))
    again = start(command(folder, 0, "--resume"))
    again.communicate(timeout=300)
    if run.returncode or not saved or again.returncode:
        return f"exit codes {[run.returncode, again.returncode]}, {saved} checkpoints"
    return "saved, resumed to the same bits" if whole(folder, expected[0]) else "DIFFERS"


def killed(folder: Path, expected: list[torch.Tensor], draw: random.Random) -> str:
    """kill -9 at a random step, then --resume at once."""
    run = start(command(folder, 0, "--set", "checkpoint.every=10"))
    reach(run, folder, draw.randrange(STEPS // 2))
    run.kill()
    again = start(command(folder, 0, "--resume"))
    error = again.communicate(timeout=300)[1]
    run.communicate()
    if not again.returncode and whole(folder, expected[0]):
        return "resumed to the same bits"
    return f"exit code {again.returncode}, LOST: {error.strip()}"


def shown(where: str) -> Callable[..., str]:
    def unshown(folder: Path, expected: list[torch.Tensor], draw: random.Random) -> str:
        text = " ".join(f"'{word}'" for word in command(folder, 0))
        line = f"{text} {where}; exit ${{PIPESTATUS[0]}}"
        code = subprocess.run(["bash", "-c", line], stderr=subprocess.DEVNULL).returncode
        return "exit code 0, whole" if code == 0 and whole(folder, expected[0]) else f"exit code {code}, LOST"

    return unshown


def reach(run: subprocess.Popen[str], folder: Path, step: int) -> None:
    while run.poll() is None and lines(folder / "metrics.jsonl") <= step:
        time.sleep(0.001)


TRIALS: dict[str, tuple[Callable[..., str], str]] = {
    "two starts at once": (two_at_once, "one won, whole"),
    "two starts at once, --overwrite": (lambda *a: two_at_once(*a, "--overwrite"), "one won, whole"),
    "--overwrite on a live run": (overwritten, "first whole"),
    "SIGHUP": (hung_up, "saved, resumed to the same bits"),
    "kill -9, --resume at once": (killed, "resumed to the same bits"),
    "> /dev/full": (shown("> /dev/full"), "exit code 0, whole"),
    "| true": (shown("| true"), "exit code 0, whole"),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tries", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=TRIALS, default=list(TRIALS))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    draw, found = random.Random(args.seed), {}
    with tempfile.TemporaryDirectory() as folder:
        for seed in (0, 1):
            subprocess.run(command(Path(folder, f"whole{seed}"), seed), check=True, stdout=subprocess.DEVNULL)
        expected = [images(Path(folder, f"whole{seed}")) for seed in (0, 1)]
        print(f"{'what happens':33}  tries  on disk afterwards")
        for number, name in enumerate(args.only):
            trial, _ = TRIALS[name]
            outcomes = Counter(trial(Path(folder, f"{number}-{i}"), expected, draw) for i in range(args.tries))
            found[name] = dict(outcomes)
            text = "; ".join(f"{count} x {outcome}" for outcome, count in outcomes.most_common())
            print(f"{name:33}  {args.tries:5}  {text}", flush=True)
            if args.json:
                args.json.write_text(json.dumps({"tries": args.tries, "outcomes": found}, indent=2) + "\n")
    return 0 if all(found[name] == {TRIALS[name][1]: args.tries} for name in found) else 1


if __name__ == "__main__":
    sys.exit(main())
