"""Which commands may be started as several ranks."""

from __future__ import annotations

import pytest

from ensemble import cli

NEEDED = {
    "audit": "--model tiny_a --output out",
    "calibrate": "tiny_a --data data --output out.safetensors",
    "distill": "--dataset set --student tiny_a --output out",
    "evaluate": "out --judge tiny_a",
    "prune": "--model tiny_a --dataset set --flops 0.5 --output out",
    "report": "results --output out.html",
    "schema": "",
    "search": "--recipe recipe.yaml --space space.yaml --trials 2 --judge tiny_b --output out",
    "train": "--recipe recipe.yaml --output out",
}
ON_RANKS = {"invert", "dataset", "units", "leakage"}


def test_every_command_is_one_or_the_other() -> None:
    assert cli.commands().keys() == NEEDED.keys() | ON_RANKS


@pytest.mark.parametrize("command", NEEDED)
def test_one_process_refuses_several(command, run, tmp_path, monkeypatch):
    """Before anything is read or written: none of the files that are named is there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    ended = run(command, *NEEDED[command].split())
    assert ended.code == 2 and ended.errors == [f"invert.py: {command} is one process; start it without torchrun"]
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("command", sorted(ON_RANKS))
def test_others_do_not(command, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    line = {"invert": "", "units": "--models nothing --units a:0", "leakage": "--recipe nothing"}.get(command, "")
    assert "one process" not in " ".join(run(*[command, *line.split(), "--output", "out"]).errors)
