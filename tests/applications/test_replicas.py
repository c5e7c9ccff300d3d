"""Replicas make their trials side by side, and the images are those of one process."""

from __future__ import annotations

import json
import signal
import socket
import time
from pathlib import Path

import pytest
import torch
from conftest import TWO, Ended, end, images, start, told

STEPS = ["--iterations", "12", "--set", "record_every=1", "--set", "best_every=4", "--images-per-class", "2"]
TRIALS = [*STEPS, "--trials", "3", "--set", "checkpoint.every=3"]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three trials of two teachers, one after the other on one rank."""
    folder = tmp_path_factory.mktemp("reference")
    assert end(start(*TWO, *TRIALS, "--output", folder)).code == 0
    return folder


def recorded(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return sorted(lines, key=lambda line: (line["trial"], line["step"]))


def check_same(folder: Path, other: Path) -> None:
    assert torch.equal(images(folder), images(other))
    assert recorded(folder) == recorded(other)
    mine, theirs = (json.loads((f / "summary.json").read_text()) for f in (folder, other))
    assert mine["teachers"] == theirs["teachers"] and mine["images"] == theirs["images"]


def test_two_replicas_of_one_rank(reference: Path, tmp_path: Path) -> None:
    ended = end(start(*TWO, *TRIALS, "--nproc", "2", "--replicas", "2", "--output", tmp_path))
    assert ended.code == 0, ended.errors
    check_same(tmp_path, reference)


def test_two_replicas_of_two_ranks(tmp_path: Path) -> None:
    """A teacher a rank: the same sums as two ranks alone, which another placement would round differently."""
    alone, both = tmp_path / "alone", tmp_path / "both"
    assert end(start(*TWO, *TRIALS, "--nproc", "2", "--output", alone)).code == 0
    assert end(start(*TWO, *TRIALS, "--nproc", "4", "--replicas", "2", "--output", both)).code == 0
    check_same(both, alone)


@pytest.mark.parametrize("again", [[], ["--nproc", "2", "--replicas", "2"], ["--nproc", "3", "--replicas", "3"]])
def test_killed_replicas_resume_on_any_number(reference: Path, tmp_path: Path, again: list[str]) -> None:
    replicas = ["--nproc", "2", "--replicas", "2"]
    ended = end(start(*TWO, *TRIALS, *replicas, "--output", tmp_path, MISFORTUNE="kill:1:8"))
    assert ended.code == 1 and "rank 1 was ended by SIGKILL" in told(ended)[-1], ended.errors
    resumed = end(start(*TWO, *TRIALS, *again, "--output", tmp_path, "--resume"))
    assert resumed.code == 0, resumed.errors
    check_same(tmp_path, reference)


def test_what_only_one_replica_meets_is_told_by_it(reference: Path, tmp_path: Path) -> None:
    """The second replica's loss is NaN from a step on; the first saves what it has, and both go on together."""
    replicas = ["--nproc", "2", "--replicas", "2", "--output", tmp_path]
    ended = end(start(*TWO, *TRIALS, *replicas, MISFORTUNE="nan:1:8"))
    told_of = [line for line in told(ended) if "not finite" in line]
    assert ended.code == 2 and len(told_of) == 1 and told_of[0].startswith("invert.py: rank 1: "), ended.errors
    assert (tmp_path / "replica1" / "grid.png").exists()
    assert end(start(*TWO, *TRIALS, *replicas, "--resume")).code == 0
    check_same(tmp_path, reference)
    assert end(start(*TWO, *TRIALS, *replicas, "--overwrite")).code == 0
    assert not (tmp_path / "replica1").exists()


def test_stop_while_one_replica_waits_for_the_other(reference: Path, tmp_path: Path) -> None:
    """Three trials on two replicas: the second waits for the first one's second trial when the stop comes."""
    replicas = ["--nproc", "2", "--replicas", "2", "--output", tmp_path]
    process = start(*TWO, *TRIALS, *replicas, MISFORTUNE="pause:0:24")
    finished, deadline = tmp_path / "checkpoints" / "trial0001-00000012.json", time.monotonic() + 60
    while not finished.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    ended = end(process)
    assert ended.code == 0 and not any("Traceback" in line for line in ended.errors), ended.errors
    assert not (tmp_path / "summary.json").exists()
    assert end(start(*TWO, *TRIALS, *replicas, "--resume")).code == 0
    check_same(tmp_path, reference)


def test_a_disk_that_refuses_one_replica_is_told(tmp_path):
    """Only replica 1 meets it, so its first rank tells, and why."""
    (tmp_path / "out" / "checkpoints").mkdir(parents=True)
    (tmp_path / "out" / "checkpoints" / "trial0001-00000002.safetensors.tmp").mkdir()  # nothing can be written there
    two = ["--trials", "2", "--nproc", "2", "--replicas", "2", "--iterations", "4", "--set", "checkpoint.every=2"]
    ended = end(start(*TWO, *two, "--output", tmp_path / "out", "--overwrite"))
    assert ended.code == 1
    assert any("rank 1: checkpoint: step 2 could not be written" in line for line in told(ended)), ended.errors


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--trials", "2", "--nproc", "3", "--replicas", "2"], "3 ranks cannot be divided into 2 equal replicas"),
        (["--trials", "2", "--nproc", "3", "--replicas", "3"], "3 replicas for 2 trial(s)"),
        (["--replicas", "0"], "runtime.replicas: must be at least 1"),
        (["--nproc", "3", "--devices", "cpu", "cpu"], "2 devices are named for 3 ranks"),
        (["--devices", "cpu", "cuda:77"], "cuda:77"),
        (["--devices", "cpu", "fpga"], "'fpga' is none of auto, cpu, cuda, cuda:N"),
        (["--device", "cpu", "--devices", "cpu", "cpu"], "not allowed with"),
    ],
)
def test_numbers_that_do_not_fit(arguments: list[str], words: str, tmp_path: Path) -> None:
    kept = [a for a in TWO if a not in ("--device", "cpu")] if "--devices" in arguments else TWO
    ended = end(start(*kept, *STEPS, *arguments, "--output", tmp_path / "out"))
    assert ended.code == 2, ended.errors
    assert len(told(ended)) == 1 and words in told(ended)[0], ended.errors
    assert not (tmp_path / "out").exists()


def test_a_list_of_devices_starts_its_own_ranks(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    kept = [a for a in TWO if a not in ("--device", "cpu")]
    assert end(start(*kept, *STEPS, "--devices", "cpu", "cpu", "--output", one)).code == 0
    assert end(start(*TWO, *STEPS, "--nproc", "2", "--output", two)).code == 0
    assert json.loads((one / "summary.json").read_text())["ranks"] == 2
    assert torch.equal(images(one), images(two))


def test_two_torchrun_agents(reference: Path, tmp_path: Path) -> None:
    """Two machines in little: an agent each, that find each other over c10d, and one rank each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{free.getsockname()[1]}"
    options = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint]
    options += ["--rdzv-id", "test", "--local-addr", "127.0.0.1"]
    command = [*TWO, *STEPS, "--output", tmp_path / "agents"]
    agents = [start(*command, torchrun=options) for _ in range(2)]
    ended: list[Ended] = [end(agent) for agent in agents]
    assert [e.code for e in ended] == [0, 0], [e.errors for e in ended]
    assert end(start(*TWO, *STEPS, "--nproc", "2", "--output", tmp_path / "launched")).code == 0
    assert torch.equal(images(tmp_path / "agents"), images(tmp_path / "launched"))
