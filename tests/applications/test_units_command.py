"""invert.py units: what it makes and says, on one and two ranks, and what it refuses."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ONE, PLUGIN, TWO, end, images, start
from PIL import Image

from ensemble import cli
from ensemble.machine.lock import holder
from ensemble.units import job
from models import create_model

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
COMMAND = ["units", *ONE, "--iterations", "8", "--set", "record_every=1"]


@pytest.fixture
def real(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for k in range(30):
        file = tmp_path / "data" / "train" / "any" / f"{k}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(file)
    return tmp_path / "data"


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "units.jsonl").read_text().splitlines()]


def conv_of(pixels: torch.Tensor) -> torch.Tensor:
    """The means of tiny_a's convolution, (N, C), of uint8 images."""
    net, _ = create_model("tiny_a@random")
    mean, std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
    with torch.no_grad():
        return net.get_submodule("conv")((pixels / 255 - mean) / std).mean((2, 3))


def test_a_dry_run_makes_nothing(run, tmp_path: Path) -> None:
    words = [*COMMAND, "--units", "conv:0-2", "--output", tmp_path / "out"]
    ended = run(*words, "--dry-run")
    assert ended.code == 0 and "activation of conv:0-2" in ended.output and "images: 1 x 3 of 8 x 8" in ended.output
    assert run(*words, "--timed").errors == ["invert.py: --timed goes with --dry-run"]
    assert not (tmp_path / "out").exists()


def test_a_sheet_of_a_layer(run, tmp_path: Path, real: Path) -> None:
    folder = tmp_path / "out"
    ended = run(*COMMAND, "--units", "conv:*", "--images-per-unit", "2", "--real", real, "--output", folder)
    assert ended.code == 0, ended.errors
    channels = len(conv_of(torch.zeros(1, 3, 8, 8))[0])
    found, made = rows(folder), images(folder)
    assert len(found) == len(made) == 2 * channels
    assert [row["unit"] for row in found] == [f"conv:{k % channels}" for k in range(2 * channels)]
    own = conv_of((made * 255).round())[torch.arange(len(made)), torch.arange(len(made)) % channels]
    assert [row["activation"] for row in found] == pytest.approx(own.tolist(), rel=1e-3, abs=1e-4)
    files = sorted((real / "train" / "any").iterdir())
    of_real = conv_of(torch.stack([torch.from_numpy(np.array(Image.open(f))).permute(2, 0, 1) for f in files]))
    assert [row["largest"] for row in found[:channels]] == pytest.approx(
        of_real.max(0).values.tolist(), rel=1e-3, abs=1e-4
    )
    assert [row["mean"] for row in found[:channels]] == pytest.approx(of_real.mean(0).tolist(), rel=1e-3, abs=1e-4)
    assert (
        (folder / "units.png").is_file() and (folder / "top_real.png").is_file() and (folder / "summary.json").is_file()
    )
    above = [row["activation"] > row["largest"] for row in found]
    assert [row["above"] for row in found] == above
    assert f"{sum(above)} of {len(found)} are above" in ended.output
    assert run(*COMMAND, "--units", "conv:0", "--output", folder).code == 2  # nothing on disk is lost
    assert run(*COMMAND, "--units", "conv:0", "--output", folder, "--overwrite").code == 0
    assert len(rows(folder)) == 1 and not (folder / "top_real.png").exists()


def test_class_units_have_their_classes_as_targets(run, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    ended = run(*COMMAND, "--units", "logits:star,circle", "--verifier", "tiny_b@random", "--output", folder)
    assert ended.code == 0, ended.errors
    assert sorted(file.name for file in (folder / "images").iterdir()) == ["0000_circle", "0002_star"]
    assert [row["class"] for row in rows(folder)] == ["star", "circle"] and "logits:2 (star)" in ended.output
    assert "tiny_b" in json.loads((folder / "summary.json").read_text())["verifiers"]


def test_a_run_that_is_stopped_leaves_no_results_and_goes_on(run, tmp_path: Path, monkeypatch) -> None:
    command = [*COMMAND, "--units", "conv:0-1"]
    assert run(*command, "--output", tmp_path / "whole").code == 0
    monkeypatch.setenv("MISFORTUNE", "term:0:4")
    stopped = run(*command, "--output", tmp_path / "out")
    monkeypatch.delenv("MISFORTUNE")
    assert stopped.code == 0 and "stopped at step" in stopped.errors[0] and "--resume" in stopped.errors[0]
    assert not {"units.jsonl", "units.png", "images.safetensors"} & {f.name for f in (tmp_path / "out").iterdir()}
    assert run(*command, "--output", tmp_path / "out", "--resume").code == 0
    assert torch.equal(images(tmp_path / "out"), images(tmp_path / "whole"))


READ = {"units.jsonl", "units.png", "units_alpha.png", "top_real.png"}


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def test_what_was_read_of_units_is_kept_with_its_images_and_goes_with_them(run, tmp_path: Path, real: Path) -> None:
    out = tmp_path / "out"
    command = [*COMMAND, "--units", "conv:0-1", "--alpha", "--output", out]
    assert run(*command, "--real", real).code == 0
    read = {name: (out / name).read_bytes() for name in READ}
    ended = run(*command, "--resume")  # without real images: what was said beside them stays
    assert ended.code == 0 and "are above the largest of the real images" in ended.output
    assert {name: (out / name).read_bytes() for name in READ} == read
    longer = run(*PLUGIN, "--output", out, "--resume", "--iterations", "12")
    assert longer.code == 0 and "invert.py units --resume" in "".join([longer.output, *longer.errors])
    assert not READ & names(out)
    assert run(*command, "--resume", "--iterations", "12").code == 0
    assert READ & names(out) == READ - {"top_real.png"}
    own = conv_of((images(out) * 255).round())[[0, 1], [0, 1]]
    assert [row["activation"] for row in rows(out)] == pytest.approx(own.tolist(), rel=1e-3, abs=1e-4)
    (out / "top_real.png").touch()
    (out / "units.jsonl").unlink()
    assert run(*command, "--resume", "--iterations", "12").code == 0 and not (out / "top_real.png").exists()


@pytest.mark.parametrize(
    ("number", "told"), [(signal.SIGINT, "interrupted; the"), (signal.SIGTERM, "interrupted by SIGTERM; the")]
)
def test_the_folder_is_held_while_units_are_read(
    number: signal.Signals, told: str, run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, read, holders = tmp_path / "out", job.read_preferred, []

    def interrupted(*given: Any) -> None:
        holders.append(holder(out))
        signal.raise_signal(number)

    monkeypatch.setattr(job, "read_preferred", interrupted)
    ended = run(*COMMAND, "--units", "conv:0-1", "--output", out)
    assert ended.code == 128 + number
    assert f"{told} images are saved, and the same command with --resume reads" in ended.errors[-1]
    assert holders[0] is not None and "units.jsonl" not in names(out)
    monkeypatch.setattr(job, "read_preferred", read)
    assert run(*COMMAND, "--units", "conv:0-1", "--output", out, "--resume").code == 0 and len(rows(out)) == 2


def test_another_runs_images_are_not_read(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, carry_out = tmp_path / "out", job.carry_out

    def taken(*given: Any, **how: Any) -> Any:
        results = carry_out(*given, **how)
        assert cli.main([*ONE, "--targets", "star", "--iterations", "2", "--output", str(out), "--overwrite"]) == 0
        return results

    monkeypatch.setattr(job, "carry_out", taken)
    ended = run(*COMMAND, "--units", "conv:0-1", "--output", out)
    assert ended.code == 2 and "another run has taken" in ended.errors[-1] and not READ & names(out)


def test_images_of_units_that_are_no_classes_are_not_judged(run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(*COMMAND, "--units", "-logits:1", "--units", "logits:star", "--output", out).code == 0
    assert [(row["unit"], row.get("class"), row["of_class"]) for row in rows(out)] == [
        ("-logits:1", None, False),
        ("logits:2", "star", True),
    ]
    refused = run("evaluate", out, *PLUGIN[:2], "--judge", "tiny_b@random")
    assert refused.code == 2 and "units that are no classes" in refused.errors[0]


def test_a_network_that_no_selection_names(run, tmp_path: Path) -> None:
    command = ["units", *TWO, "--iterations", "2", "--output", tmp_path / "out", "--units"]
    refused = run(*command, "tiny_a/conv:0-1")
    assert refused.code == 2 and "no selection names tiny_b; leave it out" in refused.errors[0]
    for one, other in (("tiny_a", "tiny_b"), ("tiny_b", "tiny_a")):
        assert run(*command, f"{one}/conv:0-1", "--bn-matching", "1", "--overwrite").code == 0
        assert not any(key.startswith(other) for row in rows(tmp_path / "out") for key in row)


def test_lists_of_units_of_one_network_each(run, tmp_path: Path) -> None:
    command = ["units", *TWO, "--iterations", "2", "--output", tmp_path / "out", "--units"]
    refused = run(*command, "tiny_a/conv:0-3", "tiny_b/conv:0-3")
    assert refused.code == 2 and "are 4 units, and none of tiny_b, which others are of; name them" in refused.errors[0]
    refused = run(*command, "conv:*", "conv:0")  # 8 channels here, 12 there
    assert refused.code == 2 and "'conv:*' are 8 and 12 units of the teachers; let them be as many" in refused.errors[0]
    assert run(*command, "tiny_a/conv:0", "tiny_a/conv:1", "tiny_b/conv:0").code == 0
    of = [[key for key in row if key.endswith("/activation")] for row in rows(tmp_path / "out")]
    assert of == [["tiny_a/activation"], ["tiny_a/activation"], ["tiny_b/activation"]]


def test_a_unit_of_two_networks_is_a_class_where_both_parts_are(run, tmp_path: Path) -> None:
    units = [
        "tiny_a/logits:0 - tiny_b/logits:0",
        "tiny_a/logits:1 + tiny_b/logits:1",
        "tiny_a/logits:2 + tiny_b/conv:1",
    ]
    assert run("units", *TWO, "--iterations", "2", "--output", tmp_path / "out", "--units", *units).code == 0
    assert [row.get("class") for row in rows(tmp_path / "out")] == [None, "square", None]


def test_two_networks_on_two_ranks_as_in_one_process(run, tmp_path: Path) -> None:
    units = ["--units", "tiny_a/conv:1 + tiny_b/norm:0", "tiny_b/conv:0 - 0.5*tiny_a/norm:2@centre"]
    command = ["units", *TWO, *units, "--iterations", "6", "--set", "runtime.precision=fp64"]
    command = [word for word in command if word not in ("--precision", "fp32")]
    assert run(*command, "--output", tmp_path / "one").code == 0
    ranks = end(start(*command, "--nproc", "2", "--output", tmp_path / "two"))
    assert ranks.code == 0, ranks.errors
    torch.testing.assert_close(images(tmp_path / "two"), images(tmp_path / "one"), rtol=0, atol=1e-6)
    assert rows(tmp_path / "two")[0].keys() >= {"tiny_a/activation", "tiny_b/activation"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--units", "convv:0"], "tiny_a has no layer 'convv'; did you mean 'conv'?"),
        (["--units", "conv:99"], "units: conv: there is no channel 99; it has 0 to"),
        (["--units", "conv"], "say which channels of conv"),
        (["--units", "conv:0", "--match"], "--match compares units by real images; name them with --real DATA"),
        (["--units", "conv:0", "--images-per-unit", "0"], "images_per_unit: a whole number from 1 on"),
        (["--units", "conv:0", "--bn-matching", "-1"], "bn_matching: a weight of 0 or more, not -1"),
        (["--units", "conv:0", "--generator", "any"], "methods gd and lbfgs move a generator's code"),
        (["--units", "conv:0", "--real", "nowhere"], "data: nowhere does not exist"),
        (["--units", "conv:0", "--split", "test"], "split: it says which of the real images are read"),
        (["--units", "logits:1", "conv:0", "--verifier", "tiny_b@random"], "they read classes, and not every unit is"),
        (["--units", "logits:1", "--set", "image.size=9"], "image.size: give size (--size) instead"),
        (["--units", "conv:0", "--method", "magic"], "invalid choice: 'magic'"),
    ],
)
def test_mistakes_are_told_in_one_line(run, tmp_path: Path, words: list[str], message: str) -> None:
    ended = run(*COMMAND, *words, "--output", tmp_path / "out")
    assert ended.code == 2 and len(ended.errors) == 1 and message in ended.errors[0], ended.errors
    assert not (tmp_path / "out").exists()


def test_large_activations_under_reproducible_ranks(run, tmp_path: Path) -> None:
    """Sums in fixed point hold them, and any number of ranks has the same bits."""
    words = [*COMMAND, "--units", "conv:0", "conv:1", "--reproducible", "ranks", "--set", "objectives[0].reduction=sum"]
    words += ["--set", "objectives[0].weight=0.01"]
    assert run(*words, "--output", tmp_path / "one").code == 0
    assert end(start(*words, "--nproc", "2", "--output", tmp_path / "two")).code == 0
    assert torch.equal(images(tmp_path / "one"), images(tmp_path / "two"))


def test_matches_are_printed_and_made(run, tmp_path: Path, real: Path) -> None:
    words = ["units", *PLUGIN, "--models", "tiny_a@random", "tiny_b@random", "--iterations", "2"]
    ended = run(*words, "--units", "tiny_a/conv:0", "--match", "--real", real, "--output", tmp_path / "out")
    assert ended.code == 0, ended.errors
    (row,) = rows(tmp_path / "out")
    assert row["unit"].startswith("tiny_a/conv:0 + tiny_b/") and "matches" in ended.output


def test_mistakes_are_told_before_ranks_start(run, tmp_path: Path, real: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []
    monkeypatch.setattr("ensemble.machine.launch.launch_ranks", lambda words, ranks: started.append(ranks) or 0)
    many = (*COMMAND, "--nproc", "2", "--output", tmp_path / "out")
    (tmp_path / "out").mkdir()
    for words in (
        ("--units", "convv:0"),
        ("--units", "conv:0", "--real", tmp_path / "nowhere"),
        ("--units", "conv:0", "--set", "optimizer.lrr=1"),
    ):
        ended = run(*many, *words)
        assert ended.code == 2 and len(ended.errors) == 1 and not started
    assert run(*many, "--units", "conv:0-1", "--real", real).code == 0 and started == [2]


def test_units_of_one_teacher_beside_another_that_has_none(run, tmp_path):
    """Four of the first; the second matches its statistics."""
    terms = "objectives=[{kind: activation, units: 'tiny_a/conv:0-3'}, {kind: bn_matching}]"
    words = ["--set", terms, "--images-per-class", "2", "--iterations", "2", "--output", tmp_path / "out"]
    assert run(*TWO, *words).code == 0
    losses = json.loads((tmp_path / "out/metrics.jsonl").read_text().splitlines()[-1])
    assert losses["tiny_a/activation"] != 0 and losses["tiny_b/activation"] == 0
    ended = run("units", *TWO, "--units", "tiny_a/conv:0-3", "--output", tmp_path / "units")
    assert ended.code == 2 and "no selection names tiny_b; leave it out" in ended.errors[-1]
