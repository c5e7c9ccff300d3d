"""Batches that look back at earlier ones, to begin there or to keep away: over ranks, and after a kill."""

from __future__ import annotations

import pytest
import torch
from conftest import ONE, PLUGIN, TWO, end, images, start

THREE = ["--iterations", "4", "--trials", "3", "--images-per-class", "2"]
WARM = [*THREE, "--set", "image.start.kind=warm"]
KEPT_AWAY = [*THREE, "--set", "objectives=[{kind: saturating}, {kind: repulsion, limit: -1, memory: 9}]"]


def test_later_batches_begin_from_earlier_ones(run, tmp_path):
    """Where nothing is optimised to speak of and nothing is changed, the second batch holds images of the first."""
    still = ["optimizer.lr=1e-9", "image.start.new=0", "image.start.zoom=1", "image.start.hue=0"]
    options = [*WARM, *(word for text in [*still, "image.start.mixture=0"] for word in ("--set", text))]
    assert run(*ONE, *options, "--output", tmp_path).code == 0
    batches = images(tmp_path).split(6)
    for later in batches[1:]:
        for image in later:
            gaps = [(image - x).abs().max() for first in batches[0] for x in (first, first.flip(2))]
            assert min(gaps) < 2e-3


def test_what_is_remembered_counts(run, tmp_path):
    forgetful = [word.replace("memory: 9", "memory: 0") for word in KEPT_AWAY]
    assert run(*ONE, *KEPT_AWAY, "--output", tmp_path / "a").code == 0
    assert run(*ONE, *forgetful, "--output", tmp_path / "b").code == 0
    first, second = images(tmp_path / "a").split(6), images(tmp_path / "b").split(6)
    assert torch.equal(first[0], second[0]) and not torch.equal(first[1], second[1])


def test_a_memory_may_cut_a_batch(run, tmp_path):
    """With cells of one image, those beyond the cut hold none: no network is run on nothing, which this one refuses."""
    network = [*PLUGIN, "--models", "tiny_viewing@random"]
    for cells in ([], ["--micro-batch", "1"]):
        out = tmp_path / str(len(cells))
        assert run(*network, *(w.replace("9", "7") for w in KEPT_AWAY), *cells, "--output", out).code == 0
    assert torch.allclose(*(images(tmp_path / name) for name in "02"), atol=2e-3)


@pytest.mark.parametrize("looks_back", [WARM, KEPT_AWAY], ids=["warm", "kept away"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_killed_run_goes_on_with_the_same_pool(tmp_path, ranks, looks_back):
    again = ["--nproc", str(ranks)] if ranks > 1 else []
    options = [*TWO, *looks_back, "--set", "checkpoint.every=2", "--reproducible", "ranks"]
    assert end(start(*options, "--output", tmp_path / "whole")).code == 0
    killed = end(start(*options, "--output", tmp_path / "killed", MISFORTUNE="kill:0:13"))
    assert killed.code != 0 and not (tmp_path / "killed/summary.json").exists()
    assert end(start(*options, *again, "--output", tmp_path / "killed", "--resume")).code == 0
    assert torch.equal(images(tmp_path / "killed"), images(tmp_path / "whole"))


@pytest.mark.parametrize(("options", "what"), [(WARM, "a warm start"), (KEPT_AWAY, "a term's memory")])
def test_one_batch_has_nothing_to_look_back_at(run, tmp_path, options, what):
    ended = run(*ONE, *options, "--trials", "1", "--output", tmp_path / "out")
    assert ended.code == 2 and f"trials: {what} goes back to the batches before, and there is one" in ended.errors[-1]


@pytest.mark.parametrize(("options", "what"), [(WARM, "a warm start"), (KEPT_AWAY, "a term's memory")])
def test_batches_side_by_side_are_refused(run, tmp_path, options, what):
    ended = run(*ONE, *options, "--replicas", "2", "--output", tmp_path / "out")
    assert ended.code == 2 and f"{what} goes back to the batches before" in ended.errors[-1]
