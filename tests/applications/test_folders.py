"""A results folder has one run at a time, and nothing that is shown, or cannot be, costs a result."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ONE, ROOT, TWO, end, environment, start, told, tree

import ensemble

SHORT = ["--iterations", "5"]
LONG = ["--iterations", "1000000", "--set", "record_every=1"]
WHOLE = {"images.safetensors", "logits.safetensors", "per_image.jsonl", "summary.json", "grid.png"}


def wait_for(file: Path) -> None:
    deadline = time.monotonic() + 120
    while not (file.exists() and file.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert file.exists()


def shell(text: str, *arguments: object, **changes: str) -> tuple[int, str]:
    """The exit code of invert.py, `{}` in a line of bash, and what else is on stderr."""
    command = " ".join(f"'{word}'" for word in (sys.executable, ROOT / "invert.py", *arguments))
    line = f"{text.format(command)}; exit ${{PIPESTATUS[0]}}"
    ended = subprocess.run(["bash", "-c", line], env=environment(**changes), capture_output=True, text=True)
    return ended.returncode, ended.stderr


# --- what cannot be shown -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["{} > /dev/full 2>&1", "{} | true"])
def test_a_run_whose_output_cannot_be_written(where, tmp_path):
    code, errors = shell(where, *ONE, *SHORT, "--output", tmp_path / "out")
    assert code == 0 and not [line for line in errors.splitlines() if not line.startswith("warning: ")]
    assert set(tree(tmp_path / "out")) >= WHOLE


def test_ranks_whose_output_cannot_be_written(tmp_path):
    code, errors = shell("{} > /dev/full", *TWO, *SHORT, "--nproc", "2", "--output", tmp_path / "out")
    assert code == 0 and "Traceback" not in errors and set(tree(tmp_path / "out")) >= WHOLE


def test_a_folder_that_the_terminal_cannot_spell(tmp_path):
    out = tmp_path / "Zürich [/b] :cat:"
    ended = end(start(*ONE, *SHORT, "--output", out, PYTHONIOENCODING="ascii"))
    assert ended.code == 0 and "Z?rich [/b] :cat:" in ended.output, ended.errors
    assert set(tree(out)) >= WHOLE


def test_a_look_that_cannot_be_shown(tmp_path):
    code, errors = shell("{} > /dev/full", *ONE, "--output", tmp_path / "out", "--dry-run")
    assert code == 0 and "No space" not in errors and not (tmp_path / "out").exists()


def test_a_mistake_that_cannot_be_told_keeps_its_exit_code(tmp_path):
    code, _ = shell("{} > /dev/full 2>&1", *ONE, "--iterations", "0", "--output", tmp_path / "out")
    assert code == 2


def test_figures_are_written_where_no_table_can_be_shown(run, tmp_path):
    assert run(*ONE, *SHORT, "--output", tmp_path / "out").code == 0
    figures = ["evaluate", tmp_path / "out", *ONE[:2], "--judge", "tiny_b@random", "--device", "cpu"]
    for i, where in enumerate(("{} > /dev/full", "{} | true")):
        file = tmp_path / f"{i}.json"
        code, errors = shell(where, *figures, "--json", file)
        assert code == 0 and "tiny_b@random" in json.loads(file.read_text()), errors


def test_from_python_a_display_that_fails_ends_nothing(tmp_path, monkeypatch):
    with open("/dev/full", "w", buffering=1) as full:
        monkeypatch.setattr(sys, "stdout", full)
        ensemble.load_plugin(ONE[1])
        made = ensemble.invert(["tiny_a@random"], output=tmp_path / "out", iterations=3, device="cpu")
        monkeypatch.undo()
        assert len(made.images) == 3 and set(tree(tmp_path / "out")) >= WHOLE
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())  # what it holds back


# --- a terminal that is closed ------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [[], ["--nproc", "2"]], ids=["one process", "ranks"])
def test_a_terminal_that_is_closed_stops_the_run_and_saves(ranks, tmp_path):
    process = start(*TWO, *LONG, *ranks, "--output", tmp_path)
    wait_for(tmp_path / "metrics.jsonl")
    process.send_signal(signal.SIGHUP)
    ended = end(process)
    assert ended.code == 0 and "Traceback" not in "".join(ended.errors), ended.errors
    assert len(told(ended)) == 1 and "--resume" in told(ended)[0]
    assert len(list((tmp_path / "checkpoints").glob("*.json"))) == 1 and not (tmp_path / ".lock").exists()


def test_under_nohup_it_goes_on(tmp_path):
    command = ["nohup", sys.executable, str(ROOT / "invert.py"), *TWO, *LONG, "--nproc", "2", "--output", str(tmp_path)]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, env=environment(), stdout=pipe, stderr=pipe, text=True)
    metrics = tmp_path / "metrics.jsonl"
    wait_for(metrics)
    process.send_signal(signal.SIGHUP)
    time.sleep(1)
    size = metrics.stat().st_size
    deadline = time.monotonic() + 30
    while metrics.stat().st_size == size and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.poll() is None and metrics.stat().st_size > size
    process.send_signal(signal.SIGTERM)
    assert end(process).code == 0


# --- two runs in one folder ---------------------------------------------------------------------------------------


@pytest.fixture
def live(tmp_path):
    """A folder, and the process id of the rank that holds it."""
    out = tmp_path / "out"
    process = start(*TWO, *LONG, "--nproc", "2", "--output", out)
    wait_for(out / "metrics.jsonl")
    yield out, json.loads((out / ".lock").read_text())["pid"]
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    ended = end(process)
    assert ended.code == 0 and "stopped at step" in told(ended)[0]
    assert not (out / ".lock").exists()


def test_a_live_run_keeps_its_folder(live, run):
    out, pid = live
    recipe = (out / "recipe.yaml").read_bytes()
    tried = [run(*TWO, *LONG, *how, "--output", out) for how in ([], ["--overwrite"], ["--resume"])]
    for ended in tried:
        lines = [line for line in ended.errors if not line.startswith("warning: ")]
        assert ended.code == 2 and len(lines) == 1, ended
        assert f"{out} is in use by process {pid} on " in lines[0]
    ensemble.load_plugin(ONE[1])
    for how in ({"overwrite": True}, {"resume": True}):
        with pytest.raises(ValueError, match=f"in use by process {pid} on "):
            ensemble.invert(["tiny_a@random"], output=out, iterations=10**6, device="cpu", progress=False, **how)
    assert (out / "recipe.yaml").read_bytes() == recipe

    torchrun = ["--standalone", "--nproc-per-node", "2"]
    ended = end(start(*TWO, *SHORT, "--overwrite", "--output", out, torchrun=torchrun))
    assert len(told(ended)) == 1 and f"in use by process {pid} on " in told(ended)[0], ended.errors
    assert (out / "recipe.yaml").read_bytes() == recipe


def test_a_killed_run_leaves_a_lock_that_is_no_content(run, tmp_path):
    steps = ["--iterations", "300", "--set", "record_every=1", "--set", "checkpoint.every=2"]
    process = start(*ONE, *steps, "--output", tmp_path)
    wait_for(tmp_path / "checkpoints")
    process.kill()
    assert end(process).code == -signal.SIGKILL and (tmp_path / ".lock").exists()
    assert run(*ONE, *steps, "--output", tmp_path, "--resume").code == 0
    assert not (tmp_path / ".lock").exists() and set(tree(tmp_path)) >= WHOLE


def test_a_lock_alone_is_no_content(run, tmp_path):
    for how in ([], ["--resume"]):
        out = tmp_path / f"out{len(how)}"
        out.mkdir()
        (out / ".lock").write_text("{")
        (out / ".lock.owner").touch()
        os.utime(out / ".lock.owner", (0, 0))
        assert run(*ONE, *SHORT, "--output", out, *how).code == 0


SMALLER = ["--set", "stages=[{iterations: 2, size: 4},{iterations: 2}]"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            [
                *("image.start={kind: noise}", "image.parameterization={kind: generator}", "optimizer={kind: lbfgsb}"),
                *("objectives=[{kind: activation, units: 'conv:1'}]", "stages=[{iterations: 2}]"),
            ],
            "lbfgsb moves one tensor with a row an image",
        ),
        (
            ["objectives=[{kind: activation, units: 'conv:mask=MASK'}]", SMALLER[1]],
            "for 8 channels of 16 positions",
        ),
        (["objectives=[{kind: activation, units: 'conv:3@6,6'}]", SMALLER[1]], "there is no such place"),
        (["objectives=[{kind: activation, units: ['conv:1', 'conv:3@6,6']}]", SMALLER[1]], "there is no such place"),
    ],
)
def test_what_a_later_step_refuses_is_refused_before_results_are_overwritten(run, tmp_path, settings, message):
    np.save(tmp_path / "mask.npy", np.ones((8, 8, 8), np.float32))
    out = tmp_path / "out"
    assert run(*ONE, *SHORT, "--output", out).code == 0
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    words = [w for text in settings for w in ("--set", text.replace("MASK", str(tmp_path / "mask.npy")))]
    ended = run(*ONE, *words, "--output", out, "--overwrite")
    assert ended.code == 2 and message in ended.errors[-1]
    assert {file: file.read_bytes() for file in out.rglob("*") if file.is_file()} == before


def test_a_mistake_leaves_no_folder(run, tmp_path):
    layers = ["--set", "objectives[1].layers=[nowhere]"]
    assert run(*ONE, *SHORT, *layers, "--output", tmp_path / "deep" / "out").code == 2
    assert not (tmp_path / "deep").exists()


# --- damaged results ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0, 7, 200])
def test_images_that_were_cut_short_are_one_line(run, tmp_path, keep):
    assert run(*ONE, *SHORT, "--output", tmp_path / "out").code == 0
    os.truncate(tmp_path / "out" / "images.safetensors", keep)
    ended = run("evaluate", tmp_path / "out", *ONE[:2], "--judge", "tiny_b@random", "--json", tmp_path / "a.json")
    assert ended.code == 2 and len(ended.errors) == 1 and "images.safetensors cannot be read" in ended.errors[0]
    assert not (tmp_path / "a.json").exists()
    with pytest.raises(ValueError, match=r"images\.safetensors cannot be read"):
        ensemble.Results.open(tmp_path / "out")


def test_figures_that_a_full_disk_refuses_are_one_line(run, tmp_path):
    assert run(*ONE, *SHORT, "--output", tmp_path / "out").code == 0
    (tmp_path / "a.json.tmp").symlink_to("/dev/full")
    ended = run("evaluate", tmp_path / "out", *ONE[:2], "--judge", "tiny_b@random", "--json", tmp_path / "a.json")
    assert ended.code == 1 and len(ended.errors) == 1 and "No space left on device" in ended.errors[0]
