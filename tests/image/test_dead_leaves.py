"""Dead leaves, against the law of their radii and a painter who lays the last disc first."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ensemble.image import dead_leaves as module
from ensemble.image.dead_leaves import DeadLeaves, dead_leaves, radii
from ensemble.image.fourier import FourierImage
from ensemble.image.pixels import PixelImage
from ensemble.machine.rng import generator


def painted(size: int, smallest: float, largest: float, seed: int, rounds: int = 40) -> np.ndarray:
    """One image from the back: a loop over discs and pixels, of the draws in the order of `dead_leaves`."""
    rng = generator(seed)
    discs = [
        disc
        for _ in range(rounds)
        for disc in zip(*(part.tolist() for part in module._discs(size, smallest, largest, rng)), strict=True)
    ]
    canvas = np.full((3, size, size), np.nan)
    for radius, x, y, colour in reversed(discs):
        for row in range(size):
            for column in range(size):
                if (column + 0.5 - x) ** 2 + (row + 0.5 - y) ** 2 < radius**2:
                    canvas[:, row, column] = colour
    return canvas


@pytest.mark.parametrize("seed", [0, 1])
def test_the_front_disc_is_seen(seed: int) -> None:
    (image,) = dead_leaves(1, 6, 1.0, 3.0, generator(seed))
    np.testing.assert_array_equal(image.numpy(), painted(6, 1.0, 3.0, seed, rounds=4))


def test_radii_follow_the_inverse_cube() -> None:
    drawn = radii(200_000, 1.0, 16.0, generator(2)).numpy()
    assert drawn.min() >= 1 and drawn.max() <= 16
    edges = np.geomspace(1, 8, 13)
    counts, _ = np.histogram(drawn, edges)
    density = counts / np.diff(edges)
    slope = np.polyfit(np.log(np.sqrt(edges[1:] * edges[:-1])), np.log(density), 1)[0]
    assert slope == pytest.approx(-3, abs=0.06)
    # By hand: the share below 2 is (1 - 1/4) / (1 - 1/256).
    assert (drawn < 2).mean() == pytest.approx(0.75 / (1 - 1 / 256), abs=0.005)


def test_centres_are_uniform_and_what_cannot_be_seen_is_left_out() -> None:
    rng = generator(3)
    parts = [module._discs(32, 1.0, 16.0, rng) for _ in range(200)]
    radius, x, y, colour = (torch.cat(part) for part in zip(*parts, strict=True))
    assert bool(((x + radius > 0) & (x - radius < 32) & (y + radius > 0) & (y - radius < 32)).all())
    small = radius < 2
    for centre in (x[small], y[small]):
        inside = centre[(centre > 0) & (centre < 32)]
        assert inside.mean().item() == pytest.approx(16, abs=0.5)
        assert inside.std().item() == pytest.approx(32 / 12**0.5, rel=0.03)
    large = radius > 8
    for centre in (x[large], y[large]):  # they reach in from outside
        assert centre.min() < -6 and centre.max() > 38
    assert colour.mean().item() == pytest.approx(0.5, abs=0.02) and colour.std().item() == pytest.approx(
        1 / 12**0.5, rel=0.02
    )


def test_a_pixel_is_uniform_and_images_differ_in_their_means() -> None:
    images = dead_leaves(300, 8, 0.5, 4.0, generator(4))
    assert images.min() >= 0 and images.max() <= 1
    corner = images[:, :, 0, 0].flatten()
    middle = images[:, :, 4, 4].flatten()
    for pixel in (corner, middle):  # borders are as the middle
        assert pixel.mean().item() == pytest.approx(0.5, abs=0.04)
        assert pixel.std().item() == pytest.approx(1 / 12**0.5, rel=0.08)
    means = images.mean((2, 3))
    assert 0.05 < means.std().item() < 0.2


def test_images_depend_on_the_seed_alone() -> None:
    first = dead_leaves(3, 8, 0.5, 4.0, generator(5))
    assert torch.equal(first, dead_leaves(3, 8, 0.5, 4.0, generator(5)))
    assert torch.equal(first[:2], dead_leaves(2, 8, 0.5, 4.0, generator(5)))
    assert not torch.equal(first, dead_leaves(3, 8, 0.5, 4.0, generator(6)))
    assert not torch.equal(first[0], first[1])


@pytest.mark.parametrize("size", [1, 5, 8])
def test_they_are_set_into_any_parameterization(size: int) -> None:
    expected = dead_leaves(2, size, size / 32, size / 2, generator(7))
    for images, tolerance in (
        (PixelImage(2, size, clip=True), 1e-6),
        (FourierImage(2, size, decay=1.0, decorrelate=True), 1.1e-3),
    ):
        start = DeadLeaves()
        start.check(size)
        start.set(images, generator(7))
        torch.testing.assert_close(images().double(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"smallest": 0.5, "largest": 0.5}, "smallest: 0.5 must be below largest, 0.5"),
        ({"smallest": 0.0}, "smallest"),
        ({"largest": 1.5}, "largest"),
    ],
)
def test_mistakes_are_explained(fields: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DeadLeaves(**fields)
