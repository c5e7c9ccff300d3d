"""Several processes that want the same download."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from models import _lock
from models._lock import first_alone

ROOT = Path(__file__).resolve().parents[2]
FETCHES = """
import sys, time
from pathlib import Path
import torch
from models import ModelCard, Weights, create_model
from models._table import TABLE, Entry

here, process = Path(sys.argv[1]), sys.argv[2]

def fetch(tag):
    cached = (here / "cache").exists()
    with (here / "downloads").open("a") as log:
        log.write("found\\n" if cached else "downloaded\\n")
    if not cached:
        time.sleep(2)
        (here / "cache").write_text(tag)
    return torch.nn.Linear(3, 10)

card = ModelCard("far", "test", 8, 10, (0.5,) * 3, (0.5,) * 3, weights={"t": Weights("zoo")}, default_weights="t")
TABLE["far"] = Entry(card, torch.nn.Identity, {}, fetch)
(here / process).touch()
while len(list(here.glob("process*"))) < 2:  # so that both ask at once
    time.sleep(0.01)
create_model("far")
"""


def _fetch_in_two_processes(folder: Path, home: Path) -> list[str]:
    environment = {"TORCH_HOME": str(home), "OMP_NUM_THREADS": "1", "PATH": ""}
    processes = [
        subprocess.Popen([sys.executable, "-c", FETCHES, str(folder), name], cwd=ROOT, env=environment)
        for name in ("process1", "process2")
    ]
    try:
        assert [process.wait(120) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    return sorted((folder / "downloads").read_text().split())


def test_the_second_process_finds_what_the_first_downloaded(tmp_path: Path) -> None:
    assert _fetch_in_two_processes(tmp_path, tmp_path / "home") == ["downloaded", "found"]


def test_without_a_place_for_the_lock_both_go_on(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert _fetch_in_two_processes(tmp_path, tmp_path / "file/home") == ["downloaded", "downloaded"]


def test_without_fcntl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(_lock, "fcntl", None)
    with first_alone("net@tag"):
        assert not list(tmp_path.iterdir())


HOLDS = """
import sys, time
from pathlib import Path
from models._lock import first_alone
with first_alone(sys.argv[2]):
    Path(sys.argv[1]).touch()
    time.sleep(60)
"""


def test_other_names_do_not_wait_and_a_dead_process_holds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", HOLDS, str(tmp_path / "inside"), "timm/net@tag"], cwd=ROOT)
    while not (tmp_path / "inside").exists():
        assert process.poll() is None
        time.sleep(0.01)
    with first_alone("timm/other@tag"):
        pass
    process.kill()
    process.wait()
    with first_alone("timm/net@tag"):
        pass


def test_an_error_inside_gives_the_lock_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ValueError, match="no network"), first_alone("net@tag"):
        raise ValueError("no network")
    with first_alone("net@tag"):
        pass
