"""The training folder: who may write to it, what is removed, and files that are whole or as they were."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ensemble.config.yaml_files import load_yaml
from ensemble.recipe import parse_recipe
from ensemble.runs.folder import ResultsFolder
from ensemble.runs.results import recipe_text
from ensemble.training.folder import TrainingFolder
from ensemble.training.recipe import DataSpec, TrainingRecipe
from ensemble.training.schedule import Schedule

RECIPE = TrainingRecipe("resnet20_cifar@random", DataSpec("images.tar"))
OURS = ["checkpoint.pt", "metrics.jsonl", "recipe.yaml", "summary.json", "weights.safetensors"]


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def begun(path: Path, epochs: int = 3) -> TrainingFolder:
    """The folder of a run after so many epochs, as if it were finished."""
    folder = TrainingFolder(path)
    folder.begin(RECIPE)
    with folder.open_metrics() as metrics:
        for epoch in range(1, epochs + 1):
            metrics.write({"epoch": epoch})
            folder.write_checkpoint({"epoch": epoch, "net": {"a": torch.full((2,), float(epoch))}})
    folder.weights.write_bytes(b"weights")
    folder.write_summary({"accuracy": 0.5})
    return folder


def test_what_is_written_is_read(tmp_path: Path) -> None:
    folder = begun(tmp_path / "new/run")
    assert names(folder.path) == OURS and folder.finished
    state = folder.read_checkpoint()
    assert state is not None and state["epoch"] == 3 and state["net"]["a"].tolist() == [3, 3]
    assert folder.read_summary() == {"accuracy": 0.5}
    assert load_yaml(folder.path / "recipe.yaml")["schedule"]["momentum"] == 0.9


def test_a_folder_with_nothing_in_it_may_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "absent"):
        folder = TrainingFolder(path)
        for options in ({}, {"resume": True}, {"overwrite": True}):
            folder.check(RECIPE, **options)
        assert not folder.finished and folder.read_checkpoint() is None
    assert names(tmp_path) == ["empty"]


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for options in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(ValueError, match=r"^output: .*file is a file; give a folder$"):
            TrainingFolder(tmp_path / "file").check(RECIPE, **options)


def test_what_is_not_empty_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match="is not empty; pass resume"):
        TrainingFolder(tmp_path).check(RECIPE)
    with pytest.raises(ValueError, match="is not empty"):
        TrainingFolder(tmp_path).begin(RECIPE)
    assert names(tmp_path) == ["thesis.tex"]


# --- resume --------------------------------------------------------------------------------------------


def test_going_on_needs_the_same_run(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    folder.check(RECIPE, resume=True)
    folder.check(replace(RECIPE, data=DataSpec("elsewhere/images.tar")), resume=True)
    other = replace(RECIPE, seed=1, schedule=Schedule(lr=0.1), data=DataSpec("images.tar", train="all"))
    with pytest.raises(
        ValueError, match=r"holds a training run that differs in data\.train, schedule\.lr, seed; pass"
    ) as error:
        folder.check(other, resume=True)
    assert str(error.value).startswith(f"resume: {tmp_path}") and "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"differs in data\.train, schedule\.lr, seed; pass"):
        folder.go_on(other, 1)
    assert folder.finished


def test_going_on_where_there_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match="holds other files and no training run; give another folder"):
        TrainingFolder(tmp_path).check(RECIPE, resume=True)


def test_a_run_of_another_version_cannot_be_gone_on_with(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    file = tmp_path / "recipe.yaml"
    file.write_text(file.read_text().replace("epochs:", "rounds:"))
    with pytest.raises(ValueError, match=r"cannot be gone on with \(schedule.rounds: unknown key") as error:
        folder.check(RECIPE, resume=True)
    assert "\n" not in str(error.value)
    folder.check(RECIPE, overwrite=True)


def test_going_on_drops_what_came_after(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"epoch": 4}\n{"loss": 1}\n{"epo')
    moved = replace(RECIPE, data=DataSpec("elsewhere"))
    folder.go_on(moved, 2)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"epoch": 1}\n{"epoch": 2}\n'
    assert load_yaml(tmp_path / "recipe.yaml")["data"]["path"] == "elsewhere"
    assert not folder.finished and names(tmp_path) == [name for name in OURS if name != "summary.json"]


@pytest.mark.parametrize("keep", [0, 100, -200])
def test_a_damaged_checkpoint(tmp_path: Path, keep: int) -> None:
    folder = begun(tmp_path)
    file = tmp_path / "checkpoint.pt"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"checkpoint\.pt is damaged \(\w+\); pass --overwrite instead to begin again"):
        folder.read_checkpoint()


@pytest.mark.parametrize("state", [{"net": {}}, [1], 3])
def test_a_checkpoint_of_something_else(tmp_path: Path, state: object) -> None:
    folder = begun(tmp_path)
    torch.save(state, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match=r"checkpoint\.pt is damaged"):
        folder.read_checkpoint()


def test_a_checkpoint_that_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    folder = begun(tmp_path)
    monkeypatch.setattr(torch, "load", fails)
    with pytest.raises(PermissionError):
        folder.read_checkpoint()


# --- overwrite -----------------------------------------------------------------------------------------


def test_overwriting_removes_what_a_training_run_wrote_and_nothing_else(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    for name in ("checkpoint.pt.tmp", "notes.txt", "best.pt", "weights2.safetensors"):
        (tmp_path / name).write_text("x")
    (tmp_path / "images").mkdir()
    new = replace(RECIPE, seed=7)
    folder.begin(new, overwrite=True)
    assert names(tmp_path) == ["best.pt", "images", "notes.txt", "recipe.yaml", "weights2.safetensors"]
    assert load_yaml(tmp_path / "recipe.yaml")["seed"] == 7


def test_overwriting_leaves_what_a_link_leads_to(tmp_path: Path) -> None:
    folder = begun(tmp_path / "run")
    kept = tmp_path / "kept.safetensors"
    folder.weights.rename(kept)
    folder.weights.symlink_to(kept)
    folder.begin(RECIPE, overwrite=True)
    assert kept.read_bytes() == b"weights" and names(folder.path) == ["recipe.yaml"]


def test_overwriting_beside_other_files(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    TrainingFolder(tmp_path).begin(RECIPE, overwrite=True)
    assert names(tmp_path) == ["recipe.yaml", "thesis.tex"]


@pytest.mark.parametrize("name", OURS)
def test_somebody_elses_file_with_a_name_of_ours_is_kept(tmp_path: Path, name: str) -> None:
    content = "model: resnet20_cifar@random\ndata: {path: x}  # a recipe that a person wrote\n"
    (tmp_path / name).write_text(content)
    folder = TrainingFolder(tmp_path)
    for act in (folder.check, folder.begin):
        with pytest.raises(ValueError, match=f"{name} is no training run's, and is not replaced; give another folder"):
            act(RECIPE, overwrite=True)
    assert (tmp_path / name).read_text() == content


def test_an_inversions_results_are_not_replaced(tmp_path: Path) -> None:
    inversion = ResultsFolder(tmp_path)
    inversion.begin()
    inversion.write_recipe(recipe_text(parse_recipe({"teachers": [{"model": "resnet20_cifar"}]})))
    before = (tmp_path / "recipe.yaml").read_bytes()
    with pytest.raises(ValueError, match=r"recipe\.yaml is no training run's"):
        TrainingFolder(tmp_path).begin(RECIPE, overwrite=True)
    with pytest.raises(ValueError, match="no training run"):
        TrainingFolder(tmp_path).check(RECIPE, resume=True)
    assert (tmp_path / "recipe.yaml").read_bytes() == before


def test_a_folder_with_a_name_of_ours_is_kept(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    (tmp_path / "summary.json").unlink()
    (tmp_path / "summary.json").mkdir()
    with pytest.raises(ValueError, match=r"summary\.json is no training run's"):
        folder.check(RECIPE, overwrite=True)


# --- whole or not at all -------------------------------------------------------------------------------


def test_a_full_disk_leaves_the_checkpoint_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = begun(tmp_path)
    before = (tmp_path / "checkpoint.pt").read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        folder.write_checkpoint({"epoch": 4, "net": {}})
    assert (tmp_path / "checkpoint.pt").read_bytes() == before and names(tmp_path) == OURS
