"""`invert.py train`: from the command line to the files, and every way it ends."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import ensemble.training.run as training_run
from ensemble import cli
from ensemble.applications.train import reproducing_command
from ensemble.config.yaml_files import load_yaml
from ensemble.runs.recipes import recipe_file
from ensemble.training.recipe import DataSpec
from ensemble.training.run import load_splits
from ensemble.training.weights import save_weights
from models import create_model, model_card
from models._bundled import with_bundled
from models.cifar import CIFAR10_CLASSES

ROOT = Path(__file__).resolve().parents[2]


def write_images(folder: Path, classes: tuple[str, ...], per_class: int = 2) -> Path:
    noise = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in classes:
            (folder / split / name).mkdir(parents=True)
            for i in range(per_class):
                pixels = noise.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def cifar_like(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"), CIFAR10_CLASSES)


def line(folder: Path, data: Path, *more: str) -> list[str]:
    """A command line for two epochs of 20 images, which writes into `folder`/out."""
    recipe = folder / "mine.yaml"
    recipe.write_text(
        f"model: resnet20_cifar@random\ndata: {{path: {data}}}\ncompile: false\n"
        "schedule: {epochs: 2, batch_size: 8, lr: 1e-2, precision: fp32}\n"
    )
    return ["train", "--recipe", str(recipe), "--output", str(folder / "out"), "--device", "cpu", *more]


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def epochs(folder: Path) -> list[int]:
    return [json.loads(text)["epoch"] for text in (folder / "metrics.jsonl").read_text().splitlines()]


def interrupted_after(epoch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while the next epoch computes."""
    evaluate, seen = training_run.train.__globals__["evaluate"], []

    def stops(*arguments: Any, **options: Any) -> float:
        if len(seen) == epoch:
            raise KeyboardInterrupt
        seen.append(None)
        return evaluate(*arguments, **options)

    monkeypatch.setitem(training_run.train.__globals__, "evaluate", stops)


# --- from end to end -----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*does not say its mean and std")  # of checkpoint.pt
def test_a_run(tmp_path: Path, cifar_like: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(line(tmp_path, cifar_like)) == 0
    output = tmp_path / "out"
    assert sorted(contents(output)) == [
        *("checkpoint.pt", "metrics.jsonl", "recipe.yaml", "summary.json", "weights.safetensors")
    ]
    summary = json.loads((output / "summary.json").read_text())
    assert (summary["train_images"], summary["test_images"], summary["epochs"]) == (20, 20, 2)
    assert epochs(output) == [1, 2]
    assert load_yaml(output / "recipe.yaml")["schedule"]["momentum"] == 0.9
    net, card = create_model(f"resnet20_cifar@{output / 'weights.safetensors'}")
    assert card.label_space == "cifar10" and torch.isfinite(net(torch.rand(1, 3, 32, 32))).all()
    create_model(f"resnet20_cifar@{output / 'checkpoint.pt'}")
    out = capsys.readouterr().out.splitlines()
    assert out[-1] == f"{output}: accuracy {summary['accuracy']:.2%} on 20 test images"


def test_trained_weights_keep_the_order_of_their_classes(tmp_path: Path, cifar_like: Path) -> None:
    """The same function with its rows in another order reads the same classes."""
    (tmp_path / "a").mkdir()
    assert cli.main(line(tmp_path / "a", cifar_like)) == 0
    trained, card = create_model(f"resnet20_cifar@{tmp_path / 'a/out/weights.safetensors'}")
    backwards = replace(card, class_names=tuple(reversed(card.class_names)), label_space="")
    with torch.no_grad():
        for parameter in (trained.linear.weight, trained.linear.bias):
            parameter.copy_(parameter.flip(0).clone())
    save_weights(trained, tmp_path / "back.safetensors", backwards)
    said = []
    for name in ("a/out/weights", "back"):
        (tmp_path / name).mkdir(parents=True)
        words = ["--set", f"model=resnet20_cifar@{tmp_path / name}.safetensors", "--set", "schedule.epochs=1"]
        assert cli.main(line(tmp_path / name, cifar_like, *words)) == 0
        said.append(json.loads((tmp_path / name / "out" / "metrics.jsonl").read_text()))
    assert said[0]["loss"] == pytest.approx(said[1]["loss"], rel=1e-4)
    kept = create_model(f"resnet20_cifar@{tmp_path / 'back/out/weights.safetensors'}")[1]
    assert kept.class_names == backwards.class_names


def test_folders_in_another_spelling_are_the_networks_classes(tmp_path: Path) -> None:
    data = DataSpec(str(write_images(tmp_path / "data", tuple(name.upper() for name in CIFAR10_CLASSES[::-1]))))
    card = model_card("resnet20_cifar")
    for split in load_splits(data, card, 4):
        assert split.class_names == CIFAR10_CLASSES and split.labels.bincount().tolist() == [2] * 10
    digits = DataSpec(str(write_images(tmp_path / "digits", tuple("0123456789"))))  # of whatever: not those of the card
    assert load_splits(digits, card, 4)[0].class_names == tuple("0123456789")
    learned = replace(card, class_names=tuple("9876543210"), label_space="")  # these are its own, in its order
    assert load_splits(digits, learned, 4)[0].class_names == learned.class_names


def test_other_data_are_not_gone_on_with(
    tmp_path: Path, cifar_like: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    other, moved = write_images(tmp_path / "other", CIFAR10_CLASSES[::-1], 3), tmp_path / "moved"
    shutil.copytree(cifar_like, moved)
    with monkeypatch.context() as patch:
        interrupted_after(1, patch)
        assert cli.main(line(tmp_path, cifar_like)) == 130
    retested = write_images(tmp_path / "retested", CIFAR10_CLASSES)
    shutil.rmtree(retested / "train")
    shutil.copytree(cifar_like / "train", retested / "train")
    for file in (retested / "test").rglob("*.png"):
        Image.new("RGB", (32, 32)).save(file)
    for finished in (False, True):
        before = contents(tmp_path / "out")
        assert cli.main(line(tmp_path, retested, "--resume")) == 2
        assert "holds other images or classes than where" in capsys.readouterr().err
        assert cli.main(line(tmp_path, other, "--resume")) == 2
        assert "holds other images or classes than where" in capsys.readouterr().err
        assert contents(tmp_path / "out") == before
        assert finished or cli.main(line(tmp_path, moved, "--resume")) == 0


def test_a_class_that_is_not_utf_8(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_images(tmp_path / "data", (*CIFAR10_CLASSES[1:], "caf\udce9"))
    assert cli.main(line(tmp_path, data)) == 2
    assert r"a class folder whose name is not UTF-8, 'caf\udce9'; rename it" in capsys.readouterr().err


def test_an_export_into_a_file_is_refused_first(
    tmp_path: Path, cifar_like: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert cli.main(line(tmp_path, cifar_like, "--export", str(tmp_path / "file"))) == 2
    assert "file is a file; give another folder" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_one_class_is_no_classification(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_images(tmp_path / "one", ("cat",))
    assert cli.main(line(tmp_path, data)) == 2
    assert "has one class; a classifier is trained on two or more" in capsys.readouterr().err


def test_interrupted_and_gone_on_with(
    tmp_path: Path, cifar_like: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "whole").mkdir()
    assert cli.main(line(tmp_path / "whole", cifar_like)) == 0
    options, output = line(tmp_path, cifar_like), tmp_path / "out"
    with monkeypatch.context() as patch:
        interrupted_after(1, patch)
        assert cli.main(options) == 130
    expected = "invert.py: interrupted; the same command with --resume goes on from the last whole epoch\n"
    assert capsys.readouterr().err == expected
    assert epochs(output) == [1] and not (output / "weights.safetensors").exists()
    assert cli.main(options) == 2
    assert "is not empty; pass resume (--resume)" in capsys.readouterr().err
    assert cli.main([*options, "--resume"]) == 0
    assert epochs(output) == [1, 2] and "resumed at step 1 of 2" in capsys.readouterr().out
    whole, resumed = (
        load_file(folder / "weights.safetensors") for folder in (tmp_path / "whole/out", tmp_path / "out")
    )
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_interrupted_while_overwriting(
    tmp_path: Path, cifar_like: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted_after(0, monkeypatch)
    assert cli.main(line(tmp_path, cifar_like, "--overwrite")) == 130
    assert "the same command with --resume instead of --overwrite goes on" in capsys.readouterr().err


def test_resume_begins_where_there_is_nothing(tmp_path: Path, cifar_like: Path) -> None:
    assert cli.main(line(tmp_path, cifar_like, "--resume")) == 0
    assert epochs(tmp_path / "out") == [1, 2]


def test_resume_begins_again_where_no_epoch_was_whole(
    tmp_path: Path, cifar_like: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupted_after(0, patch)
        assert cli.main(line(tmp_path, cifar_like)) == 130
    assert sorted(contents(tmp_path / "out")) == ["metrics.jsonl", "recipe.yaml"]
    assert cli.main(line(tmp_path, cifar_like, "--resume")) == 0
    assert epochs(tmp_path / "out") == [1, 2]


def test_a_finished_run(tmp_path: Path, cifar_like: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options, output = line(tmp_path, cifar_like), tmp_path / "out"
    assert cli.main(options) == 0
    before = contents(output)
    accuracy = json.loads(before["summary.json"])["accuracy"]
    capsys.readouterr()
    assert cli.main([*options, "--resume"]) == 0
    said = capsys.readouterr().out
    assert said == f"{output}: this run is finished: accuracy {accuracy:.2%} on 20 test images\n"
    assert cli.main([*options, "--resume", "--set", "seed=1", "--set", "schedule.lr=0.1"]) == 2
    assert (
        "holds a training run that differs in schedule.lr, seed; pass overwrite (--overwrite) instead"
        in capsys.readouterr().err
    )
    moved = tmp_path / "moved"
    moved.symlink_to(cifar_like)
    assert cli.main([*options, "--resume", "--set", f"data.path={moved}"]) == 0
    assert contents(output) == before


def test_overwrite(tmp_path: Path, cifar_like: Path) -> None:
    output = tmp_path / "out"
    assert cli.main(line(tmp_path, cifar_like)) == 0
    (output / "notes.txt").write_text("mine")
    before = contents(output)
    one_epoch = ("--set", "schedule.epochs=1", "--overwrite")
    assert cli.main(line(tmp_path, cifar_like, *one_epoch, "--set", "data.path=nowhere")) == 2
    assert contents(output) == before  # nothing is removed where the new run cannot begin
    assert cli.main(line(tmp_path, cifar_like, *one_epoch)) == 0
    after = contents(output)
    assert epochs(output) == [1] and after["notes.txt"] == b"mine" and after.keys() == before.keys()
    assert after["weights.safetensors"] != before["weights.safetensors"]


def test_overwrite_and_resume_exclude_each_other(
    tmp_path: Path, cifar_like: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(line(tmp_path, cifar_like, "--overwrite", "--resume")) == 2
    assert "not allowed with argument" in capsys.readouterr().err


# --- bundled weights -----------------------------------------------------------------------------------


def test_export(tmp_path: Path, cifar_like: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options, output, weights = line(tmp_path, cifar_like), tmp_path / "out", tmp_path / "weights"
    assert cli.main([*options, "--export", str(weights)]) == 0
    summary = json.loads((output / "summary.json").read_text())
    record = json.loads((weights / "resnet20_cifar.json").read_text())
    assert record["accuracy"] == summary["exported_accuracy"] and str(tmp_path) not in str(record)
    assert record["command"].startswith("python invert.py train --recipe mine.yaml ")
    assert f"{weights}: exported at accuracy {record['accuracy']:.2%}" in capsys.readouterr().out
    assert with_bundled(model_card("resnet20_cifar"), weights).weights["cifar10"].command == record["command"]


def test_another_trainings_weights_are_not_replaced(
    tmp_path: Path, cifar_like: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export = ["--export", str(tmp_path / "weights")]
    assert cli.main([*line(tmp_path, cifar_like), *export]) == 0
    before, trained = contents(tmp_path / "weights"), contents(tmp_path / "out")
    assert cli.main([*line(tmp_path, cifar_like), *export, "--resume"]) == 0
    assert contents(tmp_path / "weights") == before
    (tmp_path / "two").mkdir()
    other = [*line(tmp_path / "two", cifar_like), *export, "--set", "seed=7"]
    capsys.readouterr()
    assert cli.main(other) == 2
    assert "weights/resnet20_cifar.safetensors is another training's" in capsys.readouterr().err
    assert contents(tmp_path / "weights") == before and not (tmp_path / "two/out").exists()
    assert cli.main([*other, "--overwrite"]) == 0 and contents(tmp_path / "weights") != before
    assert trained.keys() == contents(tmp_path / "out").keys()


def test_a_finished_run_can_still_be_exported(tmp_path: Path, cifar_like: Path) -> None:
    (tmp_path / "one").mkdir()
    assert cli.main(line(tmp_path / "one", cifar_like, "--export", str(tmp_path / "one/weights"))) == 0
    assert cli.main(line(tmp_path, cifar_like)) == 0
    before = contents(tmp_path / "out")
    assert cli.main(line(tmp_path, cifar_like, "--resume", "--export", str(tmp_path / "weights"))) == 0
    after = contents(tmp_path / "out")
    assert {name for name in after if after[name] != before[name]} == {"summary.json"}
    assert contents(tmp_path / "weights") == contents(tmp_path / "one/weights")


def test_weights_that_cannot_be_rounded_are_kept_as_they_are(
    tmp_path: Path, cifar_like: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    train = training_run.train

    def too_large(*arguments: Any, **options: Any) -> torch.nn.Module:
        net = train(*arguments, **options)
        with torch.no_grad():
            net.linear.weight[0, 0] = 1e6
        return net

    monkeypatch.setattr(training_run, "train", too_large)
    assert cli.main(line(tmp_path, cifar_like, "--export", str(tmp_path / "weights"))) == 2
    assert "linear.weight of resnet20_cifar do not fit into fp16" in capsys.readouterr().err
    saved = load_file(tmp_path / "out/weights.safetensors")
    assert saved["linear.weight"][0, 0] == 1e6 and (tmp_path / "out/summary.json").is_file()
    assert not (tmp_path / "weights").exists()


def test_reproducing_command_names_no_place_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    expected = "python invert.py train --recipe {} --set seed=1 --output results/a --export models/weights"
    for file, shown in ((tmp_path / "recipes/a.yaml", "recipes/a.yaml"), (tmp_path.parent / "a.yaml", "a.yaml")):
        file.parent.mkdir(exist_ok=True)
        file.touch()
        given = argparse.Namespace(recipe=str(file), set=["data.path=/somewhere/else", "seed=1"], plugin=[])
        assert reproducing_command(file, given) == expected.format(shown)
    given = argparse.Namespace(recipe="a", set=["seed=1"], plugin=[str(tmp_path / "my nets.py")])
    named = expected.format("a").replace("seed=1", "seed=1 --plugin 'my nets.py'")
    assert reproducing_command(tmp_path.parent / "training/a.yaml", given) == named


def test_bundled_records_are_reproduced_by_their_recipes() -> None:
    records = sorted((ROOT / "models/weights").glob("*.json"))
    assert len(records) == 5
    for record in records:
        name = record.stem
        given = argparse.Namespace(recipe=str(ROOT / f"recipes/training/{name}.yaml"), set=[], plugin=[])
        command = json.loads(record.read_text())["command"]
        assert command == reproducing_command(Path(given.recipe), given)


# --- recipes by name -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet20_cifar", "edge_popup/dense", "training/resnet20_cifar"])
def test_shipped_training_recipes_by_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert recipe_file(name, "training") == ROOT / f"recipes/training/{name.removeprefix('training/')}.yaml"


def test_a_file_wins_over_a_shipped_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("resnet20_cifar").touch()
    assert recipe_file("resnet20_cifar", "training") == Path("resnet20_cifar")


def test_a_run_by_name(tmp_path: Path, cifar_like: Path) -> None:
    small = ("schedule.epochs=1", "schedule.batch_size=8", "compile=false", f"data.path={cifar_like}")
    words = ["train", "--recipe", "resnet20_cifar", "--output", str(tmp_path / "out"), "--device", "cpu"]
    assert cli.main([*words, *(word for text in small for word in ("--set", text))]) == 0
    assert load_yaml(tmp_path / "out/recipe.yaml")["schedule"]["precision"] == "bf16"


# --- what goes wrong -----------------------------------------------------------------------------------


def test_data_of_other_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_images(tmp_path / "images", ("cat", "zebra"), per_class=8)
    options = line(tmp_path, data)
    assert cli.main(options) == 2
    assert "ask for resnet20_cifar:num_classes=2@random" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    spec = "resnet20_cifar:num_classes=2,width=0.25"
    small = ["--set", "data.size=16", "--set", "augmentation.flip=false", "--set", "schedule.epochs=1"]
    assert cli.main([*options, "--set", f"model={spec}@random", *small]) == 0
    trained = f"{spec}@{tmp_path / 'out/weights.safetensors'}"
    _, card = create_model(trained)
    assert (card.class_names, card.label_space, card.input_size) == (("cat", "zebra"), "", 16)
    known = model_card(trained)  # before the weights are read
    assert (known.class_names, known.label_space, known.input_size) == (("cat", "zebra"), "", 16)


def test_data_whose_splits_differ(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_images(tmp_path / "images", CIFAR10_CLASSES, per_class=1)
    (data / "test/cat").rename(data / "test/zebra")
    assert cli.main(line(tmp_path, data)) == 2
    assert "the splits train (" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--set", "schedule.epcohs=3"], "schedule.epcohs: unknown key; did you mean 'epochs'?"),
        (["--set", "model=resnet20_cifr@random"], "did you mean resnet20_cifar"),
        (["--set", "data.path=nowhere"], "nowhere does not exist"),
        (["--set", "augmentation.crop_padding=32"], "crop_padding: 32 must be below the image size 32"),
        (["--set", "schedule.batch_size=21"], "20 images are fewer than one batch of 21"),
        (["--set", "schedule"], "override 'schedule': expected path=value"),
        (["--device", "tpu"], "'tpu' is none of auto, cpu"),
        (["--epochs", "3"], "unrecognized arguments: --epochs 3; see invert.py train --help"),
        (["--recipe", "none.yaml"], "none.yaml: cannot be read"),
        (["--recipe", "resnet20_cifr"], "did you mean 'training/resnet20_cifar'?"),
        (["--export", "w", "--set", "model=resnet20_cifar:width=0.5@random"], "register resnet20_cifar:width=0.5"),
        (["--export", "w", "--set", "model=timm/resnet18@random"], "another library's network"),
        (["--export", "w", "--set", "data.size=16"], "the data's classes or size are not those of resnet20_cifar"),
    ],
)
def test_users_mistakes(
    tmp_path: Path, cifar_like: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    assert cli.main(line(tmp_path, cifar_like, *more)) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and len(error.splitlines()) == 1 and error.startswith("invert.py: ")
    assert not (tmp_path / "out").exists()


def test_all_mistakes_at_once(tmp_path: Path, cifar_like: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(line(tmp_path, cifar_like, "--set", "schedule.epochs=0", "--set", "data.size=0")) == 2
    first, *mistakes = capsys.readouterr().err.splitlines()
    assert first == "invert.py: 2 mistakes"
    assert [text.split(":")[0] for text in mistakes] == ["data.size", "schedule.epochs"]


def test_an_inversion_recipe_is_no_training_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--recipe", "quickstart", "--output", str(tmp_path / "out")]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    other = "recipe quickstart: this file is one of invert.py --recipe; a recipe of a training names model and data"
    assert said == f"invert.py: {other}"


@pytest.mark.parametrize("missing", ["--recipe", "--output"])
def test_what_has_to_be_given(missing: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = {"--recipe": "resnet20_cifar", "--output": "out"}
    del words[missing]
    assert cli.main(["train", *(word for pair in words.items() for word in pair)]) == 2
    assert f"the following arguments are required: {missing}" in capsys.readouterr().err


def test_a_full_disk(
    tmp_path: Path, cifar_like: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device", "out/checkpoint.pt")

    monkeypatch.setattr("ensemble.training.folder.write_bytes", full)
    assert cli.main(line(tmp_path, cifar_like)) == 1
    assert capsys.readouterr().err.strip() == "invert.py: out/checkpoint.pt: No space left on device"


def raises(error: BaseException) -> Callable[..., Any]:
    def act(*arguments: Any, **options: Any) -> Any:
        raise error

    return act


def test_out_of_memory(
    tmp_path: Path, cifar_like: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_run, "train", raises(torch.OutOfMemoryError("CUDA out of memory")))
    assert cli.main(line(tmp_path, cifar_like)) == 1
    error = capsys.readouterr().err.strip()
    assert error == "invert.py: out of memory; a smaller batch, --set schedule.batch_size=N, needs less"


def test_a_mistake_of_ours_keeps_its_traceback(
    tmp_path: Path, cifar_like: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_run, "train", raises(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main(line(tmp_path, cifar_like))


@pytest.mark.parametrize("error", [BrokenPipeError(32, "Broken pipe"), UnicodeEncodeError("ascii", "é", 0, 1, "no")])
def test_a_display_that_fails_costs_nothing(
    tmp_path: Path, cifar_like: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    class Broken:
        start = step = message = close = raises(error)

    monkeypatch.setattr("ensemble.machine.progress.progress_reporter", Broken)
    assert cli.main(line(tmp_path, cifar_like)) == 0
    assert epochs(tmp_path / "out") == [1, 2] and (tmp_path / "out/summary.json").is_file()


def test_results_are_written_before_anything_is_said_of_them(
    tmp_path: Path, cifar_like: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.print", raises(BrokenPipeError(32, "Broken pipe")))
    with pytest.raises(BrokenPipeError):  # also cli.main's own line cannot be printed
        cli.main(line(tmp_path, cifar_like))
    assert (tmp_path / "out/summary.json").is_file() and (tmp_path / "out/weights.safetensors").is_file()


# --- processes of their own ----------------------------------------------------------------------------


def started(words: list[str], **options: Any) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "invert.py"), *words]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, **options)


def test_a_live_training_keeps_its_folder_and_is_ended_by_a_closed_terminal(
    tmp_path: Path, cifar_like: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, output = line(tmp_path, cifar_like, "--set", "schedule.epochs=100000"), tmp_path / "out"
    process = started(words, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (output / "checkpoint.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    for how in ([], ["--overwrite"], ["--resume"]):
        assert cli.main([*words, *how]) == 2
        error = capsys.readouterr().err
        assert f"{output} is in use by process {process.pid} on " in error and error.count("\n") == 1
    process.send_signal(signal.SIGHUP)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGHUP
    said = "invert.py: interrupted by SIGHUP; the same command with --resume goes on from the last whole epoch\n"
    assert errors == said
    done = torch.load(output / "checkpoint.pt", weights_only=True)["epoch"]
    assert epochs(output)[:done] == list(range(1, done + 1)) and len(epochs(output)) - done in (0, 1)
    assert not (output / ".lock").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_it_at_once_and_it_goes_on(
    tmp_path: Path, cifar_like: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    evaluate = training_run.train.__globals__["evaluate"]

    def struck(*arguments: Any, **options: Any) -> float:
        os.kill(os.getpid(), number)
        return evaluate(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setitem(training_run.train.__globals__, "evaluate", struck)
        assert cli.main(line(tmp_path, cifar_like)) == 128 + number
    assert not (tmp_path / "out/checkpoint.pt").exists()
    assert cli.main(line(tmp_path, cifar_like, "--resume")) == 0 and epochs(tmp_path / "out") == [1, 2]


def test_output_that_cannot_be_written(tmp_path: Path, cifar_like: Path) -> None:
    with open("/dev/full", "w") as full:
        process = started(line(tmp_path, cifar_like), stdout=full)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 0 and not errors
    assert (tmp_path / "out/weights.safetensors").is_file() and (tmp_path / "out/summary.json").is_file()


def test_a_mistake_leaves_no_folder(tmp_path: Path, cifar_like: Path) -> None:
    assert cli.main(line(tmp_path, cifar_like, "--set", "schedule.batch_size=21")) == 2
    assert not (tmp_path / "out").exists()


def test_a_lock_that_a_crash_left_is_no_content(tmp_path: Path, cifar_like: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/.lock").touch()
    assert cli.main(line(tmp_path, cifar_like)) == 0
