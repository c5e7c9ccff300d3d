"""`invert.py distill`: from the command line to the files, and every way it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_datasets import write_dataset
from PIL import Image
from safetensors.torch import load_file

import ensemble.training.loop as loop
from ensemble import cli
from ensemble.config.yaml_files import load_yaml
from ensemble.data.labelled import load_images
from ensemble.machine import hardware
from ensemble.machine.rng import generator
from ensemble.training.distillation import DistillationRecipe, StudentSchedule, parse_distillation_recipe
from ensemble.training.pool import Source, read_pool
from ensemble.training.reading import evaluate, inputs_of, recalibrate_bn
from ensemble.training.student import prepare
from ensemble.training.teachers import made_teacher
from models import create_model, model_card
from models.cifar import CIFAR10_CLASSES

ROOT = Path(__file__).resolve().parents[2]
SHUFFLED = tuple(CIFAR10_CLASSES[i] for i in (3, 1, 4, 0, 5, 9, 2, 6, 8, 7))
STUDENT = "resnet20_cifar:width=0.25"
FILES = ["checkpoint.pt", "metrics.jsonl", "recipe.yaml", "summary.json", "weights.safetensors"]


def pictures(n: int, seed: int, names: tuple[str, ...], size: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of n times all classes, each class of one brightness and of stripes one way or the other."""
    rng = generator(seed, "pictures")
    labels = torch.arange(n) % len(names)
    brightness = torch.tensor([(*CIFAR10_CLASSES[:9], name).index(name) for name in names])[labels]
    images = 30 + 20 * brightness[:, None, None, None] + 12 * torch.randn(n, 3, size, size, generator=rng)
    return images.clamp(0, 255).to(torch.uint8), labels


def a_dataset(
    folder: Path, n: int = 20, seed: int = 0, names: tuple[str, ...] = SHUFFLED, size: int = 16, **options: Any
) -> Path:
    images, targets = pictures(n, seed, names, size)
    said = 4 * torch.nn.functional.one_hot(targets, len(names)) + torch.randn(n, len(names), generator=generator(seed))
    model = {"first": {"model": "resnet20_cifar", "sha256": None}}
    return write_dataset(folder, images, targets, names, {"first": said}, options.pop("teachers", model), **options)


def real_images(folder: Path, names: tuple[str, ...] = CIFAR10_CLASSES, per_class: int = 3, size: int = 16) -> Path:
    for split, seed in (("test", 7), ("train", 8)):
        images, labels = pictures(per_class * len(names), seed, names, size)
        for i, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
            (folder / split / names[label]).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / split / names[label] / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return a_dataset(tmp_path_factory.mktemp("made") / "set")


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return real_images(tmp_path_factory.mktemp("real"))


def line(folder: Path, dataset: Path, *more: str) -> list[str]:
    """Two epochs of two batches, into `folder`/out."""
    small = ("schedule.batch_size=8", "schedule.precision=fp32")
    words = ["distill", "--dataset", str(dataset), "--student", STUDENT, "--epochs", "2", "--device", "cpu"]
    return [*words, *(word for text in small for word in ("--set", text)), "--output", str(folder / "out"), *more]


def summary_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "out/summary.json").read_text())


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in (folder / "out/metrics.jsonl").read_text().splitlines()]


def interrupted_after(epoch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while the next epoch computes."""
    read, seen = loop.evaluate, []

    def stops(*arguments: Any, **options: Any) -> float:
        if len(seen) == epoch:
            raise KeyboardInterrupt
        seen.append(None)
        return read(*arguments, **options)

    monkeypatch.setattr(loop, "evaluate", stops)


def refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and len(error.splitlines()) == 1 and error.startswith("invert.py: "), error


# --- from end to end -----------------------------------------------------------------------------------


def test_a_run_goes_on_in_the_precision_that_it_began_in(
    tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ("--labels", "hard", "--set", "schedule.precision=auto")
    with monkeypatch.context() as patch:
        patch.setattr(hardware, "computes_in_bf16", lambda device: True)
        interrupted_after(1, patch)
        assert cli.main(line(tmp_path, dataset, *more)) == 130
    monkeypatch.setattr(hardware, "computes_in_bf16", lambda device: False)
    assert cli.main([*line(tmp_path, dataset, *more), "--resume"]) == 0
    assert summary_of(tmp_path)["precision"] == "bf16"


def test_classes_without_names_are_tested_by_their_numbers(tmp_path: Path) -> None:
    names = CIFAR10_CLASSES[:3]
    images, targets = pictures(20, 0, names)
    made = write_dataset(tmp_path / "set", images, targets, (), {"first": torch.randn(20, 3)})
    real = real_images(tmp_path / "real", names)
    for folder in sorted(real.glob("*/*")):
        folder.rename(folder.with_name(str(names.index(folder.name))))
    more = ("--student", "resnet20_cifar:width=0.25,num_classes=3", "--labels", "hard", "--test", str(real))
    assert cli.main(line(tmp_path, made, *more)) == 0
    assert summary_of(tmp_path)["real_images_read"] == {"images": 9, "split": "test"}
    recipe = parse_distillation_recipe(load_yaml(tmp_path / "out/recipe.yaml"))
    found = prepare(recipe).test_set
    brightness = torch.tensor([float(found.images[found.labels == k].float().mean()) for k in range(3)])
    assert (brightness.diff() > 10).all()  # each number is its class: these are brighter and brighter


@pytest.mark.parametrize("labels", ["hard", "stored", "live"])
def test_a_run(labels: str, tmp_path: Path, dataset: Path, real: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Classes stand in another order in the dataset than in the student's card and in the folders of real images."""
    more = ("--labels", labels, "--test", str(real), "--diagnose", "--set", "test_every=1")
    assert cli.main(line(tmp_path, dataset, *more)) == 0
    output = tmp_path / "out"
    assert sorted(file.name for file in output.iterdir()) == FILES
    summary, rows = summary_of(tmp_path), rows_of(tmp_path)
    assert (summary["labels"], summary["images"], summary["epochs"], summary["steps"]) == (labels, 20, 2, 4)
    assert summary["teachers"] == ([] if labels == "hard" else ["first"]) and summary["views_seen"] == 32
    assert summary["real_images_read"] == {"images": 30, "split": "test"}
    assert summary["diagnosis"]["real_images_read"] == {"images": 30, "split": "train"}
    assert [row["epoch"] for row in rows] == [1, 2] and all(0 <= row["agreement"] <= 1 for row in rows)
    best = max(row["test_accuracy"] for row in rows)
    assert summary["best_along_the_way"]["test_accuracy"] == best
    assert summary["best_along_the_way"]["note"] == "chosen on the test images: not to be reported"
    assert load_yaml(output / "recipe.yaml")["lesson"]["kind"] == labels
    net, card = create_model(f"{STUDENT}@{output / 'weights.safetensors'}")
    assert card.class_names == CIFAR10_CLASSES and card.input_size == 16
    test_set = load_images(real, "test", 16)
    order = torch.tensor([card.class_names.index(name) for name in test_set.class_names])
    test_set = type(test_set)(test_set.images, order[test_set.labels], card.class_names)
    assert evaluate(net, card, test_set, torch.device("cpu")) == summary["test_accuracy"]
    recalibrate_bn(net, inputs_of(load_images(real, "train", 16).images, card, torch.device("cpu")))
    found = summary["diagnosis"]["test_accuracy_with_real_bn_statistics"]
    assert evaluate(net, card, test_set, torch.device("cpu")) == pytest.approx(found, abs=0.04)
    out = capsys.readouterr().out.splitlines()
    said = f"{output}: {labels} labels of 20 images, 2 epochs; test accuracy {summary['test_accuracy']:.2%} on 30 real"
    assert out[-3].startswith(said) and "not to be reported" in out[-2] and "a diagnosis" in out[-1]


def test_classes_are_matched_by_name(tmp_path: Path) -> None:
    """Brightness says the class. Matched by place, a dataset in another order would teach another class."""
    one = a_dataset(tmp_path / "one", 40, size=8)
    two = a_dataset(tmp_path / "two", 40, 1, CIFAR10_CLASSES[::-1], size=8)
    real = real_images(tmp_path / "real", size=8)
    more = ("--labels", "hard", "--dataset", str(two), "--test", str(real), "--epochs", "20")
    words = line(tmp_path, one, *more, "--set", "schedule.lr=0.02")
    assert cli.main(words) == 0
    assert summary_of(tmp_path)["images"] == 80 and summary_of(tmp_path)["test_accuracy"] > 0.6


def test_real_images_have_the_students_labels(tmp_path: Path) -> None:
    """The student takes the dataset's order of classes, folders are sorted; brightness says the class."""
    names = ("frog", "cat", "deer")
    made, real = a_dataset(tmp_path / "set", 9, names=names), real_images(tmp_path / "real", names)
    asked = {"student": f"{STUDENT},num_classes=3", "dataset": [str(made)], "schedule": {"batch_size": 9}}
    recipe = parse_distillation_recipe(asked | {"test": {"path": str(real)}, "diagnose": True})
    student = prepare(recipe)
    assert student.card.class_names == names
    for data in (student.pool.data, student.test_set, student.real_set):
        assert data is not None and data.class_names == names
        brightness = [30 + 20 * CIFAR10_CLASSES.index(names[label]) for label in data.labels]
        np.testing.assert_allclose(data.images.float().mean((1, 2, 3)), brightness, atol=3)


def test_without_real_images_none_is_read(tmp_path: Path, dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(line(tmp_path, dataset, "--labels", "hard")) == 0
    summary = summary_of(tmp_path)
    assert summary["test_accuracy"] is None and summary["real_images_read"] == {"images": 0, "split": None}
    assert "best_along_the_way" not in summary and "diagnosis" not in summary
    said = capsys.readouterr().out.splitlines()[-1]
    assert said == f"{tmp_path / 'out'}: hard labels of 20 images, 2 epochs; no real images were read"


def test_the_last_epoch_counts(tmp_path: Path, dataset: Path, real: Path) -> None:
    """Tests along the way change nothing, and by default there are none."""
    for name, more in (("a", ()), ("b", ("--set", "test_every=2"))):
        (tmp_path / name).mkdir()
        assert cli.main(line(tmp_path / name, dataset, "--labels", "stored", "--test", str(real), *more)) == 0
    a, b = summary_of(tmp_path / "a"), summary_of(tmp_path / "b")
    assert a["sha256"] == b["sha256"] and a["test_accuracy"] == b["test_accuracy"]
    assert ["test_accuracy" in row for row in rows_of(tmp_path / "b")] == [False, True]
    assert not any("test_accuracy" in row for row in rows_of(tmp_path / "a")) and "best_along_the_way" not in a


def test_the_best_along_the_way_is_of_the_test_that_is_asked_for(tmp_path: Path, dataset: Path, real: Path) -> None:
    other = real_images(tmp_path / "other", per_class=2)
    every = [*line(tmp_path, dataset, "--labels", "stored", "--set", "test_every=1"), "--test"]
    assert cli.main([*every, str(other)]) == 0 and all("test_accuracy" in row for row in rows_of(tmp_path))
    assert cli.main([*every, str(real), "--resume"]) == 0
    assert not any("test_accuracy" in row for row in rows_of(tmp_path))
    assert "best_along_the_way" not in summary_of(tmp_path)


def test_a_student_begins_untrained(tmp_path: Path, dataset: Path) -> None:
    def weights(student: str, seed: int = 0) -> torch.Tensor:
        recipe = DistillationRecipe(student, (str(dataset),), seed=seed, schedule=StudentSchedule(batch_size=20))
        return next(prepare(recipe).net.parameters())

    bundled = next(create_model("resnet20_cifar")[0].parameters())
    plain = weights("resnet20_cifar")
    assert torch.equal(plain, weights("resnet20_cifar@random")) and not torch.equal(plain, bundled)
    assert torch.equal(weights("resnet20_cifar@cifar10"), bundled)  # who asks for them has them
    assert not torch.equal(plain, weights("resnet20_cifar", 1))


def test_a_student_of_the_datasets_own_classes(tmp_path: Path) -> None:
    names = tuple(f"thing {i}" for i in range(3))
    images, targets = torch.randint(0, 256, (9, 3, 16, 16), dtype=torch.uint8), torch.arange(9) % 3
    made = write_dataset(tmp_path / "set", images, targets, names, {"a": torch.randn(9, 3)})
    words = line(tmp_path, made, "--labels", "stored", "--student", "resnet20_cifar:num_classes=3")
    assert cli.main(words) == 0
    _, card = create_model(f"resnet20_cifar:num_classes=3@{tmp_path / 'out/weights.safetensors'}")
    assert (card.class_names, card.input_size, card.label_space) == (names, 16, "")


def test_other_teachers(tmp_path: Path, dataset: Path) -> None:
    teachers = ("wrn16_2_cifar", "first")
    words = line(tmp_path, dataset, *(word for name in teachers for word in ("--teacher", name)), "--epochs", "1")
    assert cli.main(words) == 0
    assert summary_of(tmp_path)["teachers"] == [*teachers]
    assert load_yaml(tmp_path / "out/recipe.yaml")["lesson"]["teachers"] == [*teachers]


# --- recipes -------------------------------------------------------------------------------------------


def test_a_shipped_recipe_by_name(tmp_path: Path, dataset: Path) -> None:
    words = line(
        tmp_path, dataset, "--recipe", "cifar10", "--labels", "hard", "--seed", "5", "--set", "schedule.lr=0.5"
    )
    assert cli.main(words) == 0
    recipe = load_yaml(tmp_path / "out/recipe.yaml")
    assert (recipe["student"], recipe["dataset"], recipe["seed"]) == (STUDENT, [str(dataset)], 5)
    assert recipe["lesson"] == {"kind": "hard"} and recipe["schedule"]["lr"] == 0.5
    assert recipe["schedule"]["optimizer"] == "adamw" and recipe["schedule"]["epochs"] == 2


@pytest.mark.parametrize("kind", ["{kind: live, ", "{"])
@pytest.mark.parametrize("labels", ["stored", "live", "hard"])
def test_a_recipes_temperature_is_that_of_all_soft_labels(
    labels: str, kind: str, tmp_path: Path, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(f"student: {STUDENT}\ndataset: [{dataset}]\nlesson: {kind}temperature: 20}}\n")
    words = line(tmp_path, dataset, "--recipe", str(recipe), "--labels", labels)
    assert cli.main(words) == 0
    lesson = load_yaml(tmp_path / "out/recipe.yaml")["lesson"]
    assert (lesson["kind"], lesson.get("temperature")) == (labels, None if labels == "hard" else 20)
    recipe.write_text(recipe.read_text().replace("temperature", "temprature"))
    refused(words, "lesson.temprature: unknown key", capsys)


def test_the_shipped_recipe_says_the_defaults() -> None:
    shipped = parse_distillation_recipe(load_yaml(ROOT / "recipes/distillation/cifar10.yaml"))
    assert shipped == DistillationRecipe("resnet20_cifar@random", ("results/set",))


def test_what_a_recipe_leaves_out_is_the_students_default() -> None:
    recipe = parse_distillation_recipe({"student": "a", "dataset": ["b"], "schedule": {"epochs": 3}})
    assert recipe.schedule == type(recipe.schedule)(epochs=3) and recipe.schedule.optimizer == "adamw"


# --- interrupted, gone on with -------------------------------------------------------------------------


@pytest.mark.parametrize("labels", ["stored", "live"])
def test_interrupted_and_gone_on_with(
    labels: str, tmp_path: Path, dataset: Path, real: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    (tmp_path / "whole").mkdir()
    more = ("--labels", labels, "--test", str(real), "--set", "schedule.ema=0.5")
    assert cli.main(line(tmp_path / "whole", dataset, *more)) == 0
    words = line(tmp_path, dataset, *more)
    with monkeypatch.context() as patch:
        interrupted_after(1, patch)
        assert cli.main(words) == 130
    assert "the same command with --resume goes on from the last whole epoch" in capsys.readouterr().err
    assert not (tmp_path / "out/weights.safetensors").exists()
    refused(words, "is not empty; pass resume (--resume)", capsys)
    assert cli.main([*words, "--resume"]) == 0
    assert "resumed at step 1 of 2" in capsys.readouterr().out
    whole, resumed = (folder / "out/weights.safetensors" for folder in (tmp_path / "whole", tmp_path))
    assert whole.read_bytes() == resumed.read_bytes()
    accuracies = [summary_of(folder)["test_accuracy"] for folder in (tmp_path / "whole", tmp_path)]
    assert accuracies[0] == accuracies[1]
    same = [{**row, "seconds": 0} for row in rows_of(tmp_path / "whole")]
    assert [{**row, "seconds": 0} for row in rows_of(tmp_path)] == same


def test_killed_and_gone_on_with(tmp_path: Path) -> None:
    """A process that SIGKILL ends at its third epoch or later ends, gone on with, in the bytes of another one."""
    small = a_dataset(tmp_path / "set", size=8)
    words = line(tmp_path, small, "--labels", "stored", "--epochs", "12")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    begun = subprocess.Popen([sys.executable, "invert.py", *words], cwd=ROOT, env=environment)
    metrics = tmp_path / "out/metrics.jsonl"
    while not metrics.exists() or metrics.read_text().count("\n") < 3:
        assert begun.poll() is None
        time.sleep(0.01)
    begun.send_signal(signal.SIGKILL)
    begun.wait()
    assert not (tmp_path / "out/summary.json").exists()
    run = subprocess.run([sys.executable, "invert.py", *words, "--resume"], cwd=ROOT, env=environment)
    assert run.returncode == 0 and [row["epoch"] for row in rows_of(tmp_path)] == [*range(1, 13)]
    (tmp_path / "whole").mkdir()
    words[words.index("--output") + 1] = str(tmp_path / "whole/out")
    assert subprocess.run([sys.executable, "invert.py", *words], cwd=ROOT, env=environment).returncode == 0
    whole, resumed = (load_file(folder / "out/weights.safetensors") for folder in (tmp_path / "whole", tmp_path))
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_a_finished_run(tmp_path: Path, dataset: Path, real: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is left as it is, and may be tested later."""
    words, output = line(tmp_path, dataset, "--labels", "hard"), tmp_path / "out"
    assert cli.main(words) == 0
    before = {file.name: file.read_bytes() for file in output.iterdir()}
    assert cli.main([*words, "--resume"]) == 0
    assert {file.name: file.read_bytes() for file in output.iterdir()} == before
    assert cli.main([*words, "--resume", "--test", str(real)]) == 0
    summary = summary_of(tmp_path)
    assert summary["test_accuracy"] is not None and summary["sha256"] == json.loads(before["summary.json"])["sha256"]
    refused(
        [*words, "--resume", "--seed", "1"],
        "holds a distillation that differs in seed; pass overwrite (--overwrite)",
        capsys,
    )
    refused([*words, "--resume", "--labels", "stored"], "differs in lesson.kind", capsys)
    other = a_dataset(tmp_path / "other", seed=1)
    words[words.index("--dataset") + 1] = str(other)
    refused([*words, "--resume", "--test", str(real), "--test-split", "train"], "holds other images now", capsys)
    assert summary_of(tmp_path) == summary
    assert cli.main([*words, "--overwrite"]) == 0
    assert summary_of(tmp_path)["sha256"] != summary["sha256"]


def test_a_folder_of_a_training_run_is_not_ours(
    tmp_path: Path, dataset: Path, real: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ("schedule.epochs=1", "schedule.batch_size=8", "compile=false", f"data.path={real}")
    words = ["train", "--recipe", "resnet20_cifar", "--output", str(tmp_path / "out"), "--device", "cpu"]
    assert cli.main([*words, *(word for text in small for word in ("--set", text))]) == 0
    refused(line(tmp_path, dataset, "--overwrite"), "is no distillation's, and is not replaced", capsys)
    refused(line(tmp_path, dataset, "--resume"), "holds other files and no distillation; give another folder", capsys)


# --- what goes wrong -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--dataset", "nowhere"], "nowhere holds no "),
        (["--student", "resnet20_cifr"], "did you mean resnet20_cifar"),
        (
            ["--student", "resnet20_cifar:num_classes=3"],
            "has 3 classes, the dataset 10; ask for resnet20_cifar:num",
        ),
        (["--student", "vit_b_16:num_classes=10"], "student: vit_b_16: its forward pass fails on images of 16 x 16"),
        (["--labels", "soft"], "invalid choice: 'soft'"),
        (["--labels", "hard", "--teacher", "resnet20_cifar"], "--teacher: hard labels have no teachers; leave it out"),
        (["--labels", "stored", "--teacher", "other"], "no logits of other are stored; name some of first"),
        (["--teacher", "resnet20_cifar@none.pth"], "none.pth"),
        (["--epochs", "0"], "schedule.epochs: must be"),
        (["--epochs", "x"], "argument --epochs: invalid int value"),
        (["--set", "schedule.batch_size=21"], "20 images are fewer than one batch of 21; set schedule.batch_size"),
        (["--set", "schedule.batch_size=21", "--test", "nowhere"], "set schedule.batch_size to 20 or less"),
        (["--set", "schedule.label_smoothing=0.1"], "schedule.label_smoothing: soft labels are not smoothed; leave"),
        (["--set", "lesson.divergence=mse", "--set", "lesson.scale=false"], "lesson.scale: there is no T² in a"),
        (["--labels", "stored", "--teacher", "one", "--teacher", "one"], "lesson.teachers: one is named twice"),
        (["--set", "epochs=2"], "epochs: unknown key; did you mean 'schedule.epochs'?"),
        (["--set", "lesson.temprature=2"], "lesson.temprature: unknown key; did you mean 'temperature'?"),
        (["--set", "augmentation={mixup: 1, cutmix: 1}"], "mixup and cutmix exclude each other"),
        (["--test", "nowhere"], "nowhere does not exist"),
        (["--test-split", "val"], "--test-split names a part of real images; give them, as --test DATA"),
        (["--diagnose"], "diagnose: there is nothing to test on; give real images, as --test DATA"),
        (["--set", "test_every=2"], "test_every: there is nothing to test on"),
        (["--recipe", "cifar11"], "recipe 'cifar11' is neither a file nor a shipped recipe"),
        (
            ["--recipe", "quickstart"],
            "recipe quickstart: this file is one of invert.py --recipe; a recipe of a student",
        ),
        (
            ["--recipe", "training/resnet20_cifar"],
            "this file is one of invert.py train --recipe; a recipe of a student",
        ),
        (["--device", "tpu"], "'tpu' is none of auto, cpu"),
        (["--overwrite", "--resume"], "not allowed with argument"),
        (["--export", "x"], "unrecognized arguments: --export x"),
    ],
)
def test_users_mistakes(
    tmp_path: Path, dataset: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    assert cli.main(line(tmp_path, dataset, *more)) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and error.startswith("invert.py: ") and "Traceback" not in error
    assert len(error.splitlines()) == 1 or "mistakes" in error.splitlines()[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("missing", ["--dataset", "--student", "--output"])
def test_what_has_to_be_given(missing: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = {"--dataset": "a", "--student": "b", "--output": "out"}
    del words[missing]
    refused(["distill", *(word for pair in words.items() for word in pair)], missing, capsys)


def test_real_images_of_other_classes(
    tmp_path: Path, dataset: Path, real: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = real_images(tmp_path / "other")
    (other / "test/cat").rename(other / "test/zebra")
    words = line(tmp_path, dataset, "--labels", "hard", "--test")
    refused([*words, str(other)], "test, has other classes than the dataset (zebra); name its folders as", capsys)
    fewer = real_images(tmp_path / "fewer", CIFAR10_CLASSES[:9])
    refused([*words, str(fewer)], "lacks classes that images were made for (truck)", capsys)
    (real_images(tmp_path / "half") / "train").rename(tmp_path / "half/elsewhere")
    refused([*words, str(tmp_path / "half"), "--diagnose"], "train", capsys)
    assert not (tmp_path / "out").exists()


def test_classes_that_no_image_was_made_for_are_told(
    tmp_path: Path, real: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, targets = pictures(20, 0, CIFAR10_CLASSES)
    few = targets < 8  # no ship and no truck
    logits = {"first": torch.zeros(int(few.sum()), 10)}
    made = write_dataset(tmp_path / "set", images[few], targets[few], CIFAR10_CLASSES, logits)
    words = line(tmp_path, made, "--labels", "hard", "--test", str(real), "--set", "schedule.batch_size=4")
    assert cli.main(words) == 0
    assert "warning: test: no image was made for ship, truck; the accuracy is of these" in capsys.readouterr().out


def test_real_images_of_the_classes_that_images_were_made_for(tmp_path: Path) -> None:
    """A few of ImageNet's thousand, in folders called as there, by WordNet's numbers."""
    names = model_card("resnet18").class_names
    images = torch.zeros(4, 3, 32, 32, dtype=torch.uint8)
    made = write_dataset(tmp_path / "set", images, torch.tensor([0, 217, 0, 217]), names, {"t": torch.zeros(4, 1000)})
    for folder, grey in (("n02102040", 60), ("n01440764", 200), ("n02979186", 120)):
        (tmp_path / "real/val" / folder).mkdir(parents=True)
        Image.new("RGB", (32, 32), (grey,) * 3).save(tmp_path / "real/val" / folder / "0.png")
    asked: dict[str, Any] = {"student": "resnet18", "dataset": [str(made)], "schedule": {"batch_size": 4}}
    asked["test"] = {"path": str(tmp_path / "real"), "split": "val"}
    real = prepare(parse_distillation_recipe(asked)).test_set
    assert real is not None and real.class_names == names
    brightness = {int(label): int(image[0, 0, 0]) for image, label in zip(real.images, real.labels, strict=True)}
    assert brightness == {names.index("English springer"): 60, names.index("tench"): 200, 482: 120}
    (tmp_path / "real/val/n01440764").rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="val, lacks classes that images were made for \\(tench\\)"):
        prepare(parse_distillation_recipe(asked))


def test_a_diagnosis_takes_a_split_of_training_images(
    tmp_path: Path, dataset: Path, real: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = line(tmp_path, dataset, "--diagnose", "--test", str(real / "test"))
    refused(words, "has no splits, so no training images beside those of the test; leave it out", capsys)
    assert not (tmp_path / "out").exists()


def test_a_trained_student_of_other_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = a_dataset(tmp_path / "set", names=(*CIFAR10_CLASSES[:9], "cow"))
    words = line(tmp_path, made, "--labels", "hard", "--student")
    refused([*words, "resnet20_cifar@cifar10"], "knows other classes than the dataset's (cow, truck); ask for", capsys)
    assert cli.main([*words, "resnet20_cifar@random"]) == 0
    _, card = create_model(f"resnet20_cifar@{tmp_path / 'out/weights.safetensors'}")
    assert card.class_names == (*CIFAR10_CLASSES[:9], "cow")


def test_out_of_memory(
    tmp_path: Path, dataset: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: object, **options: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("ensemble.training.distill.train", fails)
    assert cli.main(line(tmp_path, dataset, "--labels", "hard")) == 1
    assert "out of memory; a smaller batch, --set schedule.batch_size=N, needs less" in capsys.readouterr().err


def test_a_finished_run_does_not_answer_for_other_images(dataset: Path, tmp_path: Path, capsys) -> None:
    assert cli.main(line(tmp_path, dataset)) == 0
    other = a_dataset(tmp_path / "other", seed=5)
    assert cli.main(line(tmp_path, other, "--resume")) == 2
    assert "the dataset holds other images now" in capsys.readouterr().err
    assert cli.main(line(tmp_path, dataset, "--resume")) == 0


def test_a_finished_run_without_its_checkpoint_keeps_its_network(
    tmp_path: Path, dataset: Path, real: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = line(tmp_path, dataset, "--labels", "hard", "--epochs", "1")
    assert cli.main(words) == 0
    (tmp_path / "out/checkpoint.pt").unlink()
    weights = (tmp_path / "out/weights.safetensors").read_bytes()
    assert cli.main([*words, "--resume"]) == 0
    capsys.readouterr()
    refused([*words, "--resume", "--test", str(real)], "finished distillation without its checkpoint.pt", capsys)
    assert (tmp_path / "out/weights.safetensors").read_bytes() == weights


def test_weights_of_a_teacher_that_changed_are_not_gone_on_with(
    tmp_path: Path, dataset: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "teacher.pth"
    torch.save(create_model("resnet20_cifar:width=0.25@random")[0].state_dict(), file)
    words = line(tmp_path, dataset, "--teacher", f"resnet20_cifar:width=0.25@{file}")
    with monkeypatch.context() as patch:
        interrupted_after(1, patch)
        assert cli.main(words) == 130
    capsys.readouterr()
    state = torch.load(file, weights_only=True)
    torch.save(state | {"linear.bias": state["linear.bias"] + 1}, file)
    refused([*words, "--resume"], "are not those that the distillation began with", capsys)
    torch.save(state, file)
    file.with_suffix(".yaml").write_text("mean: 0.1\n")
    refused([*words, "--resume"], "input size, mean or std of resnet20_cifar:width=0.25", capsys)
    file.with_suffix(".yaml").unlink()
    assert cli.main([*words, "--resume"]) == 0
    assert list(summary_of(tmp_path)["teacher_weights"]) == [f"resnet20_cifar:width=0.25@{file}"]
    torch.save(state | {"linear.bias": state["linear.bias"] + 1}, file)
    refused([*words, "--resume"], "are not those that the distillation began with", capsys)
    file.unlink()
    assert cli.main([*words, "--resume"]) == 0


def test_what_a_run_begins_from_is_not_replaced(
    tmp_path: Path, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = line(tmp_path, dataset, "--labels", "hard", "--epochs", "1")
    assert cli.main(words) == 0
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    capsys.readouterr()
    words[words.index("--student") + 1] = f"{STUDENT}@{tmp_path / 'out/checkpoint.pt'}#net"
    refused([*words, "--overwrite"], "would be replaced by what begins from it; give another folder", capsys)
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == before


def test_only_the_test_may_be_another_later(tmp_path: Path, dataset: Path, real: Path, capsys) -> None:
    words = line(tmp_path, dataset, "--labels", "hard", "--epochs", "1")
    assert cli.main(words) == 0
    seconds = summary_of(tmp_path)["wall_seconds"]
    refused([*words, "--resume", "--test", str(real), "--set", "test_every=1"], "differs in test_every", capsys)
    assert cli.main([*words, "--resume", "--test", str(real)]) == 0
    assert summary_of(tmp_path)["wall_seconds"] > 0.9 * seconds  # those of the training stay


def test_a_network_that_datasets_call_otherwise_teaches_once(tmp_path: Path) -> None:
    known = {"model": "resnet20_cifar", "sha256": "ab"}
    first = a_dataset(tmp_path / "a", teachers={"first": known})
    second = a_dataset(tmp_path / "b", seed=1, teachers={"first": {"model": "other", "sha256": "cd"}})
    third = write_dataset(
        tmp_path / "c",
        *pictures(20, 2, SHUFFLED),
        SHUFFLED,
        {"second": torch.ones(20, 10)},
        {"second": {"model": "resnet20_cifar@elsewhere.safetensors", "sha256": "ab"}},
    )
    pool = read_pool([str(first), str(third)])
    assert list(pool.teachers) == ["first"] and len(pool.stored["first"]) == 40
    assert pool.called("first") == "first (resnet20_cifar)"
    assert (pool.stored["first"][20:] == 1).all()
    with pytest.raises(ValueError, match="the teacher first of "):
        read_pool([str(first), str(second)])
    source = Source("resnet20_cifar@a.pth", "ab", SHUFFLED)
    assert source.is_same(replace(source, model="resnet20_cifar@b.pth"))
    assert not source.is_same(replace(source, model="resnet20_cifar:mean=0.5@a.pth"))  # it sees other inputs
    assert not source.is_same(replace(source, sha256=None))


def test_a_teacher_without_names_has_the_classes_as_they_were_made(tmp_path: Path) -> None:
    """Whatever order the student has them in."""
    made = a_dataset(tmp_path / "set", names=SHUFFLED)
    pool = read_pool([str(made)]).ordered(CIFAR10_CLASSES)
    assert pool.as_made == SHUFFLED
    net, card = create_model("resnet20_cifar")
    nameless = replace(card, class_names=(), label_space="")
    teacher = made_teacher("net", net, nameless, pool.data.class_names, pool.as_made, torch.device("cpu"))
    assert teacher.columns.tolist() == [SHUFFLED.index(name) for name in CIFAR10_CLASSES]
