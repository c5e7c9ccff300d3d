"""Near-duplicates against NumPy's correlation, and what counts as one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ensemble.evaluation.near_duplicates import THRESHOLD, near_duplicates, thumbnails


def pictures(n: int, seed: int = 0, size: int = 32) -> torch.Tensor:
    """Smooth random images, of which none resembles another."""
    coarse = torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear")


def found(images: torch.Tensor) -> list[bool]:
    return near_duplicates(thumbnails(images)).tolist()


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Of two images (3, 32, 32) averaged in blocks of 2 x 2, the larger of both mirrorings."""
    a, b = (x.reshape(3, 16, 2, 16, 2).mean((2, 4)) for x in (a, b))
    return max(np.corrcoef(x.ravel(), b.ravel())[0, 1] for x in (a, a[:, :, ::-1]))


@pytest.mark.parametrize("block", [2**24, 20], ids=["one block", "many blocks"])
def test_against_correlations(monkeypatch, block):
    monkeypatch.setattr("ensemble.evaluation.near_duplicates._BLOCK", block)
    images = pictures(12)
    for i, share in enumerate((0.1, 0.25, 0.35, 0.5, 0.8)):  # mixtures of the first with another, mirrored by turns
        mixed = (1 - share) * images[0] + share * images[6 + i]
        images[1 + i] = mixed.flip(2) if i % 2 else mixed
    values = images.double().numpy()
    best = [max(correlation(a, b) for j, b in enumerate(values) if j != i) for i, a in enumerate(values)]
    expected = [value > THRESHOLD for value in best]
    assert 2 < sum(expected) < 10 and min(abs(value - THRESHOLD) for value in best) > 1e-4
    assert found(images) == expected
    against = [max(correlation(a, b) for b in values[:3]) > THRESHOLD for a in values[3:]]
    assert near_duplicates(thumbnails(images[3:]), thumbnails(images[:3])).tolist() == against


def test_what_keeps_an_image_a_duplicate():
    image = pictures(1) * 0.8
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(1)) * 0.03
    for other in (image, image.flip(3), image + 0.1, image * 0.5, image + noise):
        assert found(torch.cat([image, other, pictures(3, seed=2)])) == [True, True, False, False, False]
    assert found(torch.cat([image, 1 - image])) == [False, False]  # the negative is another picture
    assert found(torch.cat([image, image.flip(2)])) == [False, False]  # so is one that stands on its head


def test_flat_images_repeat_one_another_and_nothing_else():
    grey = torch.full((1, 3, 32, 32), 0.5)
    assert found(torch.cat([grey, grey * 0.6, pictures(2)])) == [True, True, False, False]
    assert found(torch.cat([grey, pictures(2)])) == [False, False, False]


def test_bytes_sizes_and_few_images():
    images = pictures(4, size=64)
    as_bytes = (images * 255).round().to(torch.uint8)
    torch.testing.assert_close(thumbnails(as_bytes), thumbnails(images), atol=0.01, rtol=0)
    assert thumbnails(images[:, :, :8, :5]).shape == (4, 769)
    assert found(images[:1]) == [False]
    assert near_duplicates(thumbnails(images), torch.empty(0, 769)).tolist() == [False] * 4
