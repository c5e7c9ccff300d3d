"""Phases with the amplitudes of photographs, against NumPy's FFT and finite differences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from moving import losses_of_descent

from ensemble.image.maco import Maco, MacoImage
from ensemble.image.spectrum import PHOTOGRAPHS, measure, read_spectrum
from ensemble.image.start import Grey, Noise
from ensemble.image.steady import standardised
from ensemble.machine.rng import generator
from ensemble.recipe import ImageRule
from models import ModelCard

CARD = ModelCard("net", "test", 8, 10, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
SPECTRUM = read_spectrum(PHOTOGRAPHS, 8)


def drawn(
    n: int = 2, size: int = 8, seed: int = 1, dtype: torch.dtype = torch.float64, deviation: float = 1.0
) -> MacoImage:
    images = MacoImage(n, size, spectrum=SPECTRUM, deviation=deviation, dtype=dtype)
    images.randomize(1.0, generator(seed))
    return images


def decorrelated(images: MacoImage) -> np.ndarray:
    """What the sigmoid and the colours were made of: (N, 3, H, W)."""
    values = torch.logit(images().detach()).numpy()
    return np.einsum("cr,nrhw->nchw", np.linalg.inv(images.colour.numpy()), values)


@pytest.mark.parametrize("size", [4, 5, 8, 11])
@pytest.mark.parametrize("deviation", [1.0, 0.5])
def test_it_equals_numpy(size: int, deviation: float) -> None:
    """By a full Hermitian spectrum and a complex transform, then standardised as published."""
    images = drawn(size=size, deviation=deviation)
    p = images.phase.detach().numpy()
    each = (1, 2, 3)
    phase = deviation * (p - p.mean(each, keepdims=True)) / p.std(each, keepdims=True)
    amplitude = SPECTRUM.at(size).numpy()
    full = np.zeros((2, 3, size, size), complex)
    for y in range(size):
        for x in range(size):
            mirror = (-y % size, -x % size)
            if (y, x) == mirror:
                continue
            first = x < size - x if x not in (0, size / 2) else y < size - y
            ky, kx = (y, x) if first else mirror
            wave = amplitude[:, ky, kx] * np.exp(1j * phase[:, :, ky, kx])
            full[:, :, y, x] = wave if first else wave.conj()
    values = np.fft.ifft2(full)
    assert np.abs(values.imag).max() < 1e-12
    values = values.real / values.real.std(each, keepdims=True)
    mixed = np.einsum("rc,nchw->nrhw", images.colour.numpy(), values)
    np.testing.assert_allclose(images().detach().numpy(), 1 / (1 + np.exp(-mixed)), atol=1e-12)


@pytest.mark.parametrize("size", [16, 17])
def test_images_have_the_tables_profile_whatever_their_phases(size: int) -> None:
    """Standardised, and |rfft2| by radius in the table's proportions: the frequencies without a phase apart."""
    images = drawn(n=3, size=size)
    values = torch.from_numpy(decorrelated(images))
    torch.testing.assert_close(values.mean((1, 2, 3)), torch.zeros(3, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(values.std((1, 2, 3), unbiased=False), torch.ones(3, dtype=torch.float64))
    found = measure(torch.einsum("rc,nchw->nrhw", images.colour, values)).amplitude  # which decorrelates itself
    table = SPECTRUM.amplitude
    torch.testing.assert_close((found / found[0, 0])[:, :7], (table / table[0, 0])[:, :7], rtol=0.03, atol=0)


@pytest.mark.parametrize("size", [4, 5])
def test_gradient_equals_finite_differences(size: int) -> None:
    images = drawn(n=2, size=size)
    start = images.phase.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda p: torch.func.functional_call(images, {"phase": p}, ()), (start,))


def test_standardised_is_numpy_s_and_its_gradient_exact() -> None:
    x = torch.randn(3, 2, 5, generator=generator(2), dtype=torch.float64, requires_grad=True)
    values = x.detach().numpy()
    expected = (values - values.mean((1, 2), keepdims=True)) / values.std((1, 2), keepdims=True)
    np.testing.assert_allclose(standardised(x).detach().numpy(), expected, atol=1e-13)
    assert torch.autograd.gradcheck(standardised, (x,))
    flat = torch.ones(1, 4, requires_grad=True)
    standardised(flat).sum().backward()
    assert not standardised(flat).any() and flat.grad is not None and not flat.grad.any()


def test_the_same_bits_on_any_number_of_threads() -> None:
    """A plain sum over one large image is not: threads share it out."""

    def bits() -> list[torch.Tensor]:
        images = drawn(n=1, size=256)
        slope = torch.randn(1, 3, 256, 256, generator=generator(5), dtype=torch.float64)
        found = [images(), *torch.autograd.grad(images(), list(images.parameters()), slope)]
        for seed in range(8):
            x, weights = 3 + torch.randn(2, 1, 300, 300, generator=generator(seed), dtype=torch.float64)
            x = x[None].requires_grad_()
            y = standardised(x)
            found += [y, *torch.autograd.grad(y, x, weights[None])]
        return found

    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(bits())
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_images_do_not_depend_on_each_other_nor_on_scale() -> None:
    several, alone = drawn(n=3), drawn(n=1)
    with torch.no_grad():
        alone.phase.copy_(5 * several.phase[2:] + 1)
    torch.testing.assert_close(alone()[0], several()[2])


def test_a_new_image_is_grey() -> None:
    images = MacoImage(2, 8, spectrum=SPECTRUM)
    assert torch.equal(images().detach(), torch.full((2, 3, 8, 8), 0.5))
    images().sum().backward()
    assert images.phase.grad is not None and images.phase.grad.isfinite().all()


def test_the_start_depends_on_the_generator_alone() -> None:
    single, double = drawn(dtype=torch.float32), drawn()
    torch.testing.assert_close(single().double(), double(), rtol=0, atol=1e-5)
    assert (drawn(seed=2)() - double()).abs().max() > 1e-2
    assert drawn(n=4, size=32).phase.std().item() == pytest.approx(1.0, rel=0.05)


def test_what_is_common_to_all_images_is_exp_of_minus_the_variance() -> None:
    for deviation in (1.0, 2.0):
        values = decorrelated(drawn(n=200, size=16, deviation=deviation))
        common = (values.mean(0) ** 2).sum() / (values**2).mean(0).sum()
        assert common == pytest.approx(np.exp(-(deviation**2)), abs=0.03)


def test_the_optimiser_moves_phases_alone() -> None:
    images = drawn(size=16)
    target = drawn(size=16, seed=9)().detach()
    before = np.abs(np.fft.rfft2(decorrelated(images)))
    losses = losses_of_descent(images, target, 0.1, 60)
    assert losses[-1] < 0.3 * losses[0]
    np.testing.assert_allclose(np.abs(np.fft.rfft2(decorrelated(images))), before, atol=1e-9)


def test_a_recipe_s_is_made(tmp_path: Any) -> None:
    made = Maco(deviation=2.0).make(2, 8, card=CARD, dtype=torch.float64, device="cpu")
    made.randomize(1.0, generator(1))
    assert torch.equal(made(), drawn(deviation=2.0)())
    assert list(made.state_dict()) == ["phase"]
    file = tmp_path / "steep.json"
    file.write_text('{"amplitude": [[1, 0.01], [1, 0.01], [1, 0.01]]}')
    steep = Maco(spectrum=str(file)).make(2, 8, card=CARD, dtype=torch.float64, device="cpu")
    assert (steep.amplitude[:, 0, 1] / steep.amplitude[:, 0, 2]).tolist() == pytest.approx([100] * 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Maco().check(3), "maco makes images of 4 pixels or more, not 3"),
        (lambda: MacoImage(1, 2, spectrum=SPECTRUM), "4 pixels or more"),
        (lambda: MacoImage(0, 8, spectrum=SPECTRUM), "at least 1"),
        (lambda: Maco(deviation=0.0), "deviation"),
        (lambda: Maco(spectrum="missing.json").check(8), "spectrum: missing.json cannot be read"),
        (lambda: drawn().set_image(torch.zeros(2, 3, 8, 8)), "cannot be set to an image.*use kind 'noise'"),
        (lambda: drawn().randomize(0.0, generator(0)), "with scale 0 all phases are equal"),
        (lambda: ImageRule(Maco(), Grey()), "which kind 'maco' cannot be told"),
        (lambda: ImageRule(Maco(), Noise(colour_spread=0.1)), "which kind 'maco' cannot be told"),
    ],
)
def test_mistakes_are_explained(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
