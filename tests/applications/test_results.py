"""What a run leaves on disk, and that it can be made again to the bit."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from conftest import ONE, PLUGIN, TWO, end, images, start, tree
from PIL import Image
from safetensors.torch import load_file, save_file

from ensemble.teachers.kernels.build import library
from models import create_model

SHORT = ["--iterations", "5", "--set", "record_every=2"]


def test_everything_is_written(run, tmp_path):
    out = tmp_path / "deep" / "out"
    options = ["--images-per-class", "2", "--verifier", "tiny_plain@random", "--seed", "3"]
    assert run(*TWO, *SHORT, *options, "--output", out).code == 0

    assert {f.name for f in out.iterdir()} == {
        "images",
        "images.safetensors",
        "grid.png",
        "metrics.jsonl",
        "summary.json",
        "recipe.yaml",
        "logits.safetensors",
        "per_image.jsonl",
        "per_layer.jsonl",
        "checkpoints",
    }
    assert len({file.stat().st_mode for file in out.iterdir() if file.is_file()}) == 1
    batch = load_file(out / "images.safetensors")
    assert set(batch) == {"images", "targets"}
    assert batch["images"].shape == (6, 3, 8, 8) and batch["images"].dtype == torch.float32
    assert batch["images"].min() >= 0 and batch["images"].max() <= 1
    assert batch["targets"].tolist() == [0, 1, 2, 0, 1, 2] and batch["targets"].dtype == torch.int64

    pictures = sorted(str(f.relative_to(out / "images")) for f in (out / "images").rglob("*.png"))
    assert pictures == [f"{name}/{n}.png" for name in ("0000_circle", "0001_square", "0002_star") for n in (0, 1)]
    shown = torch.frombuffer(bytearray(Image.open(out / "images/0001_square/1.png").tobytes()), dtype=torch.uint8)
    expected = (batch["images"][4] * 255).round().to(torch.uint8).permute(1, 2, 0).flatten()
    assert torch.equal(shown, expected)
    assert Image.open(out / "grid.png").width > 100

    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 2, 4]
    assert {"trial", "step", "stage", "lr", "loss", "prior", "tiny_a/cross_entropy", "tiny_b/accuracy"} <= set(lines[0])


def test_summary(run, tmp_path):
    options = ["--verifier", "tiny_plain@random", "tiny_b@random", "--seed", "3"]
    assert run(*TWO, *SHORT, *options, "--output", tmp_path).code == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert set(summary["teachers"]) == {"tiny_a", "tiny_b"}
    assert set(summary["teachers"]["tiny_a"]) == {"cross_entropy", "bn_matching", "accuracy"}
    assert summary["verifiers"]["tiny_b#verifier"]["accuracy"] == summary["teachers"]["tiny_b"]["accuracy"]
    assert summary["verifier_accuracy"] == summary["verifiers"]["tiny_plain"]["accuracy"]
    assert summary["steps_per_second"] > 0 and 0 < summary["startup_seconds"] <= summary["wall_seconds"]
    assert summary["peak_memory_bytes"] > 2**20
    assert {"python", "torch", "torchvision", "timm", "numpy"} <= set(summary["versions"])
    assert summary["seed"] == 3 and summary["images"] == 3 and summary["ranks"] == 1


def test_no_verifier_is_null(run, tmp_path):
    assert run(*ONE, *SHORT, "--output", tmp_path).code == 0
    assert json.loads((tmp_path / "summary.json").read_text())["verifier_accuracy"] is None


def test_same_command_and_written_recipe_give_the_same_bits(run, tmp_path):
    options = ["--seed", "5", "--targets", "random", "--images-per-class", "2", "--set", "best_every=2"]
    command = [*TWO, *SHORT, *options]
    first, second, again = (tmp_path / name for name in ("first", "second", "again"))
    assert run(*command, "--output", first).code == 0
    assert run(*command, "--output", second).code == 0
    recipe = ["--recipe", first / "recipe.yaml", *PLUGIN[:2]]
    assert run(*recipe, "--output", again).code == 0
    files = tree(first)
    timed = {"summary.json", *(name for name in files if name.startswith("checkpoints/") and name.endswith(".json"))}
    assert len(timed) == 2
    for others in (tree(second), tree(again)):
        assert files.keys() == others.keys()
        assert {name for name in files if files[name] != others[name]} == timed
    assert run(*recipe, "--seed", "6", "--output", again, "--overwrite").code == 0
    assert not torch.equal(images(first), images(again))


def test_recipe_is_resolved(run, tmp_path):
    assert run(*ONE[:4], "--precision", "auto", *ONE[6:], *SHORT, "--output", tmp_path).code == 0
    recipe = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    assert recipe["runtime"]["precision"] in ("fp32", "bf16") and recipe["runtime"]["compile"] == "off"
    assert recipe["image"]["size"] == 8 and recipe["stages"][0]["iterations"] == 5


def test_trials_are_batches_of_their_own_seeds(run, tmp_path):
    assert run(*ONE, *SHORT, "--trials", "2", "--seed", "7", "--output", tmp_path / "two").code == 0
    both = load_file(tmp_path / "two" / "images.safetensors")
    assert both["images"].shape == (6, 3, 8, 8) and both["targets"].tolist() == [0, 1, 2, 0, 1, 2]
    for trial in (0, 1):
        out = tmp_path / str(trial)
        assert run(*ONE, *SHORT, "--seed", 7 + trial, "--output", out).code == 0
        assert torch.equal(images(out), both["images"][3 * trial : 3 * trial + 3])
    lines = [json.loads(line) for line in (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()]
    assert [(line["trial"], line["step"]) for line in lines] == [(t, s) for t in (0, 1) for s in (0, 2, 4)]


@pytest.mark.parametrize(
    "options, targets",
    [
        (["--targets", "star", "0"], [2, 0]),
        (["--targets", "0-1", "--images-per-class", "3"], [0, 1, 0, 1, 0, 1]),
        (["--targets", "1", "--set", "image.batch_size=4"], [1, 1, 1, 1]),
        (["--targets", "all", "--set", "image.batch_size=4"], [0, 1, 2, 0]),
        (["--targets", "Circle,2"], [0, 2]),
    ],
)
def test_targets(options, targets, run, tmp_path):
    assert run(*ONE, "--iterations", "1", *options, "--output", tmp_path).code == 0
    assert load_file(tmp_path / "images.safetensors")["targets"].tolist() == targets


def test_ranks_write_the_same_layout(run, tmp_path):
    assert run(*TWO, *SHORT, "--output", tmp_path / "one").code == 0
    ended = end(start(*TWO, *SHORT, "--nproc", "2", "--output", tmp_path / "two"))
    assert ended.code == 0 and not ended.errors
    assert tree(tmp_path / "one").keys() == tree(tmp_path / "two").keys()
    assert json.loads((tmp_path / "two" / "summary.json").read_text())["ranks"] == 2
    torch.testing.assert_close(images(tmp_path / "two"), images(tmp_path / "one"), rtol=0, atol=1e-4)


def test_overwrite_replaces_results_and_spares_other_files(run, tmp_path):
    assert run(*ONE, *SHORT, "--set", "checkpoint.every=2", "--output", tmp_path).code == 0
    (tmp_path / "notes.txt").write_text("mine")
    assert run(*ONE, *SHORT, "--targets", "0", "--output", tmp_path, "--overwrite").code == 0
    left = set(tree(tmp_path))
    assert "notes.txt" in left and "images/0000_circle/0.png" in left
    assert not any(name.startswith("images/0001") for name in left)
    assert {name for name in left if name.endswith("00000005.json")} == {
        name for name in left if name.startswith("checkpoints") and name.endswith("json")
    }


def test_dry_run_writes_nothing(run, tmp_path):
    ended = run(*TWO, *SHORT, "--dry-run", "--nproc", "2", "--output", tmp_path / "out")
    assert ended.code == 0 and not (tmp_path / "out").exists()
    assert "placement" in ended.output and "tiny_b" in ended.output and "bn_matching" in ended.output


def test_dry_run_refuses_a_verifier_as_the_run_does(run, tmp_path):
    judge = ["--verifier", "tiny_broken@random"]
    for more in (["--dry-run"], []):
        ended = run(*ONE, *SHORT, *judge, *more, "--output", tmp_path / "out")
        assert ended.code == 2 and "forward pass fails" in ended.errors[0] and not (tmp_path / "out").exists()


def test_classes_without_an_image_are_told(run, tmp_path):
    ended = run(*ONE, *SHORT, "--set", "image.batch_size=2", "--output", tmp_path)
    assert ended.code == 0 and "targets: 1 of 3 classes have no image" in ended.output


def test_list_models(run):
    ended = run(*PLUGIN, "--list-models", "tiny_*")
    assert ended.code == 0 and "tiny_a" in ended.output and "tiny_plain" in ended.output
    missing = run("--list-models", "no_such_network*")
    assert missing.code == 2 and "no_such_network*" in missing.errors[0]


@pytest.mark.filterwarnings("ignore:no C")
def test_no_compiler_is_told_in_one_line(run, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "/no/such/compiler")
    library.cache_clear()
    try:
        ended = run(*ONE, "--iterations", "2", "--compile", "on", "--output", tmp_path)
    finally:
        library.cache_clear()
    assert ended.code == 0 and ended.output.count("the teachers run uncompiled") == 1
    assert not json.loads((tmp_path / "summary.json").read_text())["compiled"]


def test_a_file_that_says_its_classes_and_its_size(run, tmp_path):
    """As those that ensemble.training writes: targets by name, the image of that size."""
    net, _ = create_model("resnet20_cifar:num_classes=2,width=0.25@random")
    said = {"num_classes": 2, "class_names": ["cat", "zebra"], "input_size": 16, "mean": [0.1] * 3, "std": [0.5] * 3}
    save_file(net.state_dict(), tmp_path / "own.safetensors", {"card": json.dumps(said)})
    own = ["--models", f"resnet20_cifar:num_classes=2,width=0.25@{tmp_path}/own.safetensors", "--device", "cpu"]
    short = [*SHORT, "--images-per-class", "3"]
    assert run(*own, *short, "--targets", "zebra", "--output", tmp_path / "out").code == 0
    batch = load_file(tmp_path / "out/images.safetensors")
    assert batch["images"].shape == (3, 3, 16, 16) and batch["targets"].tolist() == [1, 1, 1]
    ended = run(*own, *short, "--targets", "lion", "--output", tmp_path / "other")
    assert ended.code == 2 and len(ended.errors) == 1 and "lion" in ended.errors[0]


def test_every_field_can_be_set_without_a_recipe(run, tmp_path):
    fields = ["--set", "objectives[0].weight=3", "--set", "stages[0].jitter=2", "--set", "optimizer.lr=0.5"]
    assert run(*ONE, *SHORT, *fields, "--output", tmp_path).code == 0
    written = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    assert (written["objectives"][0]["weight"], written["objectives"][1]["kind"]) == (3, "bn_matching")
    assert (written["stages"][0]["jitter"], written["optimizer"]["lr"]) == (2, 0.5)


def test_another_kind_leaves_the_fields_of_the_first_behind(run, tmp_path):
    fields = ["--set", "image.parameterization.kind=pixels", "--set", "objectives[0].kind=class_score"]
    assert run(*ONE, *SHORT, *fields, "--set", "objectives[0].weight=2", "--output", tmp_path).code == 0
    written = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    assert written["image"]["parameterization"]["kind"] == "pixels"
    assert written["objectives"][0] == {"kind": "class_score", "weight": 2}


def test_a_verifier_that_is_a_teacher_is_told(run, tmp_path):
    ended = run(*ONE, *SHORT, "--verifier", "tiny_a@random", "--output", tmp_path)
    assert ended.code == 0 and "tiny_a@random is a teacher, so it proves nothing" in ended.output
