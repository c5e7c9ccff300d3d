"""Runs of a generator and of dead leaves by the command line."""

from __future__ import annotations

from pathlib import Path

import torch
from conftest import ONE, end, images, start

GENERATOR = [
    "--set",
    "image={start: {kind: noise}, parameterization: {kind: generator, width: 4, latent: 8}}",
    "--set",
    "optimizer.lr=0.03",
]
STEPS = ["--iterations", "6", "--set", "checkpoint.every=2", "--images-per-class", "2", "--trials", "2"]


def test_a_killed_run_ends_with_the_same_bits(run, tmp_path: Path) -> None:
    assert run(*ONE, *GENERATOR, *STEPS, "--output", tmp_path / "whole").code == 0
    killed = end(start(*ONE, *GENERATOR, *STEPS, "--output", tmp_path / "killed", MISFORTUNE="kill:0:10"))
    assert killed.code != 0
    assert run("--resume", "--output", tmp_path / "killed", *ONE[:2]).code == 0
    whole = images(tmp_path / "whole")
    assert torch.equal(images(tmp_path / "killed"), whole)
    assert whole.shape == (12, 3, 8, 8) and not torch.equal(whole[:6], whole[6:])


def test_a_run_s_weights_serve_another(run, tmp_path: Path) -> None:
    assert run(*ONE, *GENERATOR, *STEPS, "--output", tmp_path / "first").code == 0
    (file,) = (tmp_path / "first").rglob("trial0000-*.safetensors")
    how = f"{{kind: generator, width: 4, latent: 8, learn: latents, weights: {file}}}"
    kept = f"image={{start: {{kind: noise}}, parameterization: {how}}}"
    assert run(*ONE, "--set", kept, "--iterations", "2", "--output", tmp_path / "second").code == 0
    assert images(tmp_path / "second").isfinite().all()


def test_dead_leaves_begin_a_run(run, tmp_path: Path) -> None:
    leaves = ["--set", "image.start.kind=dead_leaves", "--iterations", "2"]
    for name, seed in (("first", 0), ("same", 0), ("other", 1)):
        assert run(*ONE, *leaves, "--seed", seed, "--output", tmp_path / name).code == 0
    first, same, other = (images(tmp_path / name) for name in ("first", "same", "other"))
    assert torch.equal(first, same) and not torch.equal(first, other)
