"""Where the channels of a layer's input are, also where the shape alone does not tell."""

from __future__ import annotations

import pytest
import timm.layers as timm_layers
import torch
from torch import nn
from torchvision.models.convnext import LayerNorm2d

from ensemble.teachers.channels import channel_dim, channels_of, is_norm


class RootMeanSquare(nn.Module):
    """A norm of its own, over the last dimension, without a `normalized_shape`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x * x.square().mean(-1, keepdim=True).add(1e-6).rsqrt()


class RMSNorm(RootMeanSquare):
    pass


class NormedLinear(nn.Linear):
    pass


FIRST, LAST = (2, 8, 5, 5), (2, 5, 5, 8)
SQUARE = (2, 8, 8, 8)
"""As many rows and columns as channels."""


@pytest.mark.parametrize(
    ("module", "shape", "dim"),
    [
        (nn.LayerNorm(8), (2, 8), -1),
        (nn.LayerNorm(8), (2, 10, 8), -1),
        (nn.LayerNorm(8), (2, 8, 8), -1),
        (nn.LayerNorm(8), LAST, -1),
        (nn.LayerNorm(8), SQUARE, -1),
        (nn.LayerNorm((8, 5, 5)), FIRST, 1),
        (nn.LayerNorm((8, 8, 8)), SQUARE, 1),
        (nn.LayerNorm((10, 8)), (2, 10, 8), -1),
        (nn.RMSNorm(8), SQUARE, -1),
        (LayerNorm2d(8), SQUARE, 1),
        (timm_layers.LayerNorm2d(8), SQUARE, 1),
        (timm_layers.RmsNorm2d(8), SQUARE, 1),
        (timm_layers.RmsNorm(8), SQUARE, -1),
        (timm_layers.GroupNormAct(8, 2), SQUARE, 1),
        (RMSNorm(8), SQUARE, -1),
        (RMSNorm(8), (2, 10, 8), -1),
        (nn.GroupNorm(2, 8), FIRST, 1),
        (nn.GroupNorm(2, 8), (2, 8, 8), 1),
        (nn.InstanceNorm2d(8), SQUARE, 1),
        (nn.Conv2d(8, 4, 1), SQUARE, 1),
        (nn.ConvTranspose2d(8, 4, 1), FIRST, 1),
        (nn.Conv1d(8, 4, 1), (2, 8, 8), 1),
        (nn.Linear(8, 3), SQUARE, -1),
        (nn.Linear(8, 3), (2, 8), -1),
        (nn.LayerNorm(8), (2, 7, 7), None),
        (nn.Conv2d(8, 4, 1), LAST, None),
        (nn.Linear(8, 3), FIRST, None),
        (nn.GELU(), FIRST, None),
    ],
)
def test_the_dimension(module: nn.Module, shape: tuple[int, ...], dim: int | None) -> None:
    assert channel_dim(module, shape) == dim
    if dim is not None:
        assert channels_of(module) == 8
        module(torch.zeros(shape))


def test_what_is_made_of_a_norm_is_one() -> None:
    class LN2d(nn.LayerNorm):
        """Over the channels of maps."""

    assert is_norm(LN2d(8)) and channels_of(LN2d(8)) == 8


def test_norms() -> None:
    assert all(map(is_norm, (nn.LayerNorm(8), nn.GroupNorm(2, 8), nn.RMSNorm(8), RMSNorm(8), nn.InstanceNorm2d(8))))
    others = (NormedLinear(8, 8), nn.Linear(8, 8), nn.Conv2d(8, 8, 1), RootMeanSquare(8), nn.GELU())
    assert not any(map(is_norm, others))


def test_a_block_that_is_named_after_a_norm_is_none() -> None:
    class PreNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(8))
            self.norm = nn.LayerNorm(8)

    assert channels_of(PreNorm()) is None
