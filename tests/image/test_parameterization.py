"""What is optimised, against NumPy's FFT, hand values and finite differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ensemble.image.fourier import Fourier, FourierImage
from ensemble.image.generator import Generator
from ensemble.image.maco import Maco
from ensemble.image.parameterization import ImageParameterization, Parameterization
from ensemble.image.pixels import PixelImage, Pixels
from ensemble.machine.rng import generator
from models import ModelCard

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BUILDERS: dict[str, tuple[type[ImageParameterization], dict[str, Any]]] = {
    "fourier": (FourierImage, {"decay": 1.0, "decorrelate": False}),
    "fourier decorrelated": (FourierImage, {"decay": 1.0, "decorrelate": True}),
    "rgb": (PixelImage, {"clip": True}),
    "normalised": (PixelImage, {"clip": True, "normalised": (MEAN, STD)}),
}


def build(name: str, n: int, size: int, dtype: torch.dtype = torch.float64) -> ImageParameterization:
    cls, options = BUILDERS[name]
    return cls(n, size, dtype=dtype, **options)


def numpy_values(coefficients: np.ndarray, size: int, decay: float) -> np.ndarray:
    """The values before the sigmoid, from the full Hermitian spectrum and a complex transform."""
    half = coefficients[..., 0] + 1j * coefficients[..., 1]
    f = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :])
    half = half / np.maximum(f, 1 / size) ** decay
    full = np.zeros((*half.shape[:-1], size), complex)
    power = np.zeros((size, size))  # E|C|^2 for unit-variance coefficients
    for ky in range(size):
        for kx in range(size):
            s = 1 / max(f[ky, min(kx, size - kx)], 1 / size) ** decay
            mirror = (-ky % size, -kx % size)
            if kx == mirror[1]:
                full[..., ky, kx] = (half[..., ky, kx] + half[..., mirror[0], kx].conj()) / 2
                power[ky, kx] = s**2
            elif kx < half.shape[-1]:
                full[..., ky, kx] = half[..., ky, kx]
                power[ky, kx] = 2 * s**2
            else:
                full[..., ky, kx] = half[..., mirror[0], mirror[1]].conj()
                power[ky, kx] = 2 * s**2
    values = np.fft.ifft2(full, norm="ortho")
    assert np.abs(values.imag).max() < 1e-12
    return values.real / np.sqrt(power.mean())


@pytest.mark.parametrize("size", [1, 2, 5, 8])
@pytest.mark.parametrize("decay", [0.0, 1.0, 1.5])
def test_fourier_equals_numpy(size: int, decay: float) -> None:
    images = FourierImage(2, size, decay=decay, decorrelate=False, dtype=torch.float64)
    images.randomize(1.0, generator(0))
    values = numpy_values(images.coefficients.detach().numpy(), size, decay)
    np.testing.assert_allclose(images().detach().numpy(), 1 / (1 + np.exp(-values)), atol=1e-13)


@pytest.mark.parametrize("size", [7, 8])
def test_unit_coefficients_give_unit_variance_everywhere(size: int) -> None:
    """Exactly: a pixel's variance is the sum of its squared derivatives by the coefficients."""
    images = build("fourier", 1, size)
    weights = images.coefficients.detach()

    def values(coefficients: torch.Tensor) -> torch.Tensor:
        pixels = torch.func.functional_call(images, {"coefficients": coefficients}, ())
        return torch.logit(pixels)[0, 0].flatten()

    jacobian = torch.autograd.functional.jacobian(values, weights).flatten(1)
    torch.testing.assert_close(jacobian.square().sum(1), torch.ones(size**2, dtype=torch.float64))


def test_scale_is_the_measured_deviation() -> None:
    images = build("fourier", 400, 16, torch.float32)
    images.randomize(0.5, generator(1))
    values = torch.logit(images().detach())
    # 1/f images have about a dozen independent values each: 400 x 3 of them put the error near 1 %.
    assert values.std().item() == pytest.approx(0.5, rel=0.04)


def test_decorrelated_channels_have_the_colour_covariance() -> None:
    """Covariance V diag(v) V^T scaled to trace 3: grey axis 0.2175 of 0.2408, worked out by hand."""
    colour = build("fourier decorrelated", 1, 4).colour
    assert colour is not None
    covariance = colour @ colour.T
    assert covariance.trace().item() == pytest.approx(3)
    assert torch.linalg.eigvalsh(covariance)[-1].item() == pytest.approx(3 * 0.2175 / 0.2408, rel=1e-3)
    deviations = covariance.diagonal().sqrt()
    correlation = covariance / deviations.outer(deviations)
    assert correlation.min() > 0.75  # red, green and blue rise and fall together in photographs
    assert correlation[0, 2] == correlation.min()  # red and blue the least
    direction = colour[:, 0] / colour[:, 0].norm()
    assert direction.min() > 0.56


def test_decorrelated_image_is_the_mixed_plain_image() -> None:
    plain, mixed = build("fourier", 2, 6), build("fourier decorrelated", 2, 6)
    plain.randomize(1.0, generator(2))
    mixed.randomize(1.0, generator(2))
    assert isinstance(mixed, FourierImage) and mixed.colour is not None
    values = torch.logit(plain().detach()).numpy()
    expected = np.einsum("rc,nchw->nrhw", mixed.colour.numpy(), values)
    np.testing.assert_allclose(torch.logit(mixed().detach()).numpy(), expected, atol=1e-10)


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("size", [4, 5])
def test_gradient_equals_finite_differences(name: str, size: int) -> None:
    images = build(name, 1, size)
    images.randomize(0.7, generator(3))
    (parameter_name, parameter), *rest = images.named_parameters()
    assert not rest
    start = parameter.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda p: torch.func.functional_call(images, {parameter_name: p}, ()), (start,))


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("size", [8, 9])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
def test_set_image_round_trip(name: str, size: int, dtype: torch.dtype, tolerance: float) -> None:
    images = build(name, 2, size, dtype)
    parameter = next(images.parameters())
    wanted = 0.002 + 0.996 * torch.rand(2, 3, size, size, generator=generator(4), dtype=torch.float64)
    images.set_image(wanted)
    assert next(images.parameters()) is parameter  # optimisers hold it
    assert images().dtype == dtype
    torch.testing.assert_close(images().double(), wanted, rtol=0, atol=tolerance)


def test_fourier_moves_extremes_inwards() -> None:
    images = build("fourier", 1, 4)
    images.set_image(torch.tensor([0.0, 1.0]).repeat(24).reshape(1, 3, 4, 4))
    assert images().min().item() == pytest.approx(1e-3)
    assert images().max().item() == pytest.approx(1 - 1e-3)


@pytest.mark.parametrize("name", BUILDERS)
def test_an_image_of_extremes_can_be_handed_on(name: str) -> None:
    """Rounding may lift a pixel just over 1; the next stage takes it all the same."""
    images = build(name, 1, 4, torch.float32)
    images.set_image(torch.tensor([0.0, 1.0]).repeat(24).reshape(1, 3, 4, 4))
    before = images().detach()
    images.set_image(before)
    torch.testing.assert_close(images(), before)


def test_rounding_outside_the_range_is_clamped() -> None:
    images = build("rgb", 1, 4, torch.float32)
    images.set_image(torch.tensor([-5e-4, 1.0005]).repeat(24).reshape(1, 3, 4, 4))
    assert images().unique().tolist() == [0.0, 1.0]


@pytest.mark.parametrize("name", BUILDERS)
def test_a_new_image_is_grey_and_no_view_of_the_parameter(name: str) -> None:
    images = build(name, 2, 4)
    first = images().detach()
    torch.testing.assert_close(first, torch.full((2, 3, 4, 4), 0.5, dtype=torch.float64))
    images.randomize(1.0, generator(5))
    assert first.unique().numel() <= 3 and not torch.equal(first, images())


@pytest.mark.parametrize("name", BUILDERS)
def test_randomize_depends_on_the_generator_alone(name: str) -> None:
    single, double = build(name, 2, 5, torch.float32), build(name, 2, 5, torch.float64)
    single.randomize(0.3, generator(6))
    double.randomize(0.3, generator(6))
    torch.testing.assert_close(single().double(), double(), rtol=0, atol=1e-6)
    double.randomize(0.3, generator(7))
    assert (single().double() - double()).abs().max() > 1e-2


@pytest.mark.parametrize(("name", "centre"), [("rgb", 0.5), ("normalised", 0.0), ("fourier", 0.0)])
def test_randomize_centre_and_deviation(name: str, centre: float) -> None:
    images = build(name, 20, 32)
    images.randomize(2.0, generator(8))
    parameter = next(images.parameters()).detach()
    assert parameter.mean().item() == pytest.approx(centre, abs=0.04)
    assert parameter.std().item() == pytest.approx(2.0, rel=0.02)


def test_project_clips_to_the_rgb_range() -> None:
    images = build("normalised", 1, 2)
    assert isinstance(images, PixelImage)
    with torch.no_grad():
        images.pixels.fill_(-9.0)
        images.pixels[:, :, 0, 0] = 9.0
        images.pixels[:, :, 0, 1] = 0.0
    parameter = images.pixels
    images.project()
    assert images.pixels is parameter
    # By hand: (1 - 0.485) / 0.229 and -0.406 / 0.225.
    assert images.pixels[0, 0, 0, 0].item() == pytest.approx(2.2489, abs=1e-4)
    assert images.pixels[0, 2, 1, 1].item() == pytest.approx(-1.8044, abs=1e-4)
    assert images.pixels[0, 1, 0, 1].item() == 0.0


def test_project_leaves_unclipped_and_fourier_images_alone() -> None:
    for images in (PixelImage(1, 3, clip=False), build("fourier", 1, 3)):
        images.randomize(5.0, generator(9))
        before = next(images.parameters()).detach().clone()
        images.project()
        assert torch.equal(next(images.parameters()), before)


@pytest.mark.parametrize("name", BUILDERS)
def test_vary_adds_red_green_and_blue(name: str) -> None:
    images = build(name, 2, 6)
    images.randomize(0.1, generator(10))
    before = images().detach()
    colour = torch.tensor([[0.1, 0.0, -0.1], [0.0, 0.05, 0.2]], dtype=torch.float64)
    images.vary(torch.ones(2, dtype=torch.float64), colour)
    after = images().detach()
    if isinstance(images, FourierImage):
        before, after = before.logit(), after.logit()
    unit = torch.tensor(STD, dtype=torch.float64) if name == "normalised" else 1.0
    expected = (colour * unit)[:, :, None, None].expand_as(before)
    torch.testing.assert_close(after - before, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", BUILDERS)
def test_constants_are_not_saved(name: str) -> None:
    assert len(build(name, 1, 4).state_dict()) == 1


@pytest.mark.parametrize(
    ("build_it", "message"),
    [
        (lambda: build("fourier", 0, 4), "at least 1"),
        (lambda: build("rgb", 1, 0), "at least 1"),
        (lambda: build("fourier", 1, 4, torch.bfloat16), "float32 or float64"),
        (lambda: Fourier(decay=-1.0), "decay"),
        (lambda: Fourier(decay=float("nan")), "decay"),
        (lambda: Pixels(space="hsv"), "space.*'hsv'"),  # type: ignore[arg-type]
        (lambda: build("rgb", 1, 4).set_image(torch.zeros(1, 3, 5, 5)), "expected shape"),
        (lambda: build("rgb", 1, 4).set_image(torch.full((1, 3, 4, 4), 255.0)), "divide 8-bit"),
        (lambda: build("fourier", 1, 4).set_image(torch.full((1, 3, 4, 4), float("nan"))), "must lie in"),
    ],
)
def test_mistakes_are_explained(build_it: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_it()


@pytest.mark.parametrize(
    ("rule", "name"),
    [
        (Fourier(decorrelate=False), "fourier"),
        (Fourier(), "fourier decorrelated"),
        (Pixels(), "rgb"),
        (Pixels(space="normalised"), "normalised"),
    ],
)
def test_what_a_recipe_names_is_made(rule: Parameterization, name: str) -> None:
    card = ModelCard("net", "test", 5, 10, mean=MEAN, std=STD)
    made, expected = rule.make(2, 5, card=card, dtype=torch.float64, device="cpu"), build(name, 2, 5)
    for images in (made, expected):
        images.randomize(0.5, generator(9))
    assert torch.equal(made(), expected())


@pytest.mark.parametrize("rule", [Fourier(), Pixels(), Generator(), Maco()])
def test_images_that_begin_alike(rule: Parameterization) -> None:
    """Image i is image i // 3 of the fewer, the last of which may be repeated less often."""
    card = ModelCard("net", "test", 16, 4, mean=MEAN, std=STD)
    fewer, images = (rule.make(n, 16, card=card, dtype=torch.float64, device="cpu") for n in (2, 5))
    fewer.randomize(1.0, generator(8))
    images.repeat(fewer, 3)
    for own, other in zip(images.parameters(), fewer.parameters(), strict=True):
        expected = other if own.shape == other.shape else torch.stack([other[k] for k in (0, 0, 0, 1, 1)])
        assert torch.equal(own, expected)
    assert len(images()) == 5 and (isinstance(rule, Generator) or torch.equal(images()[1], images()[2]))
