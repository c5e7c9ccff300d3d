"""Starts from earlier batches: what becomes of an earlier image, and of which."""

from __future__ import annotations

import colorsys

import pytest
import torch
import torch.nn.functional as F

from ensemble.image.pixels import PixelImage
from ensemble.image.start import Noise
from ensemble.image.warm import Warm, _cropped, _turned
from ensemble.machine.rng import generator

PLAIN = {"new": 0.0, "zoom": 1.0, "hue": 0.0, "mixture": 0.0, "noise": Noise(scale=0.05)}


def flat(*values: float) -> torch.Tensor:
    """Grey images of 4 x 4."""
    return torch.tensor(values)[:, None, None, None].expand(-1, 3, 4, 4).clone()


def started(warm: Warm, targets: torch.Tensor, earlier: torch.Tensor, of: torch.Tensor, seed: int = 0) -> torch.Tensor:
    image = PixelImage(len(targets), earlier.shape[2], clip=True)
    warm.go_on(image, targets, earlier, of, generator(seed))
    return image().detach()


def test_an_image_is_one_of_its_class() -> None:
    earlier, of = flat(0.1, 0.2, 0.3, 0.4), torch.tensor([0, 1, 1, 2])
    targets = torch.tensor([1] * 200 + [0, 2, 3])
    found = started(Warm(same_class=1.0, **PLAIN), targets, earlier, of)[:, 0, 0, 0]
    assert set(found[:200].tolist()) == set(torch.tensor([0.2, 0.3]).tolist())
    assert found[200:202].tolist() == pytest.approx([0.1, 0.4]) and 0.1 <= found[202] <= 0.4  # nothing of class 3
    any_class = started(Warm(same_class=0.0, **PLAIN), targets, earlier, of)[:200, 0, 0, 0]
    assert torch.histc(any_class, 4, 0.05, 0.45).tolist() == pytest.approx([50] * 4, abs=20)


def test_a_share_begins_anew() -> None:
    warm = Warm(**{**PLAIN, "new": 0.3})
    found = started(warm, torch.zeros(1000, dtype=torch.long), flat(1.0), torch.tensor([0]))
    new = found.flatten(1).lt(0.99).any(1)
    assert 0.25 < float(new.double().mean()) < 0.35
    assert float(found[~new].min()) == 1.0


def test_mixtures_are_means_of_two() -> None:
    warm = Warm(same_class=1.0, **{**PLAIN, "mixture": 1.0})
    found = started(warm, torch.zeros(400, dtype=torch.long), flat(0.0, 1.0), torch.tensor([0, 0]))[:, 0, 0, 0]
    assert torch.histc(found, 3, -0.25, 1.25).tolist() == pytest.approx([100, 200, 100], abs=40)


def test_crops_are_resized_squares() -> None:
    picture = torch.rand(3, 8, 8, generator=generator(3), dtype=torch.float64)
    assert torch.equal(_cropped(picture, 1.0, torch.tensor(0.9), torch.tensor(0.2)), picture)
    expected = F.interpolate(picture[None, :, 4:8, 0:4], size=(8, 8), mode="bilinear", align_corners=False)[0]
    found = _cropped(picture, 0.5, torch.tensor(0.999), torch.tensor(0.0))
    assert torch.equal(found, expected)


def test_a_third_of_the_circle_exchanges_the_channels() -> None:
    picture = torch.rand(3, 2, 2, generator=generator(3), dtype=torch.float64)
    torch.testing.assert_close(_turned(picture, 1 / 3), picture.roll(1, 0))
    torch.testing.assert_close(_turned(picture, 0.0), picture)
    colour = torch.tensor([0.6, 0.4, 0.4], dtype=torch.float64)
    turned = _turned(colour[:, None, None], 0.1)[:, 0, 0]
    assert colorsys.rgb_to_hsv(*turned.tolist())[0] == pytest.approx(0.1, abs=0.01)
    assert float(turned.mean()) == pytest.approx(float(colour.mean()))


def test_half_are_mirrored() -> None:
    ramp = torch.linspace(0, 1, 4).expand(1, 3, 4, 4).clone()
    found = started(Warm(**PLAIN), torch.zeros(400, dtype=torch.long), ramp, torch.tensor([0]))
    assert float((found[:, 0, 0, 0] == 1).double().mean()) == pytest.approx(0.5, abs=0.1)


def test_draws_follow_the_generator() -> None:
    earlier, of = torch.rand(5, 3, 8, 8, generator=generator(1)), torch.tensor([0, 0, 1, 1, 1])
    targets = torch.tensor([0, 1, 1])
    first, again, other = (started(Warm(), targets, earlier, of, seed) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert float(first.min()) >= 0 and float(first.max()) <= 1
