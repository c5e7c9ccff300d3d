"""Batches as pictures, compared pixel by pixel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ensemble.image.pictures import draw_grid

NAMES = ("airplane", "tench, Tinca tinca", "../evil", "???")


def batch(targets: list[int], size: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.rand(len(targets), 3, size, size, generator=torch.Generator().manual_seed(0))
    return images, torch.tensor(targets)


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
    draw_grid(images, targets, NAMES).save(tmp_path / "grid.png")
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
    draw_grid(images, targets, NAMES, columns=3).save(tmp_path / "grid.png")
    canvas = read(tmp_path / "grid.png")
    places = [find(canvas, enlarged(image, 3))[0] for image in images]
    assert places[1][0] == places[3][0] == places[2][0] < places[0][0]
    assert places[1][1] < places[3][1] < places[2][1] and places[0][1] == places[1][1]
    for y, x in places:
        assert (canvas[y + 96 : y + 120, x : x + 96] < 128).any(), "a caption below"


@pytest.mark.parametrize("n", [25 * 12, 25 * 12 - 1], ids=["balanced", "unbalanced"])
def test_grid_is_capped_and_says_so(tmp_path, n):
    images, labels = batch([i // 12 for i in range(n)])
    draw_grid(images, labels).save(tmp_path / "all.png")
    draw_grid(images, labels, columns=50).save(tmp_path / "wide.png")
    canvas = read(tmp_path / "all.png")
    assert np.array_equal(canvas, read(tmp_path / "wide.png"))
    assert canvas.shape[1] < 12 * 96 and canvas.shape[0] < 23 * (96 + 40)
    assert (canvas[-40:-10] < 200).any(), "the line at the bottom"


def test_large_images_keep_their_size(tmp_path):
    images, targets = batch([0, 0], size=150)
    draw_grid(images, targets).save(tmp_path / "grid.png")
    assert len(find(read(tmp_path / "grid.png"), enlarged(images[0], 1))) == 1


def test_grid_with_one_narrow_image_and_a_long_name(tmp_path):
    images, targets = batch([0], size=32)
    draw_grid(images, targets, ["a name much longer than the picture is wide"]).save(tmp_path / "grid.png")
    assert read(tmp_path / "grid.png").shape[1] < 160


def test_of_a_long_name_the_beginning_or_the_end_is_shown():
    images, targets = batch([0], size=96)
    named, ended = "a name of an image xyz", "abc an end of a layer:7"

    def same(one, other, **how):
        return np.array_equal(*(np.array(draw_grid(images, targets, [name], **how)) for name in (one, other)))

    assert same(named, named + " which is long") and not same(named, "b" + named[1:])
    assert same(ended, "which is long " + ended, ends=True) and not same(ended, ended[:-1] + "8", ends=True)


def test_grid_needs_a_column(tmp_path):
    with pytest.raises(ValueError, match="columns"):
        draw_grid(*batch([0]), columns=0).save(tmp_path / "grid.png")
