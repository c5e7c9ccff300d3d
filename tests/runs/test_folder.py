"""The results folder: what it takes, what it replaces, what comes back."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from ensemble.image.pictures import draw_grid
from ensemble.machine.files import write_json
from ensemble.runs.folder import PER_IMAGE, PER_LAYER, ResultsFolder

NAMES = ("airplane", "tench, Tinca tinca", "../evil", "???")


def batch(targets: list[int], size: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.rand(len(targets), 3, size, size, generator=torch.Generator().manual_seed(0))
    return images, torch.tensor(targets)


def files(folder: Path) -> set[str]:
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if not file.is_dir()}


def test_new_and_empty_folders_are_taken(tmp_path):
    for _ in range(2):
        ResultsFolder(tmp_path / "a" / "b").begin()
        assert (tmp_path / "a" / "b").is_dir()


def test_a_used_folder_needs_consent(tmp_path):
    write_json(tmp_path / "summary.json", {})
    with pytest.raises(ValueError, match=r"pass resume \(--resume\) to go on .*, overwrite \(--overwrite\) to replace"):
        ResultsFolder(tmp_path).begin()
    assert files(tmp_path) == {"summary.json"}


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "out").touch()
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="is a file"):
            ResultsFolder(tmp_path / "out").begin(overwrite)


def test_overwrite_removes_a_run_and_nothing_else(tmp_path):
    images, targets = batch([0, 0, 1, 2, 3])
    ResultsFolder(tmp_path).write_images(images, targets, NAMES)
    ours = ["metrics.jsonl", "summary.json", "recipe.yaml", "summary.json.tmp", "per_image.jsonl", "logits.safetensors"]
    ours += ["images/0000_airplane/0.png.tmp"]
    ours += ["checkpoints/run-00000010.safetensors", "checkpoints/run-00000020.json.tmp"]
    others = ["notes.txt", "images/holiday.png", "images/0000_airplane/notes.txt", "images/mine/0.png"]
    others += [
        "checkpoints/net.pt",
        "checkpoints/README.json",
        "checkpoints/old/net.pt",
        "images/0001_x/me.png",
        "src/recipe.yaml",
    ]
    for name in ours + others:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    ResultsFolder(tmp_path).begin(overwrite=True)
    assert files(tmp_path) == set(others)
    assert not (tmp_path / "images" / "0003").exists()


@pytest.mark.parametrize(
    "made",
    [{"recipe.yaml": "model: net@random\n", "weights.safetensors": ""}, {"search.yaml": "", "summary.json": "{}"}],
)
def test_overwrite_refuses_what_another_command_made(tmp_path, made):
    for name, text in made.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match="may be another command's"):
        ResultsFolder(tmp_path).begin(overwrite=True)
    assert files(tmp_path) == set(made)


def test_overwrite_leaves_no_empty_folders(tmp_path):
    ResultsFolder(tmp_path).write_images(*batch([0, 1]), NAMES)
    (tmp_path / "metrics.jsonl").touch()
    ResultsFolder(tmp_path).begin(overwrite=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("after", [0, 1, 3, 5])
def test_an_overwrite_that_was_cut_short_is_done_again(tmp_path, monkeypatch, after):
    ResultsFolder(tmp_path).write_images(*batch([0, 1]), NAMES)
    for name in ("metrics.jsonl", "recipe.yaml", "summary.json", "grid.png"):
        (tmp_path / name).touch()
    unlink, left = Path.unlink, [after]

    def cut_short(path, **options):
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        unlink(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", cut_short)
        with pytest.raises(KeyboardInterrupt):
            ResultsFolder(tmp_path).begin(overwrite=True)
    ResultsFolder(tmp_path).begin(overwrite=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["images/0001/7.png", "grid.png", "units.png"])
def test_overwrite_refuses_files_of_names_of_ours_where_no_run_wrote(tmp_path, name):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).touch()
    with pytest.raises(ValueError, match=f"{name} is no run's, and is not replaced"):
        ResultsFolder(tmp_path).begin(overwrite=True)
    assert files(tmp_path) == {name}


def test_overwrite_keeps_checkpoints_no_run_of_ours_wrote(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "run-00000010.json").touch()
    ResultsFolder(tmp_path).begin(overwrite=True)
    assert files(tmp_path) == {"checkpoints/run-00000010.json"}


@pytest.mark.parametrize("name", ["images", "checkpoints"])
def test_overwrite_follows_no_link(tmp_path, name):
    (tmp_path / "elsewhere" / "0000_a").mkdir(parents=True)
    (tmp_path / "elsewhere" / "0000_a" / "0.png").touch()
    (tmp_path / "elsewhere" / "net.pt").touch()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "recipe.yaml").touch()
    (tmp_path / "out" / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="is a link"):
        ResultsFolder(tmp_path / "out").begin(overwrite=True)
    assert files(tmp_path / "elsewhere") == {"0000_a/0.png", "net.pt"}
    assert (tmp_path / "out" / "recipe.yaml").exists()


def test_images_are_saved_exactly_and_as_pictures(tmp_path):
    images, targets = batch([1, 0, 1, 2, 3])
    ResultsFolder(tmp_path).write_images(images.double(), targets.int(), NAMES)
    saved = load_file(tmp_path / "images.safetensors")
    assert torch.equal(saved["images"], images) and torch.equal(saved["targets"], targets)
    assert saved["images"].dtype == torch.float32 and saved["targets"].dtype == torch.int64
    assert files(tmp_path / "images") == {
        "0000_airplane/0.png",
        "0001_tench_Tinca_tinca/0.png",
        "0001_tench_Tinca_tinca/1.png",
        "0002_evil/0.png",
        "0003/0.png",
    }
    with Image.open(tmp_path / "images" / "0001_tench_Tinca_tinca" / "1.png") as picture:
        pixels = np.asarray(picture)
    np.testing.assert_array_equal(pixels, np.rint(images[2].permute(1, 2, 0).numpy() * 255))


def test_pictures_clip_and_the_tensor_does_not(tmp_path):
    images = torch.tensor([-0.5, 1.5, 0.5])[None, :, None, None].expand(1, 3, 2, 2)
    ResultsFolder(tmp_path).write_images(images, torch.tensor([7]))
    assert load_file(tmp_path / "images.safetensors")["images"][0, :, 0, 0].tolist() == [-0.5, 1.5, 0.5]
    with Image.open(tmp_path / "images" / "0007" / "0.png") as picture:
        assert picture.getpixel((0, 0)) == (0, 255, 128)


@pytest.mark.parametrize(
    ("images", "targets", "says"),
    [
        (torch.rand(2, 1, 4, 4), torch.zeros(2), "expected"),
        (torch.rand(2, 3, 4, 4), torch.zeros(3), "expected"),
        (torch.rand(0, 3, 4, 4), torch.zeros(0), "expected"),
        (torch.full((1, 3, 4, 4), math.nan), torch.zeros(1), "finite"),
        (torch.rand(1, 3, 4, 4), torch.tensor([4]), "4 class names"),
        (torch.rand(1, 3, 4, 4), torch.tensor([-1]), "targets -1"),
    ],
)
def test_unfit_images_are_refused(tmp_path, images, targets, says):
    with pytest.raises(ValueError, match=says):
        ResultsFolder(tmp_path).write_images(images, targets, NAMES)
    with pytest.raises(ValueError, match=says):
        draw_grid(images, targets, NAMES)
    assert files(tmp_path) == set()


def test_what_is_written_is_read_back(tmp_path):
    folder = ResultsFolder(tmp_path / "run")
    folder.begin()
    images, targets = batch([0, 1])
    logits = {"a": torch.rand(2, 10), "timm/b": torch.rand(2, 10)}
    rows = [{"image": 0, "a/right": True}, {"image": 1, "a/right": False}]
    folder.write_images(images, targets, NAMES)
    folder.write_readings(logits, rows, [{"layer": "bn1", "mean_distance": 0.5}])
    assert not folder.finished
    folder.write_recipe("teachers: [{model: a}]\n")
    folder.write_summary({"loss": 1.0})
    assert folder.finished and folder.read_summary() == {"loss": 1.0}
    read = folder.read_images()
    assert torch.equal(read[0], images) and torch.equal(read[1], targets)
    assert all(torch.equal(tensor, logits[name]) for name, tensor in folder.read_logits().items())
    assert folder.read_rows(PER_IMAGE) == rows and len(folder.read_rows(PER_LAYER)) == 1
    assert folder.read_recipe() == {"teachers": [{"model": "a"}]}


def test_metrics_are_wound_back_to_the_checkpoints(tmp_path):
    folder = ResultsFolder(tmp_path)
    with folder.open_metrics() as metrics:
        for trial, step in ((0, 0), (0, 10), (1, 0), (1, 10)):
            metrics.write({"trial": trial, "step": step})
    folder.write_summary({})
    folder.go_on({0: 20, 1: 10})
    kept = [(row["trial"], row["step"]) for row in folder.read_rows("metrics.jsonl")]
    assert kept == [(0, 0), (0, 10), (1, 0)] and folder.read_summary() == {}


@pytest.mark.parametrize("content", [b"", b"cut", None])
def test_damaged_images_are_one_line(tmp_path, content):
    if content is not None:
        (tmp_path / "images.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"images\.safetensors") as caught:
        ResultsFolder(tmp_path).read_images()
    assert "\n" not in str(caught.value)
