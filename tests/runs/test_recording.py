"""What a run leaves on disk and shows while it runs."""

from __future__ import annotations

import io
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file

from ensemble.image.pictures import save_grid
from ensemble.machine.files import Metrics, write_json
from ensemble.machine.progress import PlainProgress, SilentProgress, TerminalProgress, progress_reporter
from ensemble.runs.folder import prepare_output, save_images

NAMES = ("airplane", "tench, Tinca tinca", "../evil", "???")


def batch(targets: list[int], size: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.rand(len(targets), 3, size, size, generator=torch.Generator().manual_seed(0))
    return images, torch.tensor(targets)


def files(folder: Path) -> set[str]:
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if not file.is_dir()}


# the folder


def test_new_and_empty_folders_are_taken(tmp_path):
    assert prepare_output(tmp_path / "a" / "b").is_dir()
    assert prepare_output(str(tmp_path / "a" / "b")) == tmp_path / "a" / "b"


def test_a_used_folder_needs_consent(tmp_path):
    write_json(tmp_path / "summary.json", {})
    with pytest.raises(ValueError, match=r"--overwrite.*--resume"):
        prepare_output(tmp_path)
    assert files(tmp_path) == {"summary.json"}


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "out").touch()
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="is a file"):
            prepare_output(tmp_path / "out", overwrite)


def test_overwrite_removes_a_run_and_nothing_else(tmp_path):
    images, targets = batch([0, 0, 1, 2, 3])
    save_images(tmp_path, images, targets, NAMES)
    save_grid(tmp_path / "grid.png", images, targets)
    ours = ["metrics.jsonl", "summary.json", "recipe.yaml", "summary.json.tmp"]
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
    prepare_output(tmp_path, overwrite=True)
    assert files(tmp_path) == set(others)
    assert not (tmp_path / "images" / "0003").exists()


def test_overwrite_leaves_no_empty_folders(tmp_path):
    save_images(tmp_path, *batch([0, 1]), NAMES)
    prepare_output(tmp_path, overwrite=True)
    assert list(tmp_path.iterdir()) == []


def test_overwrite_keeps_checkpoints_no_run_of_ours_wrote(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "run-00000010.json").touch()
    prepare_output(tmp_path, overwrite=True)
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
        prepare_output(tmp_path / "out", overwrite=True)
    assert files(tmp_path / "elsewhere") == {"0000_a/0.png", "net.pt"}
    assert (tmp_path / "out" / "recipe.yaml").exists()


# images


def test_images_are_saved_exactly_and_as_pictures(tmp_path):
    images, targets = batch([1, 0, 1, 2, 3])
    save_images(tmp_path, images.double(), targets.int(), NAMES)
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
    save_images(tmp_path, images, torch.tensor([7]))
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
        save_images(tmp_path, images, targets, NAMES)
    with pytest.raises(ValueError, match=says):
        save_grid(tmp_path / "grid.png", images, targets, NAMES)
    assert files(tmp_path) == set()


# the grid


def read(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def find(canvas: np.ndarray, tile: np.ndarray) -> list[tuple[int, int]]:
    """Where `tile` lies in `canvas`, pixel for pixel."""
    windows = np.lib.stride_tricks.sliding_window_view(canvas, (2, 2, 3))[:, :, 0]
    corners = np.argwhere((windows == tile[:2, :2]).all((-1, -2, -3)))
    height, width = tile.shape[:2]
    places = [(int(y), int(x)) for y, x in corners]
    return [(y, x) for y, x in places if np.array_equal(canvas[y : y + height, x : x + width], tile)]


def enlarged(image: torch.Tensor, scale: int) -> np.ndarray:
    pixels = np.rint(image.permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    return pixels.repeat(scale, 0).repeat(scale, 1)


def test_balanced_grid_has_a_row_per_class(tmp_path):
    images, targets = batch([2, 0, 2, 0, 2, 0], size=32)
    save_grid(tmp_path / "grid.png", images, targets, NAMES)
    canvas = read(tmp_path / "grid.png")
    places = [find(canvas, enlarged(image, 3)) for image in images]
    assert all(len(place) == 1 for place in places)
    rows = [place[0][0] for place in places]
    assert rows[1] == rows[3] == rows[5] < rows[0] == rows[2] == rows[4]
    assert places[0][0][1] == places[1][0][1] < places[2][0][1] < places[4][0][1]
    left = places[1][0][1]
    assert (canvas[:, : left - 1] < 128).any(), "names at the left"
    assert (canvas[:8] == 255).all() and (canvas[:, -8:] == 255).all()


def test_unbalanced_grid_captions_every_image(tmp_path):
    images, targets = batch([3, 0, 1, 0], size=32)
    save_grid(tmp_path / "grid.png", images, targets, NAMES, columns=3)
    canvas = read(tmp_path / "grid.png")
    places = [find(canvas, enlarged(image, 3))[0] for image in images]
    assert places[1][0] == places[3][0] == places[2][0] < places[0][0]
    assert places[1][1] < places[3][1] < places[2][1] and places[0][1] == places[1][1]
    for y, x in places:
        assert (canvas[y + 96 : y + 120, x : x + 96] < 128).any(), "a caption below"


@pytest.mark.parametrize("n", [25 * 12, 25 * 12 - 1], ids=["balanced", "unbalanced"])
def test_grid_is_capped_and_says_so(tmp_path, n):
    images, labels = batch([i // 12 for i in range(n)])
    save_grid(tmp_path / "all.png", images, labels)
    save_grid(tmp_path / "wide.png", images, labels, columns=50)
    canvas = read(tmp_path / "all.png")
    assert np.array_equal(canvas, read(tmp_path / "wide.png"))
    assert canvas.shape[1] < 12 * 96 and canvas.shape[0] < 23 * (96 + 40)
    assert (canvas[-40:-10] < 200).any(), "the line at the bottom"


def test_large_images_keep_their_size(tmp_path):
    images, targets = batch([0, 0], size=150)
    save_grid(tmp_path / "grid.png", images, targets)
    assert len(find(read(tmp_path / "grid.png"), enlarged(images[0], 1))) == 1


def test_grid_with_one_narrow_image_and_a_long_name(tmp_path):
    images, targets = batch([0], size=32)
    save_grid(tmp_path / "grid.png", images, targets, ["a name much longer than the picture is wide"])
    assert read(tmp_path / "grid.png").shape[1] < 160


def test_grid_needs_a_column(tmp_path):
    with pytest.raises(ValueError, match="columns"):
        save_grid(tmp_path / "grid.png", *batch([0]), columns=0)


# numbers


def test_metrics_append_and_flush(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    with Metrics(path) as metrics:
        metrics.write({"step": 0, "loss": math.nan, "terms": {"bn": math.inf, "ce": np.float32(0.5)}})
        assert path.read_text().count("\n") == 1
    with Metrics(path) as metrics:
        metrics.write({"step": 1, "loss": 0.25, "note": None})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [
        {"step": 0, "loss": None, "terms": {"bn": None, "ce": 0.5}},
        {"step": 1, "loss": 0.25, "note": None},
    ]


def test_a_line_cut_by_a_crash_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n{"step": 1, "lo')
    with Metrics(path) as metrics:
        metrics.write({"step": 1})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"step": 0}, {"step": 1}]


@dataclass(frozen=True)
class Score:
    top1: float
    interval: tuple[float, float]


def test_json_of_dataclasses_and_numbers(tmp_path):
    path = tmp_path / "new" / "summary.json"
    write_json(path, {"score": Score(0.5, (0.25, -math.inf)), 3: [True, np.int64(2), Path("a/b"), "é"]})
    assert json.loads(path.read_text(encoding="utf-8")) == {
        "score": {"top1": 0.5, "interval": [0.25, None]},
        "3": [True, 2, "a/b", "é"],
    }


def test_a_file_is_replaced_not_rewritten(tmp_path):
    path = tmp_path / "summary.json"
    write_json(path, {"a": 1})
    with path.open() as reader:
        write_json(path, {"a": 2})
        assert json.load(reader) == {"a": 1}, "who reads meanwhile sees the old file whole"
    assert json.loads(path.read_text()) == {"a": 2}
    assert files(tmp_path) == {"summary.json"}


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "summary.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError, match="object as JSON"):
        write_json(path, {"a": object()})
    before = path.read_text()
    (tmp_path / "summary.json.tmp").mkdir()  # nothing can be written under the temporary name
    with pytest.raises(OSError):
        write_json(path, {"a": 2})
    assert path.read_text() == before


# progress


def test_plain_lines_are_few_and_the_last_step_is_among_them():
    stream = io.StringIO()
    reporter = PlainProgress(stream, interval=1e9)
    reporter.start(total=100, resumed_at=40)
    for step in range(40, 100):
        reporter.step(step, {"loss": 1 / (step + 1), "bn": 2.0} if step % 10 == 9 else None)
    reporter.message("done")
    reporter.close()
    reporter.close()
    first, message, last = stream.getvalue().splitlines()
    assert first == "resumed at step 40 of 100" and message == "done"
    assert last.startswith("step 100/100  ") and last.endswith("steps/s  loss 0.01  bn 2")


def test_plain_lines_come_at_every_interval():
    stream = io.StringIO()
    reporter = PlainProgress(stream, interval=0)
    reporter.start(total=3)
    for step in range(2):
        reporter.step(step)
    reporter.close()
    first, second = stream.getvalue().splitlines()
    assert first.startswith("step 1/3  ") and first.endswith(" left")
    assert second.startswith("step 2/3  ")


def test_closing_before_the_start_is_harmless():
    stream = io.StringIO()
    for reporter in (PlainProgress(stream), TerminalProgress(Console(file=stream)), SilentProgress()):
        reporter.close()
    assert stream.getvalue().strip() == ""


def test_a_line_shows_the_mean_over_teachers():
    stream = io.StringIO()
    reporter = PlainProgress(stream, interval=0)
    reporter.start(total=1)
    values = {"loss": 4.0, "timm/resnet18/bn_matching": 0.25, "b/bn_matching": 0.75, "b/accuracy": 1.0}
    reporter.step(0, values)
    assert stream.getvalue().endswith("loss 4  bn_matching 0.5  accuracy 1\n")


def test_terminal_shows_steps_rate_and_losses():
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=120, color_system=None)
    reporter = TerminalProgress(console)
    reporter.start(total=50, resumed_at=20)
    for step in range(20, 50):
        reporter.step(step, {"loss": 0.125} if step == 30 else None)
    reporter.message("[cyan]kept as it is[/cyan]")
    reporter.close()
    reporter.close()
    shown = stream.getvalue()
    assert "[cyan]kept as it is[/cyan]" in shown and "resumed at step 20 of 50" in shown
    last = next(line for line in reversed(shown.splitlines()) if "50/50" in line)
    assert "steps/s" in last and "loss 0.125" in last


def test_the_reporter_fits_rank_and_stream():
    assert isinstance(progress_reporter(1), SilentProgress)
    assert isinstance(progress_reporter(0, io.StringIO()), PlainProgress)
    main, terminal = os.openpty()
    with os.fdopen(main), os.fdopen(terminal, "w") as stream:
        assert isinstance(progress_reporter(0, stream), TerminalProgress)


def test_silence(capsys):
    reporter = progress_reporter(3)
    reporter.start(2)
    reporter.step(0, {"loss": 1.0})
    reporter.message("text")
    reporter.close()
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""
