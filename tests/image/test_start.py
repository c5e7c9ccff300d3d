"""Starts of an optimisation: flat colours, noise, files and folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ensemble.image.files import list_images, read_image
from ensemble.image.fourier import FourierImage
from ensemble.image.parameterization import ImageParameterization
from ensemble.image.pixels import PixelImage
from ensemble.image.start import Black, FromFolder, FromImage, Grey, Noise, Start, Uniform
from ensemble.machine.rng import generator


def pixels(n: int, size: int) -> PixelImage:
    return PixelImage(n, size, clip=True)


def fourier(n: int, size: int) -> FourierImage:
    return FourierImage(n, size, decay=1.0, decorrelate=False)


def begin(images: ImageParameterization, start: Start) -> None:
    start.check(images.size)
    start.set(images, generator(1))


def save(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (6, 6)) -> Path:
    Image.new("RGB", size, colour).save(path)
    return path


@pytest.mark.parametrize("make", [fourier, pixels])
@pytest.mark.parametrize(("start", "value", "tolerance"), [(Black(), 0.0, 1.1e-3), (Grey(), 0.5, 1e-6)])
def test_flat_colours(
    make: Callable[[int, int], ImageParameterization], start: Start, value: float, tolerance: float
) -> None:
    images = make(2, 5)
    images.randomize(1.0, generator(0))
    begin(images, start)
    torch.testing.assert_close(images(), torch.full((2, 3, 5, 5), value), rtol=0, atol=tolerance)


@pytest.mark.parametrize("make", [fourier, pixels])
def test_noise_is_randomize(make: Callable[[int, int], ImageParameterization]) -> None:
    """To the bit, where nothing is spread."""
    first, second = make(2, 5), make(2, 5)
    begin(first, Noise(scale=0.3))
    second.randomize(0.3, generator(1))
    assert torch.equal(next(first.parameters()), next(second.parameters()))


@pytest.mark.parametrize("make", [fourier, pixels])
def test_colour_spread_is_the_deviation_of_the_images_means(
    make: Callable[[int, int], ImageParameterization],
) -> None:
    images = make(400, 8)
    begin(images, Noise(scale=0.0, colour_spread=0.2))
    values = torch.logit(images().detach()) if isinstance(images, FourierImage) else images().detach() - 0.5
    torch.testing.assert_close(values, values[:, :, :1, :1].expand_as(values), rtol=0, atol=1e-5)  # one colour each
    colours = values[:, :, 0, 0]
    assert colours.mean().item() == pytest.approx(0, abs=0.03)
    assert colours.std().item() == pytest.approx(0.2, rel=0.08)
    assert torch.corrcoef(colours.T).triu(1).abs().max() < 0.2


@pytest.mark.parametrize("make", [fourier, pixels])
def test_amplitude_spread_is_log_normal(make: Callable[[int, int], ImageParameterization]) -> None:
    plain, varied = make(300, 16), make(300, 16)
    begin(plain, Noise(scale=0.1))
    begin(varied, Noise(scale=0.1, amplitude_spread=0.5))

    def spectrum(images: ImageParameterization) -> torch.Tensor:
        values = torch.logit(images().detach().double()) if isinstance(images, FourierImage) else images().double()
        return torch.fft.fft2(values.detach()).abs()

    factor = spectrum(varied) / spectrum(plain)
    torch.testing.assert_close(factor[:, :, 8, 8], torch.ones(300, 3, dtype=torch.float64), rtol=0, atol=1e-2)
    coarse = factor[:, 0, 1, 2].log()
    torch.testing.assert_close(factor[:, 2, 0, 4].log(), coarse, rtol=0, atol=1e-2)  # 4 cycles an image
    torch.testing.assert_close(factor[:, 2, 0, 5].log(), torch.zeros_like(coarse), rtol=0, atol=1e-2)
    assert coarse.mean().item() == pytest.approx(0, abs=0.1)
    assert coarse.std().item() == pytest.approx(0.5, rel=0.12)


def test_spreads_are_drawn_apart() -> None:
    """One left out does not change what the other draws."""
    both, colour = fourier(2, 5), fourier(2, 5)
    begin(both, Noise(scale=0.0, amplitude_spread=1.0, colour_spread=0.2))
    begin(colour, Noise(scale=0.0, colour_spread=0.2))
    torch.testing.assert_close(both(), colour())


def test_one_file_fills_the_batch(tmp_path: Path) -> None:
    images = pixels(3, 4)
    begin(images, FromImage(str(save(tmp_path / "a.png", (255, 0, 51)))))
    expected = torch.tensor([1.0, 0.0, 0.2])[None, :, None, None].expand(3, 3, 4, 4)
    torch.testing.assert_close(images(), expected)


def test_a_folder_is_sorted_and_repeated(tmp_path: Path) -> None:
    save(tmp_path / "b.png", (51, 0, 0))
    save(tmp_path / "a.PNG", (102, 0, 0), (9, 6))
    save(tmp_path / "c.png", (153, 0, 0))
    (tmp_path / "notes.txt").write_text("no image")
    images = pixels(5, 4)
    begin(images, FromFolder(str(tmp_path)))
    torch.testing.assert_close(images()[:, 0, 0, 0], torch.tensor([0.4, 0.2, 0.6, 0.4, 0.2]))
    few = pixels(2, 4)
    begin(few, FromFolder(str(tmp_path)))
    torch.testing.assert_close(few()[:, 0, 0, 0], torch.tensor([0.4, 0.2]))


def test_files_are_cropped_at_the_centre(tmp_path: Path) -> None:
    """Of 4 x 8 pixels, the middle 4 x 4 remain: no resampling, so the values are exact."""
    values = np.random.default_rng(0).integers(0, 256, (4, 8, 3), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "wide.png")
    expected = torch.from_numpy(values[:, 2:6]).permute(2, 0, 1).float() / 255
    assert torch.equal(read_image(tmp_path / "wide.png", 4), expected)


def test_the_camera_orientation_is_applied(tmp_path: Path) -> None:
    values = np.zeros((4, 4, 3), np.uint8)
    values[0] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(values).save(tmp_path / "turned.png", exif=exif)
    assert read_image(tmp_path / "turned.png", 4)[0, :, 0].tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (lambda: Noise(scale=-1.0), "scale: must be at least 0"),
        (lambda: Noise(colour_spread=-1.0), "colour_spread: must be at least 0"),
        (lambda: FromImage("missing.png"), "is not a file"),
        (lambda: FromFolder("missing"), "is not a folder"),
    ],
)
def test_mistakes_are_explained(start: Callable[[], Start], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        start().check(4)


def test_unreadable_files_are_explained(tmp_path: Path) -> None:
    text = tmp_path / "text.png"
    text.write_text("no image")
    with pytest.raises(ValueError, match=r"text\.png cannot be read as an image"):
        begin(pixels(1, 4), FromImage(str(text)))
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"cut\.png cannot be read as an image"):
        read_image(tmp_path / "cut.png", 4)


def test_an_empty_folder_is_explained(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no images"):
        list_images(tmp_path)


def test_uniform_draws_every_level_alike() -> None:
    image = PixelImage(4, 16, clip=False, normalised=((123 / 255, 117 / 255, 104 / 255), (1 / 255,) * 3))
    Uniform().set(image, torch.Generator().manual_seed(0))
    values = image().detach()
    assert 0 <= float(values.min()) < 0.01 and 0.99 < float(values.max()) <= 1
    assert float(values.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(values.std()) == pytest.approx(12**-0.5, abs=0.01)
    # in grey levels less the mean colour
    torch.testing.assert_close(image.pixels.detach()[:, 0], 255 * values[:, 0] - 123, atol=1e-3, rtol=0)
