"""What is optimised: Fourier coefficients under a sigmoid, or plain pixels."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

SIGMOID_EPS = 1e-3
"""`FourierImage.set_image` keeps images within [SIGMOID_EPS, 1 - SIGMOID_EPS], where the logit is finite."""

ROUNDING = 1e-3
"""How far `set_image` lets values lie outside [0, 1], less than half a step of 8 bits; they are clamped."""

# The RGB covariance of ImageNet's pixels in [0, 1], as published for the colour augmentation of Krizhevsky et
# al. 2012: eigenvalues, and eigenvectors as columns: luminance, blue against red, green against magenta.
_COLOUR_VARIANCES = (0.2175, 0.0188, 0.0045)
_COLOUR_AXES = (
    (0.5675, -0.7192, 0.4009),
    (0.5808, 0.0045, -0.8140),
    (0.5836, 0.6948, 0.4203),
)


class ImageParameterization(nn.Module, ABC):
    """A batch of n images of size x size pixels, given by parameters an optimiser can step.

    Its one parameter keeps its identity: `set_image` and `randomize` write into it.
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
        """The images, RGB, (N, 3, H, W), nominally in [0, 1]; never a view of the parameter."""

    @abstractmethod
    def set_image(self, image: Tensor) -> None:
        """Choose the parameters so that `forward()` returns `image`: RGB in [0, 1], (N, 3, H, W).

        Raises ValueError if the shape differs or a value lies outside [0, 1] by more than ROUNDING.
        """

    @abstractmethod
    def randomize(self, scale: float, rng: torch.Generator) -> None:
        """Draw the parameters from N(0, scale^2) with the CPU generator `rng`, alike for dtype and device."""

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


class FourierImage(ImageParameterization):
    """Images as Fourier coefficients c under a power law, and a sigmoid:

        x = sigmoid(M irfft2(s c)),   s(f) = a / max(|f|, 1 / size)^decay

    `coefficients`: (N, 3, H, W // 2 + 1, 2), real and imaginary parts; f in cycles per pixel, the transform
    orthonormal. a is chosen so that coefficients of unit variance give values before the sigmoid of unit
    variance. With decay 1 an optimiser's equal steps in all coefficients move the image along the 1/f
    spectrum of photographs. A new image is mid grey.

    M is the identity, or with `decorrelate` a square root of ImageNet's colour covariance V diag(v) V^T,
    M = V diag(sqrt(v)), scaled so that the mean variance over R, G, B stays 1: the channels of c are then
    luminance (strong) and two opponent colours (weak), uncorrelated in photographs.

    Source: Olah, Mordvintsev & Schubert, "Feature Visualization" (2017), preconditioning. Departures: the
    unit variance, and M derived from the covariance published after Krizhevsky et al. 2012.

    Raises ValueError for n or size below 1, a negative decay, or a dtype other than float32 and float64.
    """

    def __init__(
        self,
        n: int,
        size: int,
        *,
        decay: float = 1.0,
        decorrelate: bool = False,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(n, size, dtype)
        if not (decay >= 0 and math.isfinite(decay)):
            raise ValueError(f"image: decay must be a number >= 0, not {decay}; 1 is the spectrum of photographs")
        shape = (n, 3, size, size // 2 + 1, 2)
        self.coefficients = nn.Parameter(torch.zeros(shape, dtype=dtype, device=device))
        self.scale: Tensor
        self.imaginary: Tensor
        self.colour: Tensor | None
        self._constant("scale", _spectrum(size, decay)[..., None])
        self._constant("imaginary", _imaginary_mask(size))
        self._constant("colour", _colour_root() if decorrelate else None)

    def forward(self) -> Tensor:
        spectrum = torch.view_as_complex(self.coefficients * self.scale)
        columns = torch.view_as_real(torch.fft.ifft(spectrum, dim=-2, norm="ortho"))
        # Columns 0 and size / 2 are the spectra of real signals. Backends differ in what they do with an
        # imaginary part there (cuFFT: undefined), so it is dropped here, which is what NumPy's irfft2 does.
        columns = torch.view_as_complex(columns * self.imaginary)
        values = torch.fft.irfft(columns, n=self.size, dim=-1, norm="ortho")
        if self.colour is not None:
            values = torch.einsum("rc,nchw->nrhw", self.colour, values)
        return torch.sigmoid(values)

    @torch.no_grad()
    def set_image(self, image: Tensor) -> None:
        """Choose the coefficients so that `forward()` returns `image` within rounding.

        Values within SIGMOID_EPS of 0 and 1 are moved inwards, where the sigmoid still has a slope.
        """
        values = torch.logit(self._checked(image), eps=SIGMOID_EPS)
        if self.colour is not None:
            values = torch.einsum("cr,nrhw->nchw", torch.linalg.inv(self.colour.cpu().double()), values)
        spectrum = torch.view_as_real(torch.fft.rfft2(values, norm="ortho"))
        self.coefficients.copy_(spectrum / self.scale.cpu().double())

    @torch.no_grad()
    def randomize(self, scale: float, rng: torch.Generator) -> None:
        """Draw the coefficients from N(0, scale^2): `scale` is the deviation of values before the sigmoid."""
        self.coefficients.copy_(_normal(self.coefficients, scale, rng))

    def _constant(self, name: str, value: Tensor | None) -> None:
        moved = None if value is None else value.to(self.coefficients)
        self.register_buffer(name, moved, persistent=False)


class PixelImage(ImageParameterization):
    """Images as their own pixels p: x = p in `rgb` space, x = std p + mean per channel in `normalised` space.

    `pixels`: (N, 3, H, W). The space decides what a step of the optimiser means: published recipes step in
    the normalised space. With `clip`, `project` clips p to where x lies in [0, 1]. A new image is mid grey.

    Raises ValueError for n or size below 1, a dtype other than float32 and float64, an unknown space, or a
    mean and std that are missing in `normalised` space, given in `rgb` space, or not three numbers with
    std > 0.
    """

    def __init__(
        self,
        n: int,
        size: int,
        *,
        space: Literal["rgb", "normalised"] = "rgb",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        clip: bool = True,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(n, size, dtype)
        shift, slope = _affine(space, mean, std)
        self.space = space
        self.clip = clip
        self.mean: Tensor
        self.std: Tensor
        for name, value in (("mean", shift), ("std", slope)):
            constant = torch.tensor(value, dtype=dtype, device=device)[:, None, None]
            self.register_buffer(name, constant, persistent=False)
        grey = (0.5 - self.mean) / self.std
        self.pixels = nn.Parameter(grey.expand(n, 3, size, size).clone())

    def forward(self) -> Tensor:
        return self.pixels * self.std + self.mean

    @torch.no_grad()
    def project(self) -> None:
        """Clip the pixels in place to where RGB lies in [0, 1], if `clip`."""
        if self.clip:
            self.pixels.clamp_(-self.mean / self.std, (1 - self.mean) / self.std)

    @torch.no_grad()
    def set_image(self, image: Tensor) -> None:
        image = self._checked(image)
        self.pixels.copy_((image - self.mean.cpu().double()) / self.std.cpu().double())

    @torch.no_grad()
    def randomize(self, scale: float, rng: torch.Generator) -> None:
        """Draw the pixels, not clipped: 0.5 + N(0, scale^2) in `rgb` space, N(0, scale^2) in `normalised`."""
        centre = 0.5 if self.space == "rgb" else 0.0
        self.pixels.copy_(centre + _normal(self.pixels, scale, rng))


def _normal(like: Tensor, scale: float, rng: torch.Generator) -> Tensor:
    # Drawn in float64 on the CPU, so that float32 and float64 runs start from the same image.
    return scale * torch.randn(like.shape, generator=rng, dtype=torch.float64)


def _spectrum(size: int, decay: float) -> Tensor:
    """s(f), (H, W // 2 + 1), float64, such that unit-variance coefficients give pixels of unit variance.

    A pixel's variance is the mean over the H x W grid of the power E|C|^2 of the Hermitian spectrum C. An
    inner column stands for itself and its mirror image, power 2 s^2 each (real and imaginary part). Columns 0
    and size / 2 contain their own mirror images; averaging a coefficient with its mirror leaves power s^2.
    """
    vertical = torch.fft.fftfreq(size, dtype=torch.float64)[:, None]
    horizontal = torch.fft.rfftfreq(size, dtype=torch.float64)[None, :]
    frequency = torch.sqrt(vertical**2 + horizontal**2).clamp(min=1 / size)
    scale = frequency**-decay
    power = torch.full((size // 2 + 1,), 4.0, dtype=torch.float64)
    power[_real_columns(size)] = 1.0
    return scale / torch.sqrt((power * scale**2).sum() / size**2)


def _real_columns(size: int) -> list[int]:
    """The columns of the half spectrum that are spectra of real signals: 0, and size / 2 if that is whole."""
    return [0] if size % 2 else [0, size // 2]


def _imaginary_mask(size: int) -> Tensor:
    """(W // 2 + 1, 2): 1 where the half-transformed columns have a real and an imaginary part, else 0."""
    mask = torch.ones(size // 2 + 1, 2, dtype=torch.float64)
    mask[_real_columns(size), 1] = 0
    return mask


def _colour_root() -> Tensor:
    root = torch.tensor(_COLOUR_AXES, dtype=torch.float64)
    root = root * torch.tensor(_COLOUR_VARIANCES, dtype=torch.float64).sqrt()
    return root / torch.sqrt(root.square().sum() / 3)


def _affine(space: str, mean: Sequence[float] | None, std: Sequence[float] | None) -> tuple[list[float], list[float]]:
    if space == "rgb":
        if mean is not None or std is not None:
            raise ValueError("image: mean and std have no meaning in space 'rgb'; leave them out or use 'normalised'")
        return [0.0] * 3, [1.0] * 3
    if space != "normalised":
        raise ValueError(f"image: unknown space {space!r}; use 'rgb' or 'normalised'")
    if mean is None or std is None:
        raise ValueError("image: space 'normalised' needs the mean and std of the teachers' input")
    if len(mean) != 3 or len(std) != 3 or not all(value > 0 for value in std):
        raise ValueError(f"image: mean and std must be three numbers each, std > 0; got {mean} and {std}")
    return list(mean), list(std)
