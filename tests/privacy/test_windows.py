"""The second class of a window: a network that names the brightest colour says what must come out."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ensemble.privacy.study.windows import second_class, windows
from models import ModelCard

CARD = ModelCard("colours", "test", 8, 3, mean=(0.0,) * 3, std=(1.0,) * 3)


class Colours(nn.Module):
    """The logits are the mean red, green and blue, by ten."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.shape[-2:] == (8, 8)
        return 10 * x.mean((2, 3))


def halves() -> torch.Tensor:
    """One image: blue in the upper left quarter, red elsewhere; one that is all red."""
    images = torch.zeros(2, 3, 8, 8)
    images[:, 0] = 1
    images[0, :, :4, :4] = torch.tensor([0.0, 0.0, 1.0])[:, None, None]
    return images


def test_windows_are_halves_a_quarter_apart() -> None:
    image = torch.arange(64.0).view(1, 1, 8, 8)
    made = windows(image)
    assert made.shape == (1, 9, 1, 4, 4)
    assert made[0, :, 0, 0, 0].tolist() == [8.0 * y + x for y in (0, 2, 4) for x in (0, 2, 4)]


def test_the_window_over_the_other_class_is_found() -> None:
    found = second_class(Colours(), CARD, halves())
    other = torch.tensor([0.0, 0.0, 10.0]).double().softmax(0)
    torch.testing.assert_close(found, torch.stack([other[2], other[0]]))


def test_the_target_is_not_counted_whatever_the_whole_image_shows() -> None:
    found = second_class(Colours(), CARD, halves(), torch.tensor([2, 1]))
    red = torch.tensor([10.0, 0.0, 0.0]).double().softmax(0)[0]
    torch.testing.assert_close(found, red.expand(2))


def test_images_are_enlarged_to_the_judges_input_and_counted_over_parts() -> None:
    images = nn.functional.interpolate(halves(), size=16).repeat(40, 1, 1, 1)
    torch.testing.assert_close(
        second_class(Colours(), CARD, images, torch.zeros(80, dtype=torch.long)),
        second_class(Colours(), CARD, halves(), torch.zeros(2, dtype=torch.long)).repeat(40),
    )


def test_images_without_windows_are_refused() -> None:
    with pytest.raises(ValueError, match="4 a side at least"):
        second_class(Colours(), CARD, torch.rand(1, 3, 3, 8))
