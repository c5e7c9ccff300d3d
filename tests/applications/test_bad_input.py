"""A mistake gives one clear line, exit code 2, and costs nothing that was on the disk."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ONE, PLUGIN, TWO, Ended, end, images, start, told, tree
from safetensors.torch import save_file

from models import create_model


def check_refusal(ended: Ended, *parts: str) -> None:
    assert ended.code == 2
    assert len(ended.errors) == 1, ended.errors
    assert ended.errors[0].startswith("invert.py: ")
    for part in parts:
        assert part in ended.errors[0]


MISTAKES = {
    "no models": (PLUGIN, ["--models"]),
    "a field without --set": (
        [*ONE, "--trials", "3", "optimizer.lr=0.2"],
        ["unrecognized arguments: optimizer.lr=0.2 (fields are set by --set PATH=VALUE); see invert.py --help"],
    ),
    "unknown option": ([*ONE, "--watch", "3"], ["unrecognized arguments: --watch 3; see invert.py --help"]),
    "near option": (
        [*ONE, "--tragets", "circle"],
        ["unrecognized arguments: --tragets circle (did you mean --targets?); see invert.py --help"],
    ),
    "near options": (
        [*ONE, "--iteration=3", "--images_per_class", "2"],
        ["--iteration=3 --images_per_class 2 (did you mean --iterations and --images-per-class?)"],
    ),
    "somebody's home, weights": (
        [*PLUGIN, "--models", "tiny_a@~no_such_user/x.pth"],
        ["~no_such_user/x.pth"],
    ),
    "somebody's home, statistics": (
        [*ONE, "--set", "teachers=[{model: tiny_a@random, statistics: ~no_such_user/x.safetensors}]"],
        ["~no_such_user/x.safetensors"],
    ),
    "somebody's home, start": (
        [*ONE, "--set", "image.start={kind: folder, path: ~no_such_user/x}"],
        ["~no_such_user/x"],
    ),
    "somebody's home, unit": (
        [*ONE, "--set", "objectives=[{kind: activation, units: 'conv:dir=~no_such_user/x.npy'}]"],
        ["~no_such_user/x.npy"],
    ),
    "somebody's home, plugin": ([*ONE, "--plugin", "~no_such_user/x.py"], ["~no_such_user/x.py"]),
    "somebody's home, recipe": (["--recipe", "~no_such_user/x.yaml"], ["~no_such_user/x.yaml"]),
    "no number": ([*ONE, "--iterations", "many"], ["--iterations", "many"]),
    "recipe of a student": (
        [*PLUGIN, "--recipe", "distillation/cifar10"],
        ["recipe distillation/cifar10: this file is one of invert.py distill --recipe; a recipe of images names"],
    ),
    "recipe of a training": ([*PLUGIN, "--recipe", "training/resnet20_cifar"], ["one of invert.py train --recipe"]),
    "space of a search": ([*PLUGIN, "--recipe", "search/quickstart"], ["one of invert.py search --space"]),
    "unknown model": ([*PLUGIN, "--models", "tiny_q@random"], ["'tiny_q'", "did you mean", "tiny_a"]),
    "near model of a zoo": ([*PLUGIN, "--models", "resnet20_cifra"], ["did you mean", "resnet20_cifar"]),
    "unknown verifier": ([*ONE, "--verifier", "tiny_q"], ["'tiny_q'", "did you mean"]),
    "verifier of other classes": (
        [*ONE, "--verifier", "resnet20_cifar@random"],
        ["verifiers", "cifar10", "shapes"],
    ),
    "verifier without weights": ([*ONE, "--verifier", "tiny_b"], ["tiny_b", "no default weights", "@FILE"]),
    "model without weights": ([*PLUGIN, "--models", "tiny_a"], ["tiny_a", "no default weights", "@FILE"]),
    "teachers of other classes": (
        [*PLUGIN, "--models", "tiny_a@random", "resnet20_cifar@random"],
        ["different classes", "teachers[1].classes"],
    ),
    "teachers of other class names": (
        [*PLUGIN, "--models", "tiny_a@random", "tiny_renamed@random"],
        ["different classes", "3 of shapes and 3, star to circle", "(--set) 'teachers[1].classes={circle: 0}'"],
    ),
    "more logits than classes": (
        [*PLUGIN, "--models", "tiny_wide@random"],
        ["tiny_wide", "logits of shape (1, 7) for an image of 8 x 8", "its card says 3 classes"],
    ),
    "forward that fails": ([*PLUGIN, "--models", "tiny_broken@random"], ["tiny_broken", "forward pass fails", "8 x 8"]),
    "resume and overwrite": ([*ONE, "--resume", "--overwrite"], ["--overwrite", "not allowed with"]),
    "class index": ([*ONE, "--targets", "3"], ["class 3", "0..2"]),
    "negative class": ([*ONE, "--targets", "-1"], ["class -1", "0..2"]),
    "class range": ([*ONE, "--targets", "1-99999999999999"], ["99999999999999", "0..2"]),
    "backward range": ([*ONE, "--targets", "2-0"], ["2-0", "backwards"]),
    "class name": ([*ONE, "--targets", "cirle"], ["'cirle'", "did you mean 'circle'"]),
    "no such class": ([*ONE, "--targets", "lion"], ["no class is called 'lion'; the classes are circle, "]),
    "no images": ([*ONE, "--images-per-class", "0"], ["images_per_class"]),
    "two numbers of images": (
        [*ONE, "--images-per-class", "2", "--set", "image.batch_size=7"],
        ["image.batch_size says how many images there are, 7"],
    ),
    "no trials": ([*ONE, "--trials", "0"], ["trials"]),
    "no steps": ([*ONE, "--iterations", "0"], ["iterations: must be at least 1, got 0"]),
    "fewer than no steps": ([*ONE, "--iterations", "-5"], ["iterations: must be at least 1, got -5"]),
    "micro-batch": ([*ONE, "--micro-batch", "abc"], ["micro_batch", "'abc'"]),
    "no micro-batch": ([*ONE, "--micro-batch", "0"], ["micro_batch"]),
    "no ranks": ([*ONE, "--nproc", "0"], ["--nproc"]),
    "more ranks than images": ([*ONE, "--nproc", "4"], ["4 processes", "3 images"]),
    "ranks that do not fit": ([*TWO, "--nproc", "2", "--set", "teachers[0].ranks=2"], ["start 3"]),
    "unknown device": ([*ONE, "--device", "tpu"], ["'tpu'"]),
    "no BatchNorm": ([*PLUGIN, "--models", "tiny_plain@random"], ["tiny_plain", "BatchNorm", "bn_matching"]),
    "one teacher that agrees": ([*ONE, "--set", "ensemble.aggregation=agree"], ["ensemble.aggregation", "several"]),
    "one teacher at a step that agrees": (
        [*TWO, "--set", "ensemble={acting: turn, aggregation: agree}"],
        ["ensemble.aggregation", "several teachers that act"],
    ),
    "threshold of a sum": ([*TWO, "--set", "ensemble.threshold=0.7"], ["ensemble.threshold", "aggregation: agree"]),
    "threshold beyond all": (
        [*TWO, "--set", "ensemble={aggregation: agree, threshold: 1.5}"],
        ["ensemble.threshold", "1"],
    ),
    "a count of all": ([*TWO, "--set", "ensemble.count=2"], ["ensemble.count", "acting: random"]),
    "ranks of cells": (
        [*ONE, "--set", "teachers[0].ranks=1", "--reproducible", "ranks"],
        ["teachers[0].ranks", "any rank takes any cell"],
    ),
    "moving images of a generator": (
        [
            *ONE,
            "--set",
            "image={start: {kind: noise}, parameterization: {kind: generator}}",
            "--set",
            "stages[0].moving=0.5",
        ],
        ["stages[0].moving", "one generator"],
    ),
    "slack of a convention": (
        [*ONE, "--set", "objectives=[{kind: bn_matching, convention: paper, slack: 0.1}]"],
        ["objectives[0].slack", "convention: calibrated"],
    ),
    "factors of layers without a term": (
        [*ONE, "--set", "objectives=[{kind: cross_entropy}]", "--set", "teachers[0].layers={norm: 2}"],
        ["teachers[0].layers", "no objective weighs layers"],
    ),
    "a draw of all": ([*TWO, "--set", "ensemble.per=batch"], ["ensemble.per", "acting: random"]),
    "agreement of one": ([*ONE, "--set", "agreement=true"], ["agreement", "there is one"]),
    "no recipe": ([*PLUGIN, "--recipe", "nowhere.yaml"], ["nowhere.yaml", "cannot be read"]),
    "no plugin": (["--plugin", "nowhere.py", "--models", "tiny_a"], ["nowhere.py", "does not exist"]),
    "override without value": ([*ONE, "--set", "seed"], ["'seed'", "path=value"]),
    "no start path": ([*ONE, "--set", "image.start.kind=image"], ["image.start.path: missing"]),
    "start path for noise": ([*ONE, "--set", "image.start.path=x.png"], ["image.start.path: unknown key"]),
    "start image": (
        [*ONE, "--set", "image.start={kind: image, path: nowhere.png}"],
        ["initial image", "nowhere.png"],
    ),
    "start folder": (
        [*ONE, "--set", "image.start={kind: folder, path: nowhere}"],
        ["initial image", "nowhere"],
    ),
    "start of a generator": (
        [*ONE, "--set", "image.parameterization.kind=generator", "--set", "image.start.kind=grey"],
        ["image.start: kind 'grey' says", "kind 'generator' cannot be told", "use kind 'noise'"],
    ),
    "size of a generator": (
        [*ONE, "--set", "image={start: {kind: noise}, parameterization: {kind: generator}, size: 10}"],
        ["4 divides, not 10", "image.size to 12"],
    ),
    "weights of a generator": (
        [*ONE, "--set", "image={start: {kind: noise}, parameterization: {kind: generator, weights: no.safetensors}}"],
        ["image.parameterization.weights", "no.safetensors", "cannot be read"],
    ),
    "dead leaves": (
        [*ONE, "--set", "image.start={kind: dead_leaves, smallest: 0.5, largest: 0.25}"],
        ["image.start", "smallest: 0.5 must be below largest"],
    ),
    "jitter": ([*ONE, "--set", "stages[0].jitter=8"], ["jitter 8"]),
    "no weights file": ([*PLUGIN, "--models", "tiny_a@nowhere.pt"], ["nowhere.pt", "does not exist"]),
    "unmapped target": (
        [*TWO, "--set", "teachers[1].classes={circle: 0}"],
        ["mapping of tiny_b@random", "'square'"],
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_one_line_and_nothing_written(name, run, tmp_path, monkeypatch):
    arguments, parts = MISTAKES[name]
    monkeypatch.chdir(tmp_path)
    check_refusal(run(*arguments, "--output", tmp_path / "out"), *parts)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_where_there_is_none(run, tmp_path):
    ended = run(*ONE, "--device", "cuda", "--output", tmp_path / "out")
    check_refusal(ended, "no CUDA device", "--device cpu")


def test_all_mistakes_of_a_recipe_at_once(run, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "teachers: [{model: tiny_a@random, wieght: 2}]\n"
        "sed: 3\nimages_per_class: many\nstages: [{iterations: 3.5}]\nobjectives: [{kind: crossentropy}]\n"
    )
    ended = run(*PLUGIN, "--recipe", recipe, "--output", tmp_path / "out")
    assert ended.code == 2 and not (tmp_path / "out").exists()
    assert ended.errors[0] == "invert.py: 5 mistakes" and len(ended.errors) == 6
    for path in (
        "teachers[0].wieght",
        "sed",
        "images_per_class",
        "stages[0].iterations",
        "objectives[0].kind",
    ):
        assert any(line.startswith(f"{path}: ") for line in ended.errors[1:]), path


def test_weights_that_do_not_fit(run, tmp_path):
    net, _ = create_model("resnet20_cifar@random")
    tensors = {key: value.contiguous() for key, value in net.state_dict().items()}
    lost = next(iter(tensors))
    del tensors[lost]
    save_file({**tensors, "odd": torch.zeros(2)}, tmp_path / "net.safetensors")
    arguments = ["--models", f"resnet20_cifar@{tmp_path / 'net.safetensors'}", "--device", "cpu"]
    ended = run(*arguments, "--output", tmp_path / "out")
    check_refusal(ended, "does not fit resnet20_cifar", "1 missing", lost, "1 unexpected", "odd")
    assert not (tmp_path / "out").exists()


def test_file_that_needs_pickled_code(run, tmp_path):
    marker = tmp_path / "ran"

    class Trap:
        def __reduce__(self):
            return Path.touch, (marker,)

    (tmp_path / "net.pt").write_bytes(pickle.dumps({"weights": Trap()}))
    torch.save({"state_dict": {}, "hook": np.random.default_rng(0)}, tmp_path / "other.pt")
    for name in ("net.pt", "other.pt"):
        ended = run(*PLUGIN, "--models", f"tiny_a@{tmp_path / name}", "--output", tmp_path / "out")
        check_refusal(ended, name, "pickled code")
    assert not marker.exists() and not (tmp_path / "out").exists()


def test_file_that_is_no_weights(run, tmp_path):
    for name in ("net.pth", "net.safetensors"):
        (tmp_path / name).write_text("not weights at all")
        check_refusal(run(*PLUGIN, "--models", f"tiny_a@{tmp_path / name}", "--output", tmp_path / "out"), name)


def test_safetensors_under_another_ending(run, tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "net.pth")
    ended = run(*PLUGIN, "--models", f"tiny_a@{tmp_path / 'net.pth'}", "--output", tmp_path / "out")
    check_refusal(ended, "net.pth looks like a safetensors file; give it the ending .safetensors")


def test_weights_that_cannot_be_downloaded(run, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
    arguments = ["--models", "mobilenet_v3_small@IMAGENET1K_V1", "--targets", "0", "--device", "cpu"]
    ended = run(*arguments, "--output", tmp_path / "out")
    check_refusal(ended, "cannot download", "IMAGENET1K_V1", "mobilenet_v3_small@/path")
    assert not (tmp_path / "out").exists()


def test_folder_that_is_not_empty(run, tmp_path):
    (tmp_path / "diary.txt").write_text("dear diary")
    before = tree(tmp_path)
    check_refusal(run(*ONE, "--output", tmp_path), "not empty", "--overwrite", "--resume")
    check_refusal(run(*ONE, "--output", tmp_path, "--resume"), "no checkpoint", "--overwrite")
    assert tree(tmp_path) == before


def test_mistakes_under_overwrite_lose_nothing(run, tmp_path):
    out = tmp_path / "out"
    assert run(*ONE, "--iterations", "2", "--output", out).code == 0
    before = tree(out)
    for mistake in (
        ["--targets", "7"],
        ["--verifier", "tiny_q"],
        ["--verifier", "tiny_b@nowhere.pt"],
        ["--set", "image.start={kind: image, path: nowhere.png}"],
        ["--set", "objectives=[{kind: bn_matching, layers: {nowhere: 2.0}}]"],
    ):
        check_refusal(run(*ONE, *mistake, "--output", out, "--overwrite"))
        assert tree(out) == before, mistake
    check_refusal(run(*PLUGIN, "--models", "tiny_plain@random", "--output", out, "--overwrite"))
    assert tree(out) == before


def test_output_that_cannot_be_written(run, tmp_path):
    (tmp_path / "file").write_text("x")
    check_refusal(run(*ONE, "--output", tmp_path / "file"), "is a file")
    check_refusal(run(*ONE, "--output", tmp_path / "file" / "below"), "is a file", "another folder")
    check_refusal(run(*ONE, "--iterations", "2", "--output", "/proc/nowhere"), "/proc/nowhere", "another folder")


def test_resume_where_there_is_nothing_begins(run, tmp_path):
    assert run(*ONE, "--iterations", "2", "--output", tmp_path / "out", "--resume").code == 0
    assert (tmp_path / "out" / "summary.json").exists()


@pytest.mark.parametrize("steps, best", [(6, 0), (6, 3), (1, 0), (1, 1)])
def test_diverging_run_keeps_the_last_good_images(steps, best, run, tmp_path):
    mistake = ["--set", "optimizer.lr=1e38", "--set", f"best_every={best}"]
    start = run(*ONE, "--iterations", "1", "--set", "optimizer.lr=1e-30", "--output", tmp_path / "start")
    ended = run(*ONE, "--iterations", steps, *mistake, "--output", tmp_path / "out")
    check_refusal(ended, "not finite", "step 1")
    assert start.code == 0
    torch.testing.assert_close(images(tmp_path / "out"), images(tmp_path / "start"))
    assert (tmp_path / "out" / "grid.png").exists() and not (tmp_path / "out" / "summary.json").exists()


def test_teacher_that_is_not_finite_is_named(run, tmp_path):
    models = ["--models", "tiny_a@random", "tiny_inf@random"]
    ended = run(*PLUGIN, *models, "--iterations", "4", "--output", tmp_path)
    check_refusal(ended, "of teacher tiny_inf ", "step 0")
    assert images(tmp_path).isfinite().all()


def test_ranks_tell_once_under_torchrun(tmp_path):
    (tmp_path / "net.pt").write_text("not weights at all")
    models = ["--models", "tiny_a@random", f"tiny_b@{tmp_path / 'net.pt'}"]
    arguments = [*PLUGIN, *models, "--output", tmp_path / "out"]
    ended = end(start(*arguments, torchrun=["--standalone", "--nproc-per-node", "2"]))
    assert ended.code != 0
    assert len(told(ended)) == 1 and "net.pt is not a weights file" in told(ended)[0]
    assert not any("invert.py" in line and "line" in line for line in ended.errors if line.startswith("  File"))
    assert not (tmp_path / "out").exists()


def test_ranks_that_diverge_stop_with_one_line(tmp_path):
    models = ["--models", "tiny_a@random", "tiny_inf@random"]
    ended = end(start(*PLUGIN, *models, "--nproc", "2", "--iterations", "4", "--output", tmp_path / "out"))
    check_refusal(ended, "of teacher tiny_inf ", "step 0")
    assert images(tmp_path / "out").isfinite().all()
