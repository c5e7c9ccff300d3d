"""`invert.py distill --rounds`: new images against the student as it is, all kept; every mistake is a line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import ONE, PLUGIN, tree
from PIL import Image
from safetensors.torch import load_file

from ensemble import GeneratedImages, create_model, load_plugin
from ensemble.config.yaml_files import load_yaml

SMALL = ["--set", "schedule.batch_size=4", "--set", "schedule.precision=fp32", "--set", "augmentation.crop_padding=1"]
ROUNDS = ["--rounds", "2", "--round-images", "6", "--round-epochs", "2", "--epochs", "1", "--competition", "5"]


@pytest.fixture
def pool(run, tmp_path: Path) -> Path:
    made = ["--images", "6", "--images-per-class", "2", "--iterations", "4", "--output", tmp_path / "pool"]
    assert run("dataset", *ONE, *made).code == 0
    return tmp_path / "pool"


def line(pool: Path, out: Path, *more: object) -> list[object]:
    words = ["distill", *PLUGIN[:2], "--dataset", pool, "--student", "tiny_b", "--device", "cpu"]
    return [*words, *SMALL, "--output", out, *more]


def test_rounds_keep_all_images_and_part_the_student_from_the_teachers(run, pool: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ended = run(*line(pool, out, *ROUNDS))
    assert ended.code == 0 and "18 images" in ended.output
    parts = {file.name for file in out.iterdir()}
    assert {f"{kind}_{i}" for kind, numbers in (("student", (0, 1, 2)), ("images", (1, 2))) for i in numbers} <= parts
    recipe, first, own = (load_yaml(folder / "recipe.yaml") for folder in (out / "images_2", out / "images_1", pool))
    assert len({recipe["seed"], first["seed"], own["seed"]}) == 3 and not recipe["verifiers"]
    assert recipe["teachers"][-1]["student"] and recipe["teachers"][-1]["model"].endswith(
        "student_1/weights.safetensors"
    )
    assert recipe["objectives"][-1]["kind"] == "competition" and recipe["objectives"][-1]["weight"] == 5
    assert GeneratedImages(out / "images_2").teachers == ("tiny_a",)
    assert load_yaml(out / "student_1" / "recipe.yaml")["schedule"]["epochs"] == 2
    assert load_yaml(out / "student_2" / "recipe.yaml")["schedule"]["epochs"] == 1
    summary = json.loads((out / "summary.json").read_text())
    assert summary["images"] == 18 and [each["images"] for each in summary["rounds"]] == [6, 6]
    assert (out / "weights.safetensors").read_bytes() == (out / "student_2/weights.safetensors").read_bytes()
    load_plugin(PLUGIN[1])
    create_model(f"tiny_b@{out / 'weights.safetensors'}")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--set", "schedule.batch_size=7"], "fewer than one batch"),
        (["--set", "augmentation.crop_padding=8"], "must be below the image size 8"),
        (["--test", "nowhere"], "nowhere"),
        (["--teacher", "tiny_q"], "'tiny_q'"),
        (["--labels", "stored", "--teacher", "tiny_b@random"], "no logits of tiny_b@random are stored"),
    ],
)
def test_what_the_last_lesson_would_refuse_is_refused_first(
    more: list[str], message: str, run, pool: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert run(*line(pool, out, *ROUNDS)).code == 0
    before = tree(out)
    ended = run(*line(pool, out, *ROUNDS, *more, "--overwrite"))
    assert ended.code == 2 and message in ended.errors[-1]
    assert tree(out) == before


def test_the_folder_may_be_named_in_another_way(run, pool: Path, tmp_path: Path, monkeypatch) -> None:
    assert run(*line(pool, tmp_path / "out", *ROUNDS)).code == 0
    (tmp_path / "out" / "student_2" / "summary.json").unlink()
    monkeypatch.chdir(tmp_path / "pool")
    ended = run(*line(pool, Path("../out"), *ROUNDS, "--resume"))
    assert ended.code == 0, ended.errors


def test_a_folder_that_was_moved_goes_on(run, pool: Path, tmp_path: Path) -> None:
    assert run(*line(pool, tmp_path / "out", *ROUNDS)).code == 0
    before = tree(tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "moved elsewhere")
    (tmp_path / "moved elsewhere" / "summary.json").unlink()
    (tmp_path / "moved elsewhere" / "student_2" / "summary.json").unlink()
    ended = run(*line(pool, tmp_path / "moved elsewhere", *ROUNDS, "--resume"))
    assert ended.code == 0, ended.errors
    after = tree(tmp_path / "moved elsewhere")
    assert after.keys() == before.keys() and after["weights.safetensors"] == before["weights.safetensors"]


def test_what_rounds_begin_from_is_not_replaced(run, pool: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(*line(pool, out, *ROUNDS)).code == 0
    before = tree(out)
    ended = run(*line(out / "images_1", out, *ROUNDS, "--overwrite"))
    assert ended.code == 2 and len(ended.errors) == 1 and tree(out) == before


def test_without_competition_images_are_those_that_no_student_saw(run, pool: Path, tmp_path: Path) -> None:
    assert run(*line(pool, tmp_path / "out", *ROUNDS[:-1], "0")).code == 0
    seed = load_yaml(tmp_path / "out" / "images_1" / "recipe.yaml")["seed"]
    plain = ["--images", "6", "--images-per-class", "2", "--iterations", "4", "--seed", seed]
    assert run("dataset", *ONE, *plain, "--output", tmp_path / "plain").code == 0
    made, expected = (GeneratedImages(tmp_path / name).labelled().images for name in ("out/images_1", "plain"))
    assert torch.equal(made, expected)


def test_a_run_that_stopped_goes_on_to_the_same_bits(run, pool: Path, tmp_path: Path, monkeypatch) -> None:
    import ensemble.runs.rounds as rounds

    assert run(*line(pool, tmp_path / "whole", *ROUNDS)).code == 0
    kept, calls = rounds.distill, []

    def once(*args: object, **options: object) -> dict:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return kept(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(rounds, "distill", once)
    assert run(*line(pool, tmp_path / "cut", *ROUNDS)).code == 130
    monkeypatch.setattr(rounds, "distill", kept)
    assert run(*line(pool, tmp_path / "cut", *ROUNDS)).code == 2, "it is not empty"
    assert run(*line(pool, tmp_path / "cut", *ROUNDS, "--resume")).code == 0
    shards = [(tmp_path / name / "images_2/shards/000000.safetensors").read_bytes() for name in ("whole", "cut")]
    weights = [(tmp_path / name / "weights.safetensors").read_bytes() for name in ("whole", "cut")]
    assert shards[0] == shards[1] and weights[0] == weights[1]
    changed = run(*line(pool, tmp_path / "cut", *ROUNDS, "--resume", "--competition", "2"))
    assert changed.code == 2 and "rounds.competition" in changed.errors[0]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--round-images", "6"], "--round-images is about rounds; say how many, with --rounds R"),
        (["--competition", "6"], "--competition is about rounds"),
        (["--rounds", "0"], "rounds.count: must be at least 1, got 0"),
        (["--rounds", "1", "--dataset", "nowhere"], "nowhere holds no dataset; give the folder of a finished"),
        (["--rounds", "1", "--student", "resnet20_cifar"], "classes"),
        (["--rounds", "1", "--student", "resnet20_popup_cifar:num_classes=3"], "the scores of a subnet from the start"),
    ],
)
def test_mistakes_are_one_line(run, pool: Path, tmp_path: Path, more: list[str], said: str) -> None:
    ended = run(*line(pool, tmp_path / "out", *more))
    assert ended.code == 2 and len(ended.errors) == 1 and said in ended.errors[0]
    assert not (tmp_path / "out").exists()


def test_a_student_whose_classes_stand_in_another_order(run, pool: Path, tmp_path: Path) -> None:
    rounds = ["--rounds", "1", "--round-images", "6", "--round-epochs", "1", "--epochs", "1"]
    assert run(*line(pool, tmp_path / "out", *rounds, "--student", "tiny_renamed")).code == 0
    student = load_yaml(tmp_path / "out/images_1/recipe.yaml")["teachers"][-1]
    assert student["student"] and student["classes"] == {"circle": 2, "square": 1, "star": 0}


def test_what_is_no_rounds_is_not_replaced(run, pool: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").touch()
    ended = run(*line(pool, tmp_path / "out", *ROUNDS, "--overwrite"))
    assert ended.code == 2 and "holds other files and no distillation in rounds" in ended.errors[0]
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"mine.txt"}


def test_a_student_is_pruned_once(run, pool: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch_pruning")
    assert run(*line(pool, tmp_path / "first", "--epochs", "1")).code == 0
    weights = tmp_path / "first/weights.safetensors"
    prune = ["--set", "prune={flops: 0.7, importance: magnitude}", "--student", f"tiny_b@{weights}"]
    assert run(*line(pool, tmp_path / "out", *ROUNDS, *prune)).code == 0
    lost = [json.loads((tmp_path / f"out/student_{i}/summary.json").read_text()).get("pruned") for i in range(3)]
    assert lost[0] is not None and lost[1] is None and lost[2] is None
    assert json.loads((tmp_path / "out/summary.json").read_text())["pruned"] == lost[0]
    narrow = [load_file(tmp_path / f"out/student_{i}/weights.safetensors")["conv.weight"].shape for i in range(3)]
    assert narrow[0] == narrow[1] == narrow[2] and narrow[0][0] < 12


def test_overwriting_keeps_no_part_of_what_was_there(run, pool: Path, tmp_path: Path, monkeypatch) -> None:
    import ensemble.runs.rounds as rounds

    assert run(*line(pool, tmp_path / "out", *ROUNDS)).code == 0

    def stopped(*args: object, **options: object) -> dict:
        raise KeyboardInterrupt

    monkeypatch.setattr(rounds, "distill", stopped)
    ended = run(*line(pool, tmp_path / "out", *ROUNDS, "--overwrite"))
    assert ended.code == 130 and "--resume instead of --overwrite" in ended.errors[-1]
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"rounds.yaml"}


def test_a_stop_while_images_are_made_says_how_to_go_on(run, pool: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("MISFORTUNE", "term:0:2")
    for option, said in (([], "--resume"), (["--overwrite"], "--resume instead of --overwrite")):
        ended = run(*line(pool, tmp_path / "out", *ROUNDS, *option))
        assert ended.code == 0 and len(ended.errors) == 1 and ended.errors[0].endswith(f"same command with {said}")


def test_finished_rounds_may_be_tested_later(run, pool: Path, tmp_path: Path) -> None:
    assert run(*line(pool, tmp_path / "out", *ROUNDS)).code == 0
    for i, name in enumerate(("circle", "square", "star")):
        (tmp_path / "real/test" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8), (60 * i, 90, 20)).save(tmp_path / "real/test" / name / "0.png")
    ended = run(*line(pool, tmp_path / "out", *ROUNDS, "--resume", "--test", tmp_path / "real"))
    assert ended.code == 0 and "on 3 real images (test)" in ended.output


def test_real_images_are_read_by_the_last_student_alone(run, pool: Path, tmp_path: Path) -> None:
    for i, name in enumerate(("circle", "square", "star")):
        for split in ("train", "test"):
            (tmp_path / "real" / split / name).mkdir(parents=True)
            Image.new("RGB", (8, 8), (60 * i, 90, 20)).save(tmp_path / "real" / split / name / "0.png")
    tested = ["--test", tmp_path / "real", "--diagnose", "--set", "test_every=1"]
    assert run(*line(pool, tmp_path / "out", *ROUNDS, *tested)).code == 0
    said = [load_yaml(tmp_path / "out" / f"student_{i}" / "recipe.yaml") for i in range(3)]
    assert [recipe["test"] is None for recipe in said] == [True, True, False]
    assert [(recipe["test_every"], recipe["diagnose"]) for recipe in said] == [(0, False), (0, False), (1, True)]


def test_what_a_link_leads_to_is_not_removed(run, pool: Path, tmp_path: Path) -> None:
    assert run(*line(pool, tmp_path / "out", *ROUNDS)).code == 0
    (tmp_path / "out" / "images_1").rename(tmp_path / "elsewhere")
    (tmp_path / "out" / "images_1").symlink_to(tmp_path / "elsewhere")
    run(*line(pool, tmp_path / "out", *ROUNDS, "--overwrite"))
    assert (tmp_path / "elsewhere" / "manifest.json").is_file()


def test_a_file_is_no_folder(run, pool: Path, tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    ended = run(*line(pool, tmp_path / "out", *ROUNDS))
    assert ended.code == 2 and ended.errors == [f"invert.py: output: {tmp_path / 'out'} is a file; give a folder"]
