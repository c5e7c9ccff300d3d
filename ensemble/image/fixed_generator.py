"""Images as what a trained generator, whose weights stay as they are, makes of codes."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ensemble.config.kinds import Kind
from ensemble.image.parameterization import ImageParameterization, drawn_normal
from ensemble.image.steady import in_one_thread
from ensemble.image.transforms import resize_bilinear
from models import retold

_ABOUT = "image.parameterization.pretrained"
_ROUNDING = 1e-3
"""So far may images lie outside [0, 1]."""


@dataclass(frozen=True)
class CodeSpace:
    """A generator, and what its codes may be.

    `network` takes codes (N, *C) to square images (N, 3, S, S), RGB in [0, 1], each made of its own code alone. `low`
    and `high`, (*C), are the bounds of each number of a code.
    """

    network: nn.Module
    low: Tensor
    high: Tensor


@dataclass(frozen=True)
class FixedGenerator(Kind, default="feature_inverter"):
    """A trained generator; its codes are what is optimised."""

    @abstractmethod
    def load(self) -> CodeSpace:
        """The generator, on the CPU. Raises ValueError where its files are missing or do not fit."""


class CodeImage(ImageParameterization):
    """Images as a fixed generator G of codes z, kept between bounds:

        x = resize(G(z)),   low <= z <= high

    `codes`: (N, *C), as `space` says. `resize` is bilinear with antialiasing, where G's images have another size.
    `project` clips codes to the bounds. A new image has the code 0, or the bound next to it; it need not be grey.
    Every rank computes all images. On a CPU one thread does, so that ranks have the same bits whatever G is.

    Source: Nguyen et al., "Synthesizing the preferred inputs for neurons in neural networks via deep generator
    networks" (NeurIPS 2016), whose bounds are 0 and mean + 3 deviations of real images' codes. Departures: whatever
    views a stage has act on G's images, and a start is clipped to the bounds too.

    Raises ValueError for n or size below 1, a dtype other than float32 and float64, bounds that are none or infinite,
    or a G that takes no such codes or makes no such images: the one of the first code is tried.
    """

    def __init__(
        self,
        n: int,
        size: int,
        space: CodeSpace,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(n, size, dtype)
        if not isinstance(space.low, Tensor) or not isinstance(space.high, Tensor):
            raise ValueError(f"{_ABOUT}: `low` and `high` are tensors (*C), a bound for each number of a code")
        low, high = (bound.detach().to(device, dtype) for bound in (space.low, space.high))
        if low.shape != high.shape or not bool((low <= high).all()):
            raise ValueError(f"{_ABOUT}: `low` and `high` are of one shape, and low <= high")
        if not low.ndim or not bool((low.isfinite() & high.isfinite()).all()):
            raise ValueError(f"{_ABOUT}: `low` and `high` have one dimension or more, and finite numbers")
        self.low: Tensor
        self.high: Tensor
        self.register_buffer("low", low, persistent=False)
        self.register_buffer("high", high, persistent=False)
        network = space.network.to(device, dtype).eval().requires_grad_(False)
        self._network = [network]  # in a list: its weights are no part of a run's state
        self.codes = nn.Parameter(low.new_zeros(n, *low.shape))
        self.project()
        _check_images(network, self.codes.detach()[:1])

    def forward(self) -> Tensor:
        return in_one_thread(self._images, self.codes)

    def _images(self, codes: Tensor) -> Tensor:
        images: Tensor = self._network[0](codes)
        return images if images.shape[-1] == self.size else resize_bilinear(images, self.size)

    def set_image(self, image: Tensor) -> None:
        raise ValueError("start: a generator cannot be set to an image; use kind 'noise', which draws its codes")

    @torch.no_grad()
    def randomize(self, scale: float, rng: torch.Generator) -> None:
        """Draw the codes as scale x high x N(0, 1), clipped to the bounds: with low 0, scale x high x max(N(0, 1), 0).

        A scale of 0.85 is what cnnpref starts from, 10 max(N(0, 1), 0) where upper bounds are near 12.
        """
        self.codes.copy_(self.high.cpu().double() * drawn_normal(self.codes, scale, rng))
        self.project()

    def bounds(self) -> tuple[Tensor, Tensor]:
        """The lowest and the highest values of `codes`, each (*C)."""
        return self.low, self.high

    @torch.no_grad()
    def project(self) -> None:
        """Clip the codes in place to their bounds."""
        self.codes.clamp_(self.low, self.high)


@torch.no_grad()
def _check_images(network: nn.Module, code: Tensor) -> None:
    with retold(f"{_ABOUT}: the network does not take codes of {[*code.shape]}"):
        images = network(code)
        shape = tuple(images.shape)
    if len(shape) != 4 or shape[:2] != (1, 3) or shape[2] != shape[3]:
        raise ValueError(f"{_ABOUT}: of a code {[*code.shape]} come images {[*shape]}, not [1, 3, S, S]")
    lowest, highest = float(images.min()), float(images.max())
    if not -_ROUNDING <= lowest <= highest <= 1 + _ROUNDING:
        raise ValueError(f"{_ABOUT}: images are RGB in [0, 1], and the network's are {lowest:.3g} to {highest:.3g}")
