"""Images as Fourier coefficients under a power law, and a sigmoid."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import NonNegativeFloat
from torch import Tensor, nn

from ensemble.image.parameterization import ImageParameterization, Parameterization, coarse_part, drawn_normal
from models import ModelCard

SIGMOID_EPS = 1e-3
"""`FourierImage.set_image` keeps images within [SIGMOID_EPS, 1 - SIGMOID_EPS], where the logit is finite."""

# The RGB covariance of ImageNet's pixels in [0, 1], as published for the colour augmentation of Krizhevsky et
# al. 2012: eigenvalues, and eigenvectors as columns: luminance, blue against red, green against magenta.
_COLOUR_VARIANCES = (0.2175, 0.0188, 0.0045)
_COLOUR_AXES = (
    (0.5675, -0.7192, 0.4009),
    (0.5808, 0.0045, -0.8140),
    (0.5836, 0.6948, 0.4203),
)


@dataclass(frozen=True)
class Fourier(Parameterization, kind="fourier"):
    """Fourier coefficients scaled by 1/f^decay, pixels through a sigmoid."""

    decay: NonNegativeFloat = 1.0
    """1 is the spectrum of photographs."""
    decorrelate: bool = True
    """Optimise luminance and two opponent colours, in the proportions of photographs."""

    def make(
        self, n: int, size: int, *, card: ModelCard, dtype: torch.dtype, device: torch.device | str
    ) -> FourierImage:
        return FourierImage(n, size, decay=self.decay, decorrelate=self.decorrelate, dtype=dtype, device=device)


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

    Raises ValueError for n or size below 1, or a dtype other than float32 and float64.
    """

    def __init__(
        self,
        n: int,
        size: int,
        *,
        decay: float,
        decorrelate: bool,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(n, size, dtype)
        shape = (n, 3, size, size // 2 + 1, 2)
        self.coefficients = nn.Parameter(torch.zeros(shape, dtype=dtype, device=device))
        self.scale: Tensor
        self.imaginary: Tensor
        self.colour: Tensor | None
        self._constant("scale", _spectrum(size, decay)[..., None])
        self._constant("imaginary", imaginary_mask(size))
        self._constant("colour", colour_root() if decorrelate else None)

    def forward(self) -> Tensor:
        values = pixels_of(self.coefficients * self.scale, self.imaginary, self.size)
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
        self.coefficients.copy_(drawn_normal(self.coefficients, scale, rng))

    @torch.no_grad()
    def vary(self, amplitude: Tensor, colour: Tensor) -> None:
        coefficients, scale = (value.detach().cpu().double() for value in (self.coefficients, self.scale))
        varied = coefficients * (1 + (amplitude[:, None, None] - 1) * coarse_part(self.size))[:, None, :, :, None]
        if self.colour is not None:
            colour = colour @ torch.linalg.inv(self.colour.cpu().double()).T
        varied[:, :, 0, 0, 0] += colour * self.size / scale[0, 0]  # orthonormal: the mean times size
        self.coefficients.copy_(varied)

    def _constant(self, name: str, value: Tensor | None) -> None:
        moved = None if value is None else value.to(self.coefficients)
        self.register_buffer(name, moved, persistent=False)


def pixels_of(spectrum: Tensor, imaginary: Tensor, size: int) -> Tensor:
    """The orthonormal irfft2 of a half spectrum (..., H, W // 2 + 1, 2): (..., H, W); `imaginary` is its mask."""
    columns = torch.view_as_real(torch.fft.ifft(torch.view_as_complex(spectrum), dim=-2, norm="ortho"))
    # Columns 0 and size / 2 are the spectra of real signals. Backends differ in what they do with an
    # imaginary part there (cuFFT: undefined), so it is dropped here, which is what NumPy's irfft2 does.
    columns = torch.view_as_complex(columns * imaginary)
    return torch.fft.irfft(columns, n=size, dim=-1, norm="ortho")


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
    power[real_columns(size)] = 1.0
    return scale / torch.sqrt((power * scale**2).sum() / size**2)


def real_columns(size: int) -> list[int]:
    """The columns of the half spectrum that are spectra of real signals: 0, and size / 2 if that is whole."""
    return [0] if size % 2 else [0, size // 2]


def imaginary_mask(size: int) -> Tensor:
    """(W // 2 + 1, 2): 1 where the half-transformed columns have a real and an imaginary part, else 0."""
    mask = torch.ones(size // 2 + 1, 2, dtype=torch.float64)
    mask[real_columns(size), 1] = 0
    return mask


def colour_root() -> Tensor:
    """M, (3, 3), float64: from uncorrelated luminance, blue against red, green against magenta to R, G, B."""
    root = torch.tensor(_COLOUR_AXES, dtype=torch.float64)
    root = root * torch.tensor(_COLOUR_VARIANCES, dtype=torch.float64).sqrt()
    return root / torch.sqrt(root.square().sum() / 3)
