"""invert.py evaluate on results folders and real images."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PLUGIN, Ended
from PIL import Image

from ensemble import cli
from ensemble.applications import evaluate as command
from ensemble.machine.progress import SilentProgress
from ensemble.runs.folder import ResultsFolder
from models import create_model, load_plugin

TINY = PLUGIN[:2]
NAMES = ("circle", "square", "star")
ON_CPU = [*TINY, "--device", "cpu"]
JUDGE = [*ON_CPU, "--judge", "tiny_b@random"]


def noise(n: int, seed: int) -> torch.Tensor:
    return torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def make_results(
    folder: Path, n: int = 8, classes: tuple[int, ...] = (1, 2), seed: int = 0, teacher: str = "tiny_a@random"
) -> Path:
    """A finished run's folder with random images."""
    results = ResultsFolder(folder)
    results.begin()
    results.write_recipe(f"teachers:\n- model: {teacher}\n")
    results.write_images(noise(n, seed), torch.tensor(classes).repeat(n)[:n], NAMES)
    results.write_summary({"class_names": NAMES})
    return folder


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return make_results(tmp_path / "out")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    draw = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in NAMES:
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for i in range(8):
                Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return tmp_path / "data"


@pytest.fixture
def evaluate(run: Callable[..., Ended]) -> Callable[..., Ended]:
    return lambda *arguments: run("evaluate", *arguments)


def row(output: str, label: str) -> list[str]:
    """The values of a figure in the (first) table."""
    line = next(line for line in output.splitlines() if line.startswith(label))
    return line.removeprefix(label).split()


def read_split(data: Path, split: str, *names: str) -> torch.Tensor:
    files = [file for name in names for file in sorted((data / split / name).iterdir())]
    return torch.stack([torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1) / 255 for file in files])


def tiny_b(images: torch.Tensor) -> tuple[np.ndarray, torch.Tensor]:
    """Features and logits, through the layers by hand."""
    net, card = create_model("tiny_b@random")
    mean, std = (torch.tensor(value)[:, None, None] for value in (card.mean, card.std))
    with torch.no_grad():
        features = net.norm(net.conv((images - mean) / std)).relu().mean((2, 3))
        return features.double().numpy(), net.fc(features)


def refusal(ended: Ended, *parts: str) -> None:
    assert ended.code == 2 and len(ended.errors) == 1, ended.errors
    assert ended.errors[0].startswith("invert.py: ") and ended.output == ""
    for part in parts:
        assert part in ended.errors[0]


# --- figures ------------------------------------------------------------------------------------------------------


def test_without_real_images(evaluate, results, tmp_path):
    ended = evaluate(results, *JUDGE, "--json", tmp_path / "deep" / "figures.json")
    assert ended.code == 0 and not ended.errors
    written = json.loads((tmp_path / "deep" / "figures.json").read_text())
    sets = written["tiny_b@random"]["sets"]
    assert list(sets) == [str(results)]
    found, targets = sets[str(results)], torch.tensor([1, 2] * 4)
    features, logits = tiny_b(noise(8, 0))
    assert found["accuracy"]["top1"] == (logits.argmax(1) == targets).double().mean().item()
    assert found["accuracy"]["confidence"] == pytest.approx(logits.softmax(1).amax(1).mean().item(), rel=1e-5)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    pairs = [1 - unit[i] @ unit[j] for i in range(8) for j in range(i) if targets[i] == targets[j]]
    assert found["diversity"] == pytest.approx(np.mean(pairs), rel=1e-4)
    assert found["near_duplicates"] == 0 and found["frechet"] is None and found["inception_score"] is None
    low, high = found["accuracy"]["interval"]
    assert row(ended.output, "images") == ["8"]
    assert row(ended.output, "accuracy") == [f"{found['accuracy']['top1']:.1%}"]
    assert row(ended.output, "  95 % interval") == [f"{low:.1%}-{high:.1%}"]
    assert row(ended.output, "near-duplicates") == ["0.0%"]
    assert "Frechet" not in ended.output
    assert ended.output.endswith("note: no Inception Score: of 3 classes it takes 100 images, and here are 8\n")


def test_beside_real_images(evaluate, data, results, tmp_path):
    linalg = pytest.importorskip("scipy.linalg")
    ended = evaluate(results, *JUDGE, "--data", data, "--json", tmp_path / "figures.json")
    assert ended.code == 0 and not ended.errors
    sets = json.loads((tmp_path / "figures.json").read_text())["tiny_b@random"]["sets"]
    assert list(sets) == [str(results), "8 real training images"]
    made, real = sets.values()
    a, b = tiny_b(noise(8, 0))[0], tiny_b(read_split(data, "test", "square", "star"))[0]  # circles were not asked for
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    root = linalg.sqrtm(cov_a)
    cross = np.trace(linalg.sqrtm(root @ cov_b @ root)).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + cov_a.trace() + cov_b.trace() - 2 * cross
    assert made["frechet"] == pytest.approx(expected, rel=1e-3)
    train = tiny_b(read_split(data, "train", "square", "star"))[0]
    distances = [[min(np.linalg.norm(x - y) for y in others) for others in (train, b)] for x in a]
    assert made["closer_to_train"] == np.mean([near < far for near, far in distances])
    assert made["train_copies"] == real["train_copies"] == 0
    assert real["accuracy"]["per_class"][0] is None  # no circle was drawn
    for label in ("precision", "recall", "density", "coverage", "kernel distance x 1000", "Frechet distance"):
        assert len(row(ended.output, label)) == 2 and "-" not in row(ended.output, label)
    assert "with 8 images in 12 features the Frechet distance is biased upwards" in ended.output
    assert ended.output.count("no Inception Score") == 1  # said once of both


def test_an_inception_score_where_there_are_images_enough(evaluate, tmp_path):
    ended = evaluate(make_results(tmp_path / "out", n=120), *JUDGE)
    probabilities = tiny_b(noise(120, 0))[1].double().softmax(1).numpy()
    divergence = (probabilities * np.log(probabilities / probabilities.mean(0))).sum(1)
    assert row(ended.output, "Inception Score") == [f"{np.exp(divergence.mean()):.2f}"]
    assert "biased downwards, by up to 0.8%" in ended.output


def test_repeated_and_copied_images_are_counted(evaluate, data, tmp_path):
    folder = make_results(tmp_path / "out")
    images = noise(8, 0)
    images[1] = images[0].flip(2)
    images[7] = read_split(data, "train", "star")[3]
    ResultsFolder(folder).write_images(images, torch.tensor([1, 2] * 4), NAMES)
    ended = evaluate(folder, *JUDGE, "--data", data)
    assert row(ended.output, "near-duplicates") == ["25.0%", "0.0%"]
    assert row(ended.output, "copies of training images") == ["12.5%", "0.0%"]


def test_one_image_is_judged_as_far_as_it_can_be(evaluate, data, tmp_path):
    ended = evaluate(make_results(tmp_path / "one", n=1), *JUDGE, "--data", data)
    assert ended.code == 0 and not ended.errors
    for label in ("Frechet distance", "precision", "diversity within a class"):
        assert row(ended.output, label) == ["-", "-"]
    notes = [line for line in ended.output.splitlines() if line.startswith("note: no ")]
    assert [note.split()[2] for note in notes] == ["Inception", "diversity", "Frechet", "precision"]


def test_each_judge_has_a_table(evaluate, data, results, tmp_path):
    again = ["--judge", "tiny_plain@random", "--judge", "tiny_b@random"]
    ended = evaluate(results, *JUDGE, *again, "--data", data, "--json", tmp_path / "figures.json")
    assert ended.code == 0
    judges = [line for line in ended.output.splitlines() if line.startswith("judge: ")]
    assert judges == ["judge: tiny_b@random", "judge: tiny_plain@random"]
    assert list(json.loads((tmp_path / "figures.json").read_text())) == ["tiny_b@random", "tiny_plain@random"]
    assert ended.output.count("loading test and train images") == 1  # for judges of one size


def test_what_a_judge_said_is_told_where_the_next_one_fails(evaluate, results, monkeypatch):
    from ensemble.evaluation import verdict

    def fails(name, *more):
        if name == "tiny_plain@random":
            raise torch.OutOfMemoryError("no memory is left")
        return first(name, *more)

    first = verdict.verdict
    monkeypatch.setattr(verdict, "verdict", fails)
    ended = evaluate(results, *JUDGE, "--judge", "tiny_plain@random")
    assert ended.code != 0 and "judge: tiny_b@random" in ended.output and row(ended.output, "mean confidence")


def test_each_number_of_images_and_set_of_classes_has_its_scale(evaluate, data, tmp_path):
    folders = {
        "few": make_results(tmp_path / "few", n=4),
        "as few": make_results(tmp_path / "as_few", n=4, seed=1),
        "stars": make_results(tmp_path / "stars", n=4, classes=(2,)),
        "many": make_results(tmp_path / "many", n=20),
    }
    ended = evaluate(*folders.values(), folders["few"], *JUDGE, "--data", data, "--json", tmp_path / "figures.json")
    sets = json.loads((tmp_path / "figures.json").read_text())["tiny_b@random"]["sets"]
    real = [
        "4 real training images",
        f"4 real training images, classes of {folders['stars']}",
        "16 real training images",
    ]
    assert list(sets) == [*map(str, folders.values()), *real]
    assert [one["n"] for one in sets.values()] == [4, 4, 4, 20, 4, 4, 16]
    assert sets[real[1]]["accuracy"]["per_class"][:2] == [None, None]  # stars alone
    assert (
        f"warning: of the classes of {folders['many']} there are 16 training images; its 20 have no fair scale"
        in ended.output.splitlines()
    )


def test_splits_are_named(evaluate, data, results):
    (data / "train").rename(data / "seen")
    (data / "test").rename(data / "val")
    ended = evaluate(results, *JUDGE, "--data", data, "--train-split", "seen", "--test-split", "val")
    assert ended.code == 0 and "8 real training images" in ended.output
    ended = evaluate(results, *JUDGE, "--data", data, "--train-split", "val/", "--test-split", "val")
    assert ended.code == 2 and "--test-split: it is val, as --train-split" in ended.errors[0]
    ended = evaluate(results, *JUDGE, "--data", data)
    assert ended.code == 2 and "holds no images at test/<class>/" in ended.errors[0]


# --- the judge ----------------------------------------------------------------------------------------------------


def was_teacher(output: str) -> bool:
    return any(line.startswith("warning: ") and "was a teacher of" in line for line in output.splitlines())


def test_a_judge_that_was_a_teacher_is_told(evaluate, tmp_path):
    load_plugin(TINY[1])
    weights = {name: tmp_path / f"{name}.pth" for name in ("one", "copy", "other")}
    net = create_model("tiny_b@random")[0].state_dict()
    torch.save(net, weights["one"])
    shutil.copy(weights["one"], weights["copy"])
    torch.save({**net, "fc.bias": net["fc.bias"] + 1}, weights["other"])
    of_one = make_results(tmp_path / "one", teacher=f"tiny_b@{weights['one']}")
    for judge, told in (("one", True), ("copy", True), ("other", False)):
        ended = evaluate(of_one, *ON_CPU, "--judge", f"tiny_b@{weights[judge]}")
        assert ended.code == 0 and was_teacher(ended.output) == told, judge
    assert not was_teacher(evaluate(of_one, *JUDGE).output)
    of_random = make_results(tmp_path / "random", teacher="tiny_b@random")
    assert was_teacher(evaluate(of_random, *JUDGE).output)
    weights["one"].unlink()
    assert not was_teacher(evaluate(of_one, *ON_CPU, "--judge", f"tiny_b@{weights['copy']}").output)  # nobody can know


def test_bundled_teachers_are_known_by_any_name(evaluate, tmp_path):
    folder = tmp_path / "out"
    results = ResultsFolder(folder)
    results.begin()
    results.write_recipe("teachers:\n- model: resnet20_cifar\n")
    results.write_images(noise(4, 0), torch.arange(4))
    results.write_summary({})
    card = create_model("resnet20_cifar")[1]
    assert card.default_weights is not None
    file = Path(command.__file__).parents[2] / "models/weights" / str(card.weights[card.default_weights].file)
    for judge in ("resnet20_cifar", f"resnet20_cifar@{card.default_weights}", f"resnet20_cifar@{file}"):
        assert was_teacher(evaluate(folder, "--judge", judge, "--device", "cpu").output), judge
    assert not was_teacher(evaluate(folder, "--judge", "mobilenetv2_slim_cifar", "--device", "cpu").output)


def test_the_runs_classes_count_and_not_those_that_its_teachers_card_says_today(evaluate, tmp_path):
    card, file = create_model("resnet20_cifar")[1], tmp_path / "net.pth"
    torch.save(create_model("resnet20_cifar@random")[0].state_dict(), file)
    folder = make_results(tmp_path / "out", teacher=f"resnet20_cifar@{file}")
    ResultsFolder(folder).write_summary({"class_names": list("abcdefghij")})
    ended = evaluate(folder, "--device", "cpu", "--judge", f"resnet20_cifar@{file}")
    refusal(ended, f"{folder} has targets of the run's own classes", "resnet20_cifar has other classes")
    ResultsFolder(folder).write_summary({"class_names": list(card.class_names)})
    assert evaluate(folder, "--device", "cpu", "--judge", f"resnet20_cifar@{file}").code == 0


def test_classes_that_do_not_meet(evaluate, data, results, tmp_path):
    refusal(
        evaluate(results, *ON_CPU, "--judge", "tiny_renamed@random"), f"{results} has targets of tiny_a", "tiny_renamed"
    )
    unknown = make_results(tmp_path / "unknown", teacher="unknown_here")
    assert evaluate(unknown, *JUDGE).code == 0  # what cannot be known is not refused
    ended = evaluate(unknown, *ON_CPU, "--judge", "tiny_renamed@random")
    refusal(ended, f"{unknown} has targets of the run's own classes", "tiny_renamed has other classes")
    ResultsFolder(unknown).write_summary({})
    ResultsFolder(unknown).write_images(noise(4, 0), torch.arange(4))
    refusal(evaluate(unknown, *JUDGE), f"{unknown} has targets up to 3, and tiny_b has 3 classes")
    (data / "test" / "star").rename(data / "test" / "moon")
    ended = evaluate(results, *JUDGE, "--data", data)
    assert ended.code == 2 and len(ended.errors) == 1 and "tiny_b has no class 'moon'" in ended.errors[0]


# --- mistakes -----------------------------------------------------------------------------------------------------


def test_folders_that_are_no_results(evaluate, results, tmp_path):
    refusal(evaluate(tmp_path / "nowhere", *JUDGE), "nowhere", "give the results folder of a finished run")
    (results / "summary.json").unlink()
    refusal(evaluate(results, *JUDGE), f"{results} holds no finished run", "--resume")


@pytest.mark.parametrize("name", ["images.safetensors", "recipe.yaml", "summary.json"])
def test_damaged_files(evaluate, results, name):
    (results / name).write_bytes(b"{\x00")
    refusal(evaluate(results, *JUDGE), str(results / name))


@pytest.mark.parametrize("text", ["teachers: 3\n", "seed: 1\n", "teachers:\n- tiny_a\n"])
def test_recipes_without_teachers(evaluate, results, text):
    (results / "recipe.yaml").write_text(text)
    refusal(evaluate(results, *JUDGE), f"{results}: its recipe or summary is damaged")


@pytest.mark.parametrize(
    ("images", "targets"),
    [
        (noise(2, 0)[:, :1], torch.zeros(2, dtype=torch.long)),
        (noise(2, 0)[0], torch.zeros(3, dtype=torch.long)),
        (noise(2, 0)[:0], torch.zeros(0, dtype=torch.long)),
        (noise(2, 0).byte(), torch.zeros(2, dtype=torch.long)),
        (noise(2, 0) * 2, torch.zeros(2, dtype=torch.long)),
        (noise(2, 0) - 0.5, torch.zeros(2, dtype=torch.long)),
        (noise(2, 0) * float("nan"), torch.zeros(2, dtype=torch.long)),
        (noise(2, 0), torch.zeros(3, dtype=torch.long)),
        (noise(2, 0), torch.zeros(2)),
        (noise(2, 0), torch.tensor([0, -1])),
    ],
    ids=[
        "grey",
        "3-D",
        "none",
        "bytes",
        "too bright",
        "too dark",
        "NaN",
        "other number",
        "float targets",
        "negative target",
    ],
)
def test_damaged_images(evaluate, results, monkeypatch, images, targets):
    monkeypatch.setattr(ResultsFolder, "read_images", lambda _: (images, targets))
    refusal(evaluate(results, *JUDGE), f"{results}: its images are damaged")


def test_options_that_do_not_fit(evaluate, results, tmp_path):
    refusal(evaluate(results, *ON_CPU), "--judge", "evaluate --help")
    refusal(evaluate(results, *ON_CPU, "--judge", "tiny_q@random"), "unknown network 'tiny_q'")
    refusal(evaluate(results, *ON_CPU, "--judge", "tiny_b"), "tiny_b has no default weights")
    for split in ("--train-split", "--test-split"):
        refusal(evaluate(results, *JUDGE, split, "val"), split, "--data")
    refusal(evaluate(results, *JUDGE, "--data", tmp_path, "--test-split", "train"), "it is train, as --train-split")
    refusal(evaluate(results, *TINY, "--judge", "tiny_b@random", "--device", "tpu"), "device", "tpu")
    ended = evaluate(results, *JUDGE, "--data", tmp_path / "nowhere.tar")
    assert ended.code == 2 and len(ended.errors) == 1 and "nowhere.tar does not exist" in ended.errors[0]


def test_figures_that_cannot_be_written_are_told_before_the_work(evaluate, results, monkeypatch):
    monkeypatch.setattr("models.create_model", lambda _: pytest.fail("work began"))
    refusal(evaluate(results, *JUDGE, "--json", results), f"--json: {results} is a folder")
    file = results / "recipe.yaml" / "figures.json"
    refusal(evaluate(results, *JUDGE, "--json", file), f"--json: {file} cannot be written", "recipe.yaml is a file")
    monkeypatch.setattr(os, "access", lambda *_: False)
    refusal(evaluate(results, *JUDGE, "--json", results / "figures.json"), f"{results} may not be written")


# --- the display --------------------------------------------------------------------------------------------------


def test_progress_is_plain_lines_in_a_file(evaluate, data, results, monkeypatch):
    monkeypatch.setattr("ensemble.evaluation.judge._AT_ONCE", 3)
    lines = evaluate(results, *JUDGE, "--data", data).output.splitlines()
    for text in (f"loading test and train images of {data} at 8 x 8", f"tiny_b@random reads {results}"):
        assert text in lines
    at = lines.index("tiny_b@random reads 16 real test images")
    assert lines[at + 1].startswith("step 6/6  ")


class Gone(SilentProgress):
    """A terminal that went away."""

    def start(self, *_: object, **__: object) -> None:
        raise OSError("gone")

    step = message = close = start


def test_a_display_that_fails_does_not_stop_the_work(evaluate, results, monkeypatch, tmp_path):
    monkeypatch.setattr("ensemble.evaluation.judge._AT_ONCE", 3)
    monkeypatch.setattr("ensemble.machine.progress.progress_reporter", Gone)
    ended = evaluate(results, *JUDGE, "--json", tmp_path / "figures.json")
    assert ended.code == 0 and not ended.errors and "accuracy" in ended.output and (tmp_path / "figures.json").exists()


def test_a_reader_that_has_gone_is_no_failure(results, monkeypatch, tmp_path, capfd):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert cli.main(["evaluate", str(results), *JUDGE, "--json", str(tmp_path / "figures.json")]) == 0
        stream.write("into nothing")
    assert (tmp_path / "figures.json").exists() and capfd.readouterr().err == ""


def test_names_that_the_terminal_cannot_show(tmp_path, monkeypatch):
    folder = make_results(tmp_path / "Zürich [red]")
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii", write_through=True))
    assert cli.main(["evaluate", str(folder), *JUDGE]) == 0
    assert b"Z?rich [red]" in written.getvalue()  # and it is no markup


def test_wide_tables_are_not_cut(evaluate, tmp_path):
    folders = [make_results(tmp_path / f"out{i}", seed=i) for i in range(20)]
    ended = evaluate(*folders, *JUDGE)
    assert len(row(ended.output, "  95 % interval")) == 20 and "…" not in ended.output


def test_a_file_that_is_there_is_not_replaced(evaluate, results, tmp_path):
    file = tmp_path / "manifest.json"
    file.write_text("mine")
    refusal(evaluate(results, *JUDGE, "--json", file), "exists; pass --overwrite")
    assert file.read_text() == "mine"
    assert evaluate(results, *JUDGE, "--json", file, "--overwrite").code == 0 and "sets" in file.read_text()


def test_real_images_that_lack_a_class_are_refused(evaluate, data, results):
    for split in ("test", "train"):
        shutil.move(data / split / "star", data / f"{split}_star")
        ended = evaluate(results, *JUDGE, "--data", data)
        assert ended.code == 2 and "no real image is of 1 of the 2 classes that are judged (star)" in ended.errors[-1]
        shutil.move(data / f"{split}_star", data / split / "star")


def test_folders_may_be_numbered_by_the_classes(evaluate, data, results):
    named = evaluate(results, *JUDGE, "--data", data).output
    for split in ("test", "train"):
        for number, name in enumerate(("circle", "square", "star")):
            if (data / split / name).exists():
                (data / split / name).rename(data / split / str(number))
    assert evaluate(results, *JUDGE, "--data", data).output == named
