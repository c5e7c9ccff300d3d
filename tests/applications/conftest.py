"""Runs of invert.py, in this process and as ranks of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from ensemble import cli

ROOT = Path(__file__).resolve().parents[2]

PLUGIN = ["--plugin", str(Path(__file__).with_name("tiny.py")), "--device", "cpu", "--precision", "fp32"]
MODELS = ["--models", "tiny_a@random", "tiny_b@random"]
ONE = [*PLUGIN, "--models", "tiny_a@random"]
TWO = [*PLUGIN, *MODELS]


class Ended(NamedTuple):
    """How a run ended: exit code, the lines on stderr, the text on stdout."""

    code: int
    errors: list[str]
    output: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """The command line in this process."""

    def call(*arguments: object) -> Ended:
        capsys.readouterr()
        code = cli.main([str(a) for a in arguments])
        captured = capsys.readouterr()
        return Ended(code, captured.err.splitlines(), captured.out)

    return call


def environment(**changes: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "MISFORTUNE")}
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **changes}


def start(*arguments: object, torchrun: list[str] | None = None, **changes: str) -> subprocess.Popen[str]:
    """invert.py as a process, under torchrun with these options where they are given."""
    launcher = ["-m", "torch.distributed.run", *torchrun] if torchrun is not None else []
    command = [sys.executable, *launcher, str(ROOT / "invert.py"), *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment(**changes), stdout=pipe, stderr=pipe, text=True)


def end(process: subprocess.Popen[str], timeout: float = 180) -> Ended:
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return Ended(process.returncode, err.splitlines(), out)


def one_line(ended: Ended, code: int = 2) -> str:
    """The only line that a run told, which ended with this code."""
    assert ended.code == code and len(ended.errors) == 1, ended.errors
    return ended.errors[0]


def told(ended: Ended) -> list[str]:
    """The lines that invert.py itself wrote to stderr."""
    return [line for line in ended.errors if line.startswith("invert.py: ")]


def write_pictures(folder: Path, counts: dict[str, int], classes: tuple[str, ...], size: int, blots: int) -> None:
    """`counts` images a split of size x size pixels, smooth between blots x blots random colours, classes in turn."""
    rng = torch.Generator().manual_seed(0)
    for split, count in counts.items():
        for i in range(count):
            small = torch.rand(1, 3, blots, blots, generator=rng)
            pixels = torch.nn.functional.interpolate(small, size=size, mode="bilinear")[0].permute(1, 2, 0) * 255
            file = folder / split / classes[i % len(classes)] / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.byte().numpy()).save(file)


def images(folder: Path) -> torch.Tensor:
    return load_file(folder / "images.safetensors")["images"]


def tree(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}
