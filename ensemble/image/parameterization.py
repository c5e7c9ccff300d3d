"""What is optimised: a batch of images given by parameters that an optimiser can step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ensemble.config.kinds import Kind
from models import ModelCard

ROUNDING = 1e-3
"""How far `set_image` lets values lie outside [0, 1], less than half a step of 8 bits; they are clamped."""

COARSE = 4
"""`vary` multiplies frequencies of up to so many cycles an image."""


@dataclass(frozen=True)
class Parameterization(Kind, default="fourier"):
    """How parameters become images."""

    takes_images: ClassVar[bool] = True
    """Whether its images have `set_image` and `vary`."""

    @property
    def couples_images(self) -> bool:
        """Whether a step moves an image by the gradient of another."""
        return False

    @abstractmethod
    def make(
        self, n: int, size: int, *, card: ModelCard, dtype: torch.dtype, device: torch.device | str
    ) -> ImageParameterization:
        """n images of size x size pixels, mid grey; `card` is the first teacher's."""

    def check(self, size: int) -> None:
        """ValueError for what `make` would refuse, before anything is loaded or written."""


class ImageParameterization(nn.Module, ABC):
    """A batch of n images of size x size pixels, given by parameters an optimiser can step.

    Its parameters keep their identity: `set_image`, `randomize` and `vary` write into them.
    """

    def __init__(self, n: int, size: int, dtype: torch.dtype) -> None:
        super().__init__()
        if n < 1 or size < 1:
            raise ValueError(f"image: batch size and size must be at least 1, not {n} and {size}")
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"image: dtype must be float32 or float64, not {dtype}; only teachers run in less")
        self.n = n
        self.size = size

    @abstractmethod
    def forward(self) -> Tensor:
        """The images, RGB, (N, 3, H, W), nominally in [0, 1]; never a view of a parameter."""

    @abstractmethod
    def set_image(self, image: Tensor) -> None:
        """Choose the parameters so that `forward()` returns `image`: RGB in [0, 1], (N, 3, H, W).

        Raises ValueError if the shape differs or a value lies outside [0, 1] by more than ROUNDING.
        """

    @abstractmethod
    def randomize(self, scale: float, rng: torch.Generator) -> None:
        """Draw the parameters from N(0, scale^2) with the CPU generator `rng`, alike for dtype and device."""

    def vary(self, amplitude: Tensor, colour: Tensor) -> None:
        """Make images differ: multiply the coarse structure of each by `amplitude`, (N,), then add `colour`, (N, 3).

        Coarse: frequencies of up to COARSE cycles an image, the mean apart. Both act where `randomize` draws: on
        pixels, or on values before a sigmoid. `colour` is red, green, blue; both are float64, on the CPU.
        Raises ValueError where the parameters are none of these.
        """
        raise ValueError(f"start: {type(self).__name__} has no coarse structure and colour to vary; leave spreads at 0")

    @torch.no_grad()
    def repeat(self, fewer: ImageParameterization, times: int) -> None:
        """Image i becomes image i // `times` of `fewer`; what all images share becomes what they share there."""
        rows = torch.arange(self.n) // times
        for own, other in zip(self.parameters(), fewer.parameters(), strict=True):
            own.copy_(other if own.shape == other.shape else other[rows.to(other.device)])

    def bounds(self) -> tuple[Tensor, Tensor] | None:
        """The lowest and highest values of the parameters, which broadcast to them; None where there are none."""
        return None

    def project(self) -> None:
        """Bring the parameters back into the valid range; called after each step of the optimiser."""

    def _checked(self, image: Tensor) -> Tensor:
        """`image` in float64 on the CPU, where inverse maps are computed."""
        expected = (self.n, 3, self.size, self.size)
        if tuple(image.shape) != expected:
            raise ValueError(f"image: expected shape {expected}, got {tuple(image.shape)}; resize the image first")
        image = image.detach().to("cpu", torch.float64)
        if not bool(((image >= -ROUNDING) & (image <= 1 + ROUNDING)).all()):
            raise ValueError("image: values must lie in [0, 1]; divide 8-bit values by 255, clamp the rest")
        return image.clamp(0, 1)


def coarse_part(size: int) -> Tensor:
    """(H, W // 2 + 1), float64: 1 where a half spectrum's frequency is what `vary` multiplies, else 0."""
    vertical = (size * torch.fft.fftfreq(size, dtype=torch.float64)[:, None]).round()
    horizontal = torch.arange(size // 2 + 1, dtype=torch.float64)[None, :]
    squared = vertical**2 + horizontal**2
    return ((squared > 0) & (squared <= COARSE**2)).double()


def drawn_normal(like: Tensor, scale: float, rng: torch.Generator) -> Tensor:
    """N(0, scale^2) in the shape of `like`, in float64 on the CPU: float32 and float64 runs start from one image."""
    return scale * torch.randn(like.shape, generator=rng, dtype=torch.float64)
