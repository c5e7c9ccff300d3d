"""Whatever ends a run, resumed it ends with bitwise the images of the uninterrupted one."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import MODELS, ONE, PLUGIN, ROOT, TWO, Ended, end, environment, images, start, told, tree
from safetensors.torch import load_file

from ensemble.machine.checkpoint import save_checkpoint

STEPS = ["--iterations", "12", "--set", "record_every=1", "--set", "best_every=4", "--images-per-class", "2"]
SAVED = ["--set", "checkpoint.every=3"]
RUN = [*STEPS, *SAVED]


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> Path:
    """An uninterrupted run on two ranks."""
    folder = tmp_path_factory.mktemp("reference")
    assert end(start(*TWO, *RUN, "--nproc", "2", "--output", folder)).code == 0
    return folder


def check_same(folder: Path, other: Path) -> None:
    assert torch.equal(images(folder), images(other))
    assert recorded(folder) == recorded(other)


def recorded(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def start_ranks(*arguments: object, **changes: str) -> list[subprocess.Popen[str]]:
    """Two ranks without a launcher, which would end those that are left."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, str(ROOT / "invert.py"), *map(str, arguments)]
    pipe = subprocess.PIPE
    return [
        subprocess.Popen(
            command,
            env=environment(**common, RANK=str(rank), LOCAL_RANK=str(rank), **changes),
            stdout=pipe,
            stderr=pipe,
            text=True,
        )
        for rank in range(2)
    ]


def test_resume_of_a_finished_run_does_nothing(run, tmp_path):
    assert run(*ONE, *STEPS, "--output", tmp_path).code == 0
    before = tree(tmp_path)
    again = run(*ONE, *STEPS, "--output", tmp_path, "--resume", "--precision", "fp32")
    assert again.code == 0 and "this run is finished" in again.output
    assert tree(tmp_path) == before
    other = run(*ONE, *STEPS, "--seed", "1", "--output", tmp_path, "--resume")
    assert other.code == 2 and tree(tmp_path) == before


def test_a_finished_run_is_judged_by_another_verifier(run, tmp_path):
    assert run(*ONE, *STEPS, "--output", tmp_path).code == 0
    before = tree(tmp_path)
    assert run(*ONE, *STEPS, "--verifier", "tiny_b@random", "--output", tmp_path, "--resume").code == 0
    after = tree(tmp_path)
    assert set(json.loads(after["summary.json"])["verifiers"]) == {"tiny_b"}
    same = {"images.safetensors", "metrics.jsonl", "grid.png", "per_layer.jsonl"}
    assert all(after[name] == before[name] for name in same)
    told, first = json.loads(after["summary.json"]), json.loads(before["summary.json"])
    kept = ("command", "startup_seconds", "steps_per_second", "steps")
    assert {key: told[key] for key in kept} == {key: first[key] for key in kept}
    assert first["command"] and first["startup_seconds"] < told["wall_seconds"]


def test_a_finished_run_goes_on_with_more_iterations(run, tmp_path):
    """The folder alone says what to go on with; the images are those of a run that was asked for as many at once."""
    constant = ["--set", "optimizer.schedule=constant", "--set", "best_every=0"]
    assert run(*ONE, *constant, *STEPS, "--output", tmp_path / "short").code == 0
    assert run(*ONE, *constant, *STEPS, "--iterations", "20", "--output", tmp_path / "whole").code == 0
    command = [*PLUGIN, "--output", tmp_path / "short", "--resume"]
    assert "is finished" in run(*command).output
    longer = run(*command, "--iterations", "20")
    assert longer.code == 0 and "resumed at step 12 of 20" in longer.output
    assert torch.equal(images(tmp_path / "short"), images(tmp_path / "whole"))
    steps = [json.loads(line)["step"] for line in (tmp_path / "short/metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps)) and steps[-1] == 19
    told = json.loads((tmp_path / "short/summary.json").read_text())
    assert told["steps"] == [20] and told["command"].count(" && ") == 1
    assert "began with 12 steps" in told["continued"][0]
    assert "# the run began with 12 steps" in (tmp_path / "short/recipe.yaml").read_text()
    fewer = run(*command, "--iterations", "5")
    assert fewer.code == 2 and "the run has 20 steps already" in fewer.errors[0]


def test_resume_needs_a_run(run, tmp_path):
    ended = run("--resume", "--output", tmp_path / "none")
    assert ended.code == 2 and len(ended.errors) == 1 and "holds no run to go on with" in ended.errors[0]


# ---- mistakes of all ranks


def test_mistake_is_told_by_a_slow_rank_0(tmp_path):
    """Rank 1 meets it first; if it left, the launcher would end rank 0 before that has told."""
    late = tmp_path / "late.py"
    late.write_text("import os, time\ntime.sleep(3 if os.environ.get('RANK') == '0' else 0)\n")
    ended = end(start(*PLUGIN[:2], "--plugin", late, *MODELS, "--nproc", "2", "--devices", "cpu", "cpu", "cpu"))
    assert ended.code == 2
    assert len(told(ended)) == 1 and "3 devices are named for 2 ranks" in told(ended)[0], ended.errors


def test_mistake_that_one_rank_meets_alone(run, monkeypatch):
    """Its weights file is missing on that machine, say: rank 0 goes on and has nothing to tell."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr("ensemble.cli._OTHERS_TELL", 0)
    ended = run("--models", "tiny_a@random", "--plugin", "nowhere.py")
    assert ended.code == 2
    assert len(ended.errors) == 1 and ended.errors[0].startswith("invert.py: rank 1: plugin"), ended.errors


# ---- ranks that die


def test_killed_rank_ends_the_run_and_resume_completes_it(reference, tmp_path):
    ended = end(start(*TWO, *RUN, "--nproc", "2", "--output", tmp_path, MISFORTUNE="kill:1:8"))
    assert ended.code == 1
    assert len(told(ended)) == 1 and "rank 1" in told(ended)[0] and "--resume" in told(ended)[0]
    assert "Traceback" not in "".join(ended.errors)
    resumed = end(start(*TWO, *RUN, "--nproc", "2", "--output", tmp_path, "--resume"))
    assert resumed.code == 0 and "resumed at step" in resumed.output
    check_same(tmp_path, reference)


@pytest.mark.parametrize("what, words", [("kill:1:5", "died"), ("hang:1:5", "hangs")])
def test_ranks_that_are_left_do_not_wait(what, words, tmp_path):
    limit = ["--set", "runtime.timeout=2"]
    ranks = start_ranks(*TWO, *RUN, *limit, "--output", tmp_path, MISFORTUNE=what)
    try:
        left = end(ranks[0])
        assert left.code == 1
        assert len(told(left)) == 1 and "rank 1" in told(left)[0] and words in told(left)[0], left.errors
        assert "Traceback" not in "".join(left.errors)
    finally:
        ranks[1].kill()
        end(ranks[1])


def test_error_of_one_rank_is_told_by_that_rank(tmp_path):
    """A disk that is full under the metrics: rank 0 fails where no other rank does."""
    ended = full_disk(2500, *TWO, *STEPS, "--nproc", "2", "--output", tmp_path)
    assert ended.code == 1
    assert len(told(ended)) == 1 and "File too large" in told(ended)[0], ended.errors


def test_torchrun_restarts_and_resumes_by_itself(reference, tmp_path):
    marker = tmp_path / "marker"
    options = ["--standalone", "--nproc-per-node", "2", "--max-restarts", "1"]
    misfortune = {"MISFORTUNE": "kill:1:8", "MISFORTUNE_MARKER": str(marker)}
    ended = end(start(*TWO, *RUN, "--output", tmp_path / "out", torchrun=options, **misfortune))
    assert marker.exists() and ended.code == 0, "\n".join(ended.errors)
    assert "resumed at step" in ended.output
    check_same(tmp_path / "out", reference)


def test_restart_before_the_first_checkpoint_begins_anew(run, tmp_path):
    out = tmp_path / "out"
    command = [*ONE, *RUN, "--output", out]
    process = start(*command, MISFORTUNE="kill:0:2")
    assert end(process).code == -signal.SIGKILL
    assert not list(out.glob("checkpoints/*.json")) and (out / "metrics.jsonl").exists()
    assert run(*command, "--resume").code == 0
    assert [line["step"] for line in recorded(out)] == list(range(12))


# ---- being asked to stop


def test_sigterm_to_one_rank_stops_all_and_saves(reference, tmp_path):
    ended = end(start(*TWO, *RUN, "--nproc", "2", "--output", tmp_path, MISFORTUNE="term:1:5"))
    assert ended.code == 0, ended.errors
    assert len(told(ended)) == 1 and "stopped at step" in told(ended)[0] and "--resume" in told(ended)[0]
    assert not (tmp_path / "summary.json").exists()
    assert end(start(*TWO, *RUN, "--nproc", "2", "--output", tmp_path, "--resume")).code == 0
    check_same(tmp_path, reference)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_to_the_launcher_reaches_the_ranks(number, tmp_path):
    long = ["--iterations", "1000000", "--set", "record_every=1", "--nproc", "2"]
    process = start(*TWO, *long, "--output", tmp_path)
    metrics, deadline = tmp_path / "metrics.jsonl", time.monotonic() + 60
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    ended = end(process)
    assert ended.code == 0, ended.errors
    assert len(told(ended)) == 1 and "--resume" in told(ended)[0]
    assert len(list((tmp_path / "checkpoints").glob("*.json"))) == 1


@pytest.mark.parametrize("call", [4, 12, 15])
def test_sigterm_between_and_within_trials(call, run, tmp_path, monkeypatch):
    """12 steps and 3 measurements a trial: the 12th pass is in the first trial, also the 15th, its last."""
    command = [*ONE, *RUN, "--trials", "2"]
    assert run(*command, "--output", tmp_path / "whole").code == 0
    monkeypatch.setenv("MISFORTUNE", f"term:0:{call}")
    stopped = run(*command, "--output", tmp_path / "out")
    assert stopped.code == 0 and "stopped at step" in stopped.errors[0]
    monkeypatch.delenv("MISFORTUNE")
    assert run(*command, "--output", tmp_path / "out", "--resume").code == 0
    check_same(tmp_path / "out", tmp_path / "whole")


# ---- damaged checkpoints, other recipes, full disks


@pytest.fixture
def interrupted(run, tmp_path, monkeypatch) -> tuple[Path, Path]:
    """A whole run, and one that was stopped and holds two checkpoints."""
    assert run(*ONE, *RUN, "--output", tmp_path / "whole").code == 0
    monkeypatch.setenv("MISFORTUNE", "term:0:9")
    assert run(*ONE, *RUN, "--output", tmp_path / "out").code == 0
    monkeypatch.delenv("MISFORTUNE")
    assert len(list((tmp_path / "out" / "checkpoints").glob("*.json"))) == 2
    return tmp_path / "whole", tmp_path / "out"


def flip(file: Path, place: float) -> None:
    data = bytearray(file.read_bytes())
    data[int(len(data) * place)] ^= 4
    file.write_bytes(data)


DAMAGE = {
    "truncated": lambda tensors, meta: os.truncate(tensors, tensors.stat().st_size // 2),
    "flipped": lambda tensors, meta: flip(tensors, 0.8),
    "lost": lambda tensors, meta: tensors.unlink(),
    "json truncated": lambda tensors, meta: os.truncate(meta, meta.stat().st_size // 2),
    "json empty": lambda tensors, meta: meta.write_text(""),
    "json changed": lambda tensors, meta: meta.write_text(
        meta.read_text().replace('"finished": false', '"finished": true')
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_checkpoint_falls_back_to_the_one_before(damage, interrupted, run):
    whole, out = interrupted
    newest = max((out / "checkpoints").glob("*.json"))
    DAMAGE[damage](newest.with_suffix(".safetensors"), newest)
    ended = run(*ONE, *RUN, "--output", out, "--resume")
    assert ended.code == 0
    assert f"warning: checkpoint {newest.name} is damaged" in ended.output
    check_same(out, whole)


def test_no_whole_checkpoint_is_an_error_that_changes_nothing(interrupted, run):
    _, out = interrupted
    for file in (out / "checkpoints").glob("*.safetensors"):
        flip(file, 0.9)
    before = tree(out)
    ended = run(*ONE, *RUN, "--output", out, "--resume")
    assert ended.code == 1 and len(ended.errors) == 1 and "--overwrite" in ended.errors[0]
    assert tree(out) == before


def test_resume_under_another_recipe_names_the_fields(interrupted, run):
    _, out = interrupted
    before = tree(out)
    changes = ["--seed", "1", "--set", "optimizer.lr=0.01"]
    ended = run(*ONE, *RUN, *changes, "--output", out, "--resume")
    assert ended.code == 2 and len(ended.errors) == 1
    assert ended.errors[0].endswith("fields differ: seed, optimizer.lr")
    assert tree(out) == before


def test_resume_with_another_way_of_computing_is_allowed(interrupted, run):
    whole, out = interrupted
    assert run(*ONE, *STEPS, "--set", "checkpoint.every=5", "--output", out, "--resume").code == 0
    check_same(out, whole)


def test_resume_with_waits_that_are_set(run, tmp_path, monkeypatch):
    command = [*ONE, *RUN, "--set", "optimizer.early_stopping=50", "--set", "optimizer.warmup=6", "--output", tmp_path]
    monkeypatch.setenv("MISFORTUNE", "term:0:9")
    assert "stopped at step" in run(*command).errors[0]
    monkeypatch.delenv("MISFORTUNE")
    assert run(*command, "--resume").code == 0


def test_resume_with_other_versions_warns(interrupted, run):
    """What computes decides the bits: a checkpoint says what made it."""
    _, out = interrupted
    for file in (out / "checkpoints").glob("*.json"):
        record = json.loads(file.read_text())
        record["meta"]["versions"] |= {"torch": "1.0", "kernel": "other"}
        tensors = load_file(file.with_suffix(".safetensors"))
        save_checkpoint(file.parent, "trial0000", record["step"], tensors, record["meta"])
    ended = run(*ONE, *RUN, "--output", out, "--resume")
    assert ended.code == 0 and "torch 1.0 -> " in ended.output and "kernel other -> " in ended.output


def full_disk(limit: int, *arguments: object) -> Ended:
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "invert.py"), *map(str, arguments)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    return end(process)


def test_full_disk_is_told_and_the_last_checkpoint_stays(interrupted, run):
    """A limit that the checkpoints outgrow, while the metrics still fit."""
    whole, out = interrupted
    checkpoints = out / "checkpoints"
    before = tree(checkpoints)
    ended = full_disk(7000, *ONE, *RUN, "--output", out, "--resume")
    assert ended.code == 1 and len(ended.errors) == 1, ended.errors
    assert "could not be written" in ended.errors[0] and "last good checkpoint is intact" in ended.errors[0]
    assert tree(checkpoints) == before
    assert run(*ONE, *RUN, "--output", out, "--resume").code == 0
    check_same(out, whole)


def test_checkpoints_by_the_clock(tmp_path):
    """Every hundredth of a second: some steps are saved, without any being asked for by number."""
    for name, seconds in (("often", "0.001"), ("never", "1000")):
        by_clock = ["--set", f"checkpoint.seconds={seconds}", "--output", tmp_path / name]
        assert end(start(*ONE, *STEPS, *by_clock, MISFORTUNE="kill:0:9")).code == -signal.SIGKILL
    assert list((tmp_path / "often" / "checkpoints").glob("trial0000-*.json"))
    assert not (tmp_path / "never" / "checkpoints").exists()


def test_the_last_checkpoint_stays_alone_and_no_halves(run, tmp_path):
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    (tmp_path / "metrics.jsonl").write_text("")
    for name in ("trial0000-00000001.safetensors", "trial0000-00000002.json.tmp"):
        (checkpoints / name).write_text("half")
    assert run(*ONE, *STEPS, "--set", "checkpoint.every=2", "--output", tmp_path, "--resume").code == 0
    expected = [f"trial0000-{step:08d}.{suffix}" for step in (12,) for suffix in ("json", "safetensors")]
    assert sorted(file.name for file in checkpoints.iterdir()) == expected


def test_images_on_other_numbers_of_ranks_are_the_same_to_the_bit(tmp_path, run):
    exact = ["--reproducible", "ranks", "--set", "runtime.cell_size=2"]
    assert run(*TWO, *RUN, *exact, "--output", tmp_path / "whole").code == 0
    ended = end(start(*TWO, *RUN, *exact, "--nproc", "2", "--output", tmp_path / "out", MISFORTUNE="term:1:9"))
    assert "stopped at step" in told(ended)[0]
    resumed = run(*TWO, *RUN, *exact, "--output", tmp_path / "out", "--resume")
    assert resumed.code == 0 and "the run began on" not in resumed.output
    assert torch.equal(images(tmp_path / "whole"), images(tmp_path / "out"))
