"""A small generator that inverts a CIFAR network's last feature maps; its weights come with the package."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ensemble.image.fixed_generator import CodeSpace, FixedGenerator
from ensemble.image.steady import convolution, twice_as_large
from ensemble.machine.files import user_path

BUNDLED = Path(__file__).parent / "weights" / "feature_inverter.safetensors"
SLOPE = 0.2
"""Of the leaky relu below zero."""


@dataclass(frozen=True)
class FeatureInverter(FixedGenerator, kind="feature_inverter"):
    """A network that was trained to undo another one's features."""

    weights: str | None = None
    """A safetensors file that demos/train_feature_inverter.py made; by default the bundled one, 32 x 32 from CIFAR."""

    def files_read(self) -> Sequence[str]:
        return () if self.weights is None else (self.weights,)

    def load(self) -> CodeSpace:
        return read_inverter(BUNDLED if self.weights is None else user_path(self.weights))


class InverterNetwork(nn.Module):
    """Codes z, (N, C, h, h), to images, with a 3 x 3 convolution W_i, zero-padded, and a shift b_i a layer:

        h = leaky(W_0 * z + b_0)
        h = leaky(W_i * up(h) + b_i)                        i = 1 .. L - 2
        x = sigmoid(W_(L-1) * h + b_(L-1))                  (N, 3, 2^(L-2) h, 2^(L-2) h)

    `up` repeats each pixel twice both ways. The BatchNorms of training are in W and b.

    Source: the inverters of Dosovitskiy & Brox, "Inverting Visual Representations with Convolutional Networks" (CVPR
    2016). Departures: far smaller; repeated pixels and 3 x 3 convolutions for up-convolutions; a sigmoid.
    """

    def __init__(self, weights: list[Tensor], biases: list[Tensor]) -> None:
        super().__init__()
        self.weights, self.biases = nn.ParameterList(weights), nn.ParameterList(biases)

    def forward(self, codes: Tensor) -> Tensor:
        maps, last = codes, len(self.weights) - 1
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            maps = twice_as_large(maps) if 0 < layer < last else maps
            maps = convolution(maps, weight) + bias[:, None, None]
            maps = F.leaky_relu(maps, SLOPE) if layer < last else torch.sigmoid(maps)
        return maps


def read_inverter(path: Path) -> CodeSpace:
    """The network in a file of `weight0`, `bias0`, `weight1` ... and `highest`, (C, h, h); the lowest codes are 0.

    Raises ValueError where the file is missing, is no safetensors file, or holds other tensors.
    """
    about = f"image.parameterization.pretrained.weights: {path}"
    try:
        tensors = {name: tensor.float() for name, tensor in load_file(path).items()}
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{about} cannot be read as a safetensors file ({error})") from None
    layers = range(len(tensors) // 2)
    expected = {"highest", *(f"{part}{i}" for part in ("weight", "bias") for i in layers)}
    if len(layers) < 2 or tensors.keys() != expected:
        raise ValueError(f"{about} holds no feature inverter; give a file of demos/train_feature_inverter.py")
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{about}: not all values of {name} are finite")
    weights, biases = ([tensors[f"{part}{i}"] for i in layers] for part in ("weight", "bias"))
    return CodeSpace(InverterNetwork(weights, biases), torch.zeros_like(tensors["highest"]), tensors["highest"])
