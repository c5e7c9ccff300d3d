"""Runs that compare their teachers, mask where they conflict, and draw them once a batch."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from conftest import PLUGIN, TWO, end, images, start
from safetensors.torch import load_file

from ensemble import Results

SHORT = ["--iterations", "3", "--precision", "fp64", "--seed", "3"]
THREE = [*PLUGIN, "--models", "tiny_a@random", "tiny_b@random", "tiny_plain@random"]
SCORES = ["--set", "objectives=[{kind: cross_entropy}]"]


def rows(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "per_image.jsonl").read_text().splitlines()]


def test_agreement_is_written_and_comes_back(run, tmp_path):
    out = tmp_path / "out"
    assert run(*TWO, *SHORT, "--trials", "2", "--set", "agreement=true", "--output", out).code == 0
    written = load_file(out / "agreement.safetensors")
    assert written.keys() == {"maps", "tiny_a~tiny_b"}
    assert written["maps"].shape == (6, 8, 8) and written["maps"].dtype == torch.float16
    of_rows = [row["tiny_a~tiny_b/cosine"] for row in rows(out)]
    assert of_rows == written["tiny_a~tiny_b"].tolist() == [row["agreement"] for row in rows(out)]
    assert len(set(of_rows)) == 6 and all(0 < abs(cosine) < 1 for cosine in of_rows)
    results = Results.open(out)
    results.save(tmp_path / "again")
    assert (tmp_path / "again/agreement.safetensors").read_bytes() == (out / "agreement.safetensors").read_bytes()
    before = (out / "agreement.safetensors").read_bytes()
    for name in ("agreement.safetensors", "summary.json"):  # as if it had ended before it wrote them
        (out / name).unlink()
    assert run("--resume", *PLUGIN[:2], "--output", out).code == 0
    assert (out / "agreement.safetensors").read_bytes() == before
    assert run(*TWO, *SHORT, "--output", out, "--overwrite").code == 0
    assert not (out / "agreement.safetensors").exists() and "agreement" not in rows(out)[0]
    assert Results.open(out).agreement is None


def test_two_ranks_agree_and_mask_as_one_does(run, tmp_path):
    options = ["--set", "agreement=true", "--set", "ensemble.aggregation=agree"]
    assert run(*TWO, *SHORT, *options, "--output", tmp_path / "1").code == 0
    assert end(start(*TWO, *SHORT, *options, "--nproc", "2", "--output", tmp_path / "2")).code == 0
    one, two = (load_file(tmp_path / ranks / "agreement.safetensors") for ranks in ("1", "2"))
    assert one.keys() == two.keys() and all(torch.allclose(one[name], two[name], atol=1e-3) for name in one)
    assert torch.allclose(images(tmp_path / "1"), images(tmp_path / "2"), atol=1e-6)
    assert run(*TWO, *SHORT, "--output", tmp_path / "sum").code == 0
    assert not torch.allclose(images(tmp_path / "1"), images(tmp_path / "sum"), atol=1e-3)


@pytest.mark.parametrize("per", ["step", "batch"])
def test_several_trials_draw_their_teachers(per, run, tmp_path):
    drawn = ["--set", f"ensemble={{acting: random, per: {per}}}", "--set", "record_every=1", "--trials", "3"]
    ended = run(*THREE, *SHORT, *SCORES, *drawn, "--seed", "7", "--output", tmp_path)
    assert ended.code == 0
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    acting = [{key.split("/")[0] for key in line if key.endswith("/accuracy")} for line in lines]
    trials = [acting[i : i + 3] for i in (0, 3, 6)]
    assert all(len(names) == 1 for names in acting) and len({*map(frozenset, acting)}) > 1
    assert all(trial[0] == trial[1] == trial[2] for trial in trials) == (per == "batch")
    warned = json.loads((tmp_path / "summary.json").read_text())["warnings"]
    assert warned
    if per == "batch":
        assert {text.split(" misses")[0] for text in warned if "misses" in text} <= set.union(*acting)


def test_teachers_in_turn_are_all_recorded(run, tmp_path):
    """Of two teachers only the first acts at every fourth step."""
    turn = ["--set", "ensemble.acting=turn", "--set", "record_every=4", "--iterations", "9"]
    assert run(*TWO, *SHORT, *SCORES, *turn, "--output", tmp_path).code == 0
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    acted = [(line["step"], *(key for key in line if key.endswith("/accuracy"))) for line in lines]
    a, b = "tiny_a/accuracy", "tiny_b/accuracy"
    assert acted == [(0, a), (1, b), (4, a), (5, b), (8, a)]


def test_a_dry_run_tells_the_rule(run, tmp_path):
    rule = "ensemble={acting: random, count: 2, per: batch, aggregation: agree, threshold: 0.9}"
    ended = run(*THREE, *SHORT, *SCORES, "--set", rule, "--dry-run", "--output", tmp_path / "none")
    told = "acting: 2 at random, drawn each batch; gradients masked where |sum_t w_t sign(g_t)| < 0.9"
    assert ended.code == 0 and told in ended.output


def test_a_dry_run_counts_the_teachers_that_act(run, tmp_path):
    """Three teachers alike: one in turn does a third of the work, and the printed figure says so."""
    work = {}
    for acting in ("all", "turn"):
        rule = f"ensemble={{acting: {acting}}}"
        ended = run(
            *THREE, *SCORES, "--iterations", "6000000", "--set", rule, "--dry-run", "--output", tmp_path / "none"
        )
        assert ended.code == 0
        work[acting] = float(re.search(r"([\d.]+) TFLOP in all", ended.output)[1])
    assert work["turn"] > 1 and work["all"] == pytest.approx(3 * work["turn"], abs=0.2)
