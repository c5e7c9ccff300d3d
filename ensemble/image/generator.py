"""Images as what a network makes of latents: a small one that learns beside them, or a trained one that stays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

import ensemble.image.feature_inverter  # noqa: F401  (a kind of FixedGenerator)
from ensemble.image.fixed_generator import CodeImage, FixedGenerator
from ensemble.image.parameterization import ImageParameterization, Parameterization, drawn_normal
from ensemble.image.steady import convolution, linear, twice_as_large
from ensemble.machine.files import user_path
from models import ModelCard

SLOPE = 0.2
"""Of the leaky relu below zero."""


@dataclass(frozen=True)
class Generator(Parameterization, kind="generator"):
    """What a network makes of a vector for each image: one that learns with it, or a `pretrained` one, of its codes."""

    width: PositiveInt = 32
    """Feature maps before the image; twice as many before those. The image's size divides by 4."""
    latent: PositiveInt = 256
    """Numbers for each image."""
    learn: Literal["both", "latents", "weights"] = "both"
    """What is optimised; the rest stays as it was drawn or read."""
    weights: str | None = None
    """A safetensors file of the network's weights, such as a run's checkpoint; by default they are drawn anew."""
    pretrained: FixedGenerator | None = None
    """A trained generator, whose weights stay; none of the keys above is for it. Its codes start well at scale 0.85."""

    takes_images: ClassVar[bool] = False

    @property
    def couples_images(self) -> bool:
        return self.pretrained is None

    def rules(self) -> Iterator[str]:
        for key in ("width", "latent", "learn", "weights") if self.pretrained is not None else ():
            if getattr(self, key) != getattr(type(self), key):
                yield f"{key}: a pretrained generator is as it was trained; leave it out"

    def make(
        self, n: int, size: int, *, card: ModelCard, dtype: torch.dtype, device: torch.device | str
    ) -> GeneratorImage | CodeImage:
        if self.pretrained is not None:
            return CodeImage(n, size, self.pretrained.load(), dtype=dtype, device=device)
        weights = self._given_weights(size)
        return GeneratorImage(
            n,
            size,
            width=self.width,
            latent=self.latent,
            learn=self.learn,
            weights=weights,
            dtype=dtype,
            device=device,
        )

    def files_read(self) -> Sequence[str]:
        if self.pretrained is not None:
            return self.pretrained.files_read()
        return () if self.weights is None else (self.weights,)

    def check(self, size: int) -> None:
        if self.pretrained is not None:
            CodeImage(1, size, self.pretrained.load())
            return
        _check_size(size)
        self._given_weights(size)

    def _given_weights(self, size: int) -> dict[str, Tensor] | None:
        if self.weights is None:
            return None
        return read_weights(user_path(self.weights), _shapes(size, self.width, self.latent))


class GeneratorImage(ImageParameterization):
    """Images as a network G of latents z:

        h = norm(W0 z)                                      (N, 2 width, size / 4, size / 4)
        h = leaky(norm(W1 * up(h)))                         (N, 2 width, size / 2, size / 2)
        h = leaky(norm(W2 * up(h)))                         (N, width, size, size)
        x = sigmoid(W3 * h)

    `up` repeats each pixel twice both ways, * is a 3 x 3 convolution, `norm` has the mean and variance of each channel
    over the batch at hand, then a gain and a shift. So images depend on the whole batch, which every rank has.

    `latents`: (N, latent). `network`: each weight divided by 1 / sqrt(its inputs), the deviation it is drawn with, and
    each gain less 1: equal steps of an optimiser are equal to all layers. W0 z is normalised, so z's own scale does
    not change images: the smaller it is, the faster latents move against weights. What `learn` leaves out requires
    no gradient. A new image is mid grey, unless `weights` are given (the contents of `network`): these stay in
    `randomize`.

    Source: the generators of data-free distillation (Chen et al., "Data-Free Learning of Student Networks", ICCV
    2019; Fang et al., "Up to 100x Faster Data-free Knowledge Distillation", AAAI 2022), after Radford et al., "DCGAN"
    (ICLR 2016); the division of weights is Karras et al. (ICLR 2018), section 4.1. Departures: half their width, no
    biases, no normalisation of the image.

    Raises ValueError for n below 1, a size that 4 does not divide, or a dtype other than float32 and float64.
    """

    def __init__(
        self,
        n: int,
        size: int,
        *,
        width: int,
        latent: int,
        learn: Literal["both", "latents", "weights"] = "both",
        weights: Mapping[str, Tensor] | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(n, size, dtype)
        _check_size(size)
        self._draws_weights = weights is None
        self.latents = nn.Parameter(torch.zeros(n, latent, dtype=dtype, device=device), learn != "weights")
        self.network = nn.ParameterDict()
        for name, shape in _shapes(size, width, latent).items():
            value = torch.zeros(shape, dtype=dtype, device=device) if weights is None else weights[name].clone()
            self.network[name] = nn.Parameter(value.to(device, dtype), learn != "latents")

    def forward(self) -> Tensor:
        maps = linear(self.latents, self._weight("linear"))
        maps = self._normalised(maps.view(self.n, -1, self.size // 4, self.size // 4), "0")
        for block in ("1", "2"):
            maps = convolution(twice_as_large(maps), self._weight(f"convolution{block}"))
            maps = F.leaky_relu(self._normalised(maps, block), SLOPE)
        return torch.sigmoid(convolution(maps, self._weight("convolution3")))

    def set_image(self, image: Tensor) -> None:
        raise ValueError("start: a generator cannot be set to an image; use kind 'noise', which draws its latents")

    @torch.no_grad()
    def randomize(self, scale: float, rng: torch.Generator) -> None:
        """Draw the latents from N(0, scale^2); before them the weights, where none were given, from N(0, 1)."""
        for weight in self.network.values() if self._draws_weights else ():
            weight.copy_(drawn_normal(weight, 1.0, rng) if weight.ndim > 1 else torch.zeros_like(weight))
        self.latents.copy_(drawn_normal(self.latents, scale, rng))

    def _weight(self, name: str) -> Tensor:
        stored: Tensor = self.network[name]
        return stored * stored[0].numel() ** -0.5

    def _normalised(self, maps: Tensor, block: str) -> Tensor:
        gain, shift = self.network[f"gain{block}"], self.network[f"shift{block}"]
        # torch's own rather than nn.functional's, which refuses a batch of one image of 4 pixels
        return torch.batch_norm(maps, 1 + gain, shift, None, None, True, 0.0, 1e-5, torch.backends.cudnn.enabled)


def read_weights(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """A generator's weights of these shapes from the state dict of a GeneratorImage, or from a run's checkpoint.

    Raises ValueError where the file is missing, is no safetensors file, or holds other weights.
    """
    about = f"image.parameterization.weights: {path}"
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{about} cannot be read as a safetensors file ({error})") from None
    found = {
        name.removeprefix("image.").removeprefix("network."): tensor
        for name, tensor in tensors.items()
        if name.startswith(("image.network.", "network."))
    }
    if found.keys() != shapes.keys():
        raise ValueError(f"{about} holds no weights of a generator; give a checkpoint of a run of kind 'generator'")
    for name, shape in shapes.items():
        if tuple(found[name].shape) != shape:
            raise ValueError(
                f"{about} does not fit: {name} is {[*found[name].shape]}, not {[*shape]}; "
                "give the width, latent and image size that it was made with"
            )
        if not bool(found[name].isfinite().all()):
            raise ValueError(f"{about}: not all values of {name} are finite")
    return found


def _check_size(size: int) -> None:
    if size % 4:
        raise ValueError(
            f"image.parameterization: a generator's images have a size that 4 divides, not {size}; "
            f"set image.size to {size + -size % 4}"
        )


def _shapes(size: int, width: int, latent: int) -> dict[str, tuple[int, ...]]:
    """Of the network's weights, in the order in which they are drawn."""
    wide = 2 * width
    return {
        "linear": (wide * (size // 4) ** 2, latent),
        "gain0": (wide,),
        "shift0": (wide,),
        "convolution1": (wide, wide, 3, 3),
        "gain1": (wide,),
        "shift1": (wide,),
        "convolution2": (width, wide, 3, 3),
        "gain2": (width,),
        "shift2": (width,),
        "convolution3": (3, width, 3, 3),
    }
