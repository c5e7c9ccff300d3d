"""--tensorboard: what TensorBoard itself reads from the folder."""

from __future__ import annotations

import json

import pytest
from conftest import ONE, TWO, end, images, start

event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def read(folder):
    board = event_accumulator.EventAccumulator(str(folder), {"images": 0, "scalars": 0})
    board.Reload()
    return board


def test_scalars_are_the_metrics_and_grids_come_along(run, tmp_path):
    out, board = tmp_path / "out", tmp_path / "board"
    options = ["--iterations", "6", "--trials", "2", "--set", "record_every=2"]
    assert run(*TWO, *options, "--output", out, "--tensorboard", board).code == 0
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert sorted(folder.name for folder in board.iterdir()) == ["trial0", "trial1"]
    for trial in (0, 1):
        found = read(board / f"trial{trial}")
        of_trial = [row for row in rows if row["trial"] == trial]
        for name in ("loss", "lr", "stage", "tiny_a/cross_entropy"):
            shown = [(event.step, event.value) for event in found.Scalars(name)]
            assert shown == [(row["step"], pytest.approx(row[name])) for row in of_trial]
        assert found.Images("images")[-1].step == 6
        assert found.Images("images")[0].width > 30


def test_the_images_are_the_same_with_and_without(run, tmp_path):
    assert run(*ONE, "--iterations", "3", "--output", tmp_path / "a").code == 0
    assert run(*ONE, "--iterations", "3", "--output", tmp_path / "b", "--tensorboard", tmp_path / "board").code == 0
    assert images(tmp_path / "a").equal(images(tmp_path / "b"))


def test_one_board_for_several_ranks(tmp_path):
    out, board = tmp_path / "out", tmp_path / "board"
    options = ["--iterations", "3", "--output", out, "--tensorboard", board]
    assert end(start(*TWO, *options, torchrun=["--nproc-per-node", "2"])).code == 0
    (file,) = board.rglob("events.*")
    assert len(read(file.parent).Scalars("loss")) == 2
    summary = json.loads((out / "summary.json").read_text())
    assert summary["command"].startswith("torchrun --nproc-per-node 2 invert.py --plugin ")


def test_a_board_that_fails_costs_nothing(run, tmp_path, monkeypatch):
    from torch.utils import tensorboard

    def broken(*_, **__):
        raise OSError("no space")

    monkeypatch.setattr(tensorboard.SummaryWriter, "add_scalar", broken)
    assert run(*ONE, "--iterations", "3", "--output", tmp_path / "out", "--tensorboard", tmp_path / "board").code == 0
    assert len(images(tmp_path / "out")) == 3


def test_another_runs_curves_are_left_alone(run, tmp_path):
    board = ["--tensorboard", tmp_path / "board"]
    assert run(*ONE, "--iterations", "3", "--output", tmp_path / "a", *board).code == 0
    ended = run(*ONE, "--iterations", "3", "--output", tmp_path / "b", *board)
    assert ended.code == 2 and "holds another run's curves" in ended.errors[-1] and not (tmp_path / "b").exists()
    assert run(*ONE, "--iterations", "6", "--output", tmp_path / "a", "--resume", *board).code == 0
    assert [event.step for event in read(tmp_path / "board/trial0").Scalars("loss")][-1] == 5


def test_mistakes_are_one_line_before_the_run(run, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    ended = run(*ONE, "--output", tmp_path / "out", "--tensorboard", tmp_path / "file")
    assert ended.code == 2 and len(ended.errors) == 1 and "tensorboard: " in ended.errors[0]
    monkeypatch.setattr("ensemble.runs.tensorboard.find_spec", lambda name: None)
    ended = run(*ONE, "--output", tmp_path / "out", "--tensorboard", tmp_path / "board")
    assert ended.code == 2 and len(ended.errors) == 1 and "pip install" in ended.errors[0]
    assert not (tmp_path / "out").exists()
