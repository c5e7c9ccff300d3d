"""Amplitudes of images by frequency: against NumPy's FFT, images of one wave, and power laws."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ensemble.image.fourier import colour_root
from ensemble.image.spectrum import PHOTOGRAPHS, RadialSpectrum, cycles_an_image, measure, read_spectrum
from ensemble.machine.rng import generator


def random_images(n: int, size: int) -> torch.Tensor:
    return torch.rand(n, 3, size, size, generator=generator(1), dtype=torch.float64)


@pytest.mark.parametrize("size", [7, 8])
def test_measured_equals_numpy_over_the_full_spectrum(size: int) -> None:
    """Every direction counts once, though rfft2 has half of most; the images are smoother along their rows."""
    images = random_images(3, size).cumsum(-1) / size
    unmixed = np.einsum("cr,nrhw->nchw", np.linalg.inv(colour_root().numpy()), images.numpy())
    amplitude = np.abs(np.fft.fft2(unmixed)).mean(0) / size**2
    rings: dict[int, list[np.ndarray]] = {}
    for y in range(size):
        for x in range(size):
            f = float(np.hypot(min(y, size - y), min(x, size - x)))
            rings.setdefault(round(f), []).append(f * amplitude[:, y, x])
    expected = np.stack([np.mean(rings[k], axis=0) / k for k in range(1, max(rings) + 1)], axis=1)
    np.testing.assert_allclose(measure(images).amplitude.numpy(), expected, rtol=1e-12)


def test_a_wave_of_luminance_by_hand() -> None:
    """0.5 + 0.1 l cos(2 pi 3 x / 16), l the luminance axis of M: 0.05 at 3 cycles, in one of the ring's places."""
    axis = colour_root()[:, 0]
    wave = 0.1 * torch.cos(2 * torch.pi * 3 * torch.arange(16, dtype=torch.float64) / 16)
    image = 0.5 + axis[:, None, None] * wave.expand(3, 16, 16)
    found = measure([image]).amplitude
    torch.testing.assert_close(measure([image.mT]).amplitude, found)
    f = np.minimum(np.arange(16), 16 - np.arange(16))
    places = int((np.hypot(f[:, None], f).round() == 3).sum())
    assert found[0, 2].item() == pytest.approx(2 * 0.05 / places)  # at 3 and at -3
    found[0, 2] = 0
    assert found.abs().max() < 1e-15


def test_a_table_is_drawn_straight_in_logarithms_and_goes_on() -> None:
    """A power law is met exactly, between the table's frequencies and beyond them."""
    cycles = torch.arange(1, 9, dtype=torch.float64)
    exponents = torch.tensor([[1.0], [1.5], [2.0]], dtype=torch.float64)
    at = RadialSpectrum(0.3 * cycles**-exponents).at(30)
    f = cycles_an_image(30)
    expected = 0.3 * f.clamp(min=1) ** -exponents[:, :, None]
    expected[:, 0, 0] = 0
    torch.testing.assert_close(at, expected, rtol=1e-12, atol=0)
    assert at.shape == (3, 30, 16) and f.max() > 20


def test_beyond_the_table_its_last_octave_counts() -> None:
    rows = [[9.0, 4.0, 3.0, 1.0]] * 3  # 2 to 4 cycles: a quarter
    at = RadialSpectrum(torch.tensor(rows, dtype=torch.float64)).at(16)
    assert at[0, 8, 0].item() == pytest.approx(1 / 4) and at[0, 0, 2].item() == pytest.approx(4)


def test_frequencies_are_cycles_an_image() -> None:
    spectrum = RadialSpectrum(torch.tensor([[4.0, 2.0, 1.0, 0.5]] * 3, dtype=torch.float64))
    small, large = spectrum.at(8), spectrum.at(32)
    torch.testing.assert_close(small[:, :4, :4], large[:, :4, :4])


def test_the_bundled_table() -> None:
    spectrum = read_spectrum(PHOTOGRAPHS, 32)
    assert (spectrum.amplitude.diff(dim=1) < 0).all()
    luminance = spectrum.amplitude[0].log()
    assert 1.0 < -(luminance[15] - luminance[1]).item() / np.log(8) < 1.5  # 1 / f, a little steeper
    record = json.loads(PHOTOGRAPHS.read_text())
    assert record["images"] == 2000 and {"measured_from", "date", "size"} <= record.keys()


def test_a_folder_is_measured_at_the_images_size(tmp_path: Path) -> None:
    pixels = (random_images(3, 12) * 255).to(torch.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / f"{i}.png")
    torch.testing.assert_close(read_spectrum(tmp_path, 12).amplitude, measure(pixels.float() / 255).amplitude)
    assert read_spectrum(tmp_path, 6).amplitude.shape == (3, 4)  # to the corner, at hypot(3, 3) cycles


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read .No such file"),
        ("no JSON", "is no table of demos/measure_spectrum.py; for images, give their folder"),
        ('{"other": 1}', "is no table"),
        ('{"amplitude": [[1, 2]]}', "expected 3 rows of 2 amplitudes or more, got .1, 2."),
        ('{"amplitude": [[1], [1], [1]]}', "expected 3 rows"),
        ('{"amplitude": [[1, -2], [1, 2], [1, 2]]}', "not negative"),
        ('{"amplitude": [[0, 0], [0, 0], [0, 0]]}', "not all 0"),
        ('{"amplitude": [[1, 2], [1], [1, 2]]}', "spectrum: .*expected sequence"),
        ('{"amplitude": "high"}', "spectrum: "),
    ],
)
def test_tables_that_are_none(tmp_path: Path, content: str | None, message: str) -> None:
    file = tmp_path / "table.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_spectrum(file, 8)
    told = str(caught.value)
    assert told.startswith(f"image.parameterization.spectrum: {file}") and "\n" not in told


def test_folders_without_a_spectrum(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"image\.parameterization\.spectrum: .* holds no images"):
        read_spectrum(tmp_path, 8)
    Image.new("RGB", (8, 8), "red").save(tmp_path / "flat.png")
    with pytest.raises(ValueError, match="not all 0"):
        read_spectrum(tmp_path, 8)
    (tmp_path / "flat.png").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"spectrum: .*flat\.png cannot be read as an image"):
        read_spectrum(tmp_path, 8)


@pytest.mark.parametrize("images", [[], [torch.rand(3, 3, 3)]])
def test_nothing_to_measure(images: Any) -> None:
    with pytest.raises(ValueError, match="4 pixels or more"):
        measure(images)
