"""How much of each frequency images have, whatever their phases: measured from pictures, and at any size."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ensemble.image.files import list_images, read_image
from ensemble.image.fourier import colour_root, real_columns

PHOTOGRAPHS = Path(__file__).parent / "spectra" / "photographs.json"
"""The bundled table; its text says from what it was measured."""
_ABOUT = "image.parameterization.spectrum"
AT_MOST = 1000
"""So many images of a folder are read, evenly spaced in the order of their names."""


@dataclass(frozen=True)
class RadialSpectrum:
    """The mean amplitude of images by frequency, `amplitude`, (3, K), float64: at 1 .. K cycles an image.

    |rfft2| / pixels of the three decorrelated colours of `colour_root` (luminance, blue against red, green against
    magenta), averaged over images and over directions.

    Frequencies are counted in cycles an image, not in cycles a pixel. Networks see whole photographs, resized to their
    input: that leaves the amplitude at so many cycles an image as it is, and takes some off only near the highest
    frequencies. Measured on photographs at 32, 64 and 128 pixels: amplitudes agree within 1 % up to 4 cycles, where
    profiles over cycles a pixel, brought to one scale, differ by up to 16 %.
    """

    amplitude: Tensor

    def __post_init__(self) -> None:
        shape = tuple(self.amplitude.shape)
        if len(shape) != 2 or shape[0] != 3 or shape[1] < 2:
            raise ValueError(f"expected 3 rows of 2 amplitudes or more, got {[*shape]}")
        if not bool((self.amplitude.isfinite() & (self.amplitude >= 0)).all()) or not bool(self.amplitude.any()):
            raise ValueError("amplitudes are to be finite, not negative, and not all 0")

    def at(self, size: int) -> Tensor:
        """The amplitudes of the half spectrum of an image of that size, (3, H, W // 2 + 1), float64; 0 at frequency 0.

        Linear in the logarithms between the table's frequencies; beyond its last one the power law of its last octave.
        """
        cycles = np.arange(1, self.amplitude.shape[1] + 1)
        octave = np.array([cycles[-1] // 2, cycles[-1]])
        wanted = np.log(np.maximum(cycles_an_image(size).numpy(), 1))
        found = []
        for row in np.log(np.maximum(self.amplitude.numpy(), 1e-30)):
            slope = np.diff(row[octave - 1]) / np.diff(np.log(octave))
            beyond = np.maximum(wanted - np.log(cycles[-1]), 0)
            found.append(np.exp(np.interp(wanted, np.log(cycles), row) + slope * beyond))
        amplitudes = torch.from_numpy(np.stack(found))
        amplitudes[:, 0, 0] = 0
        return amplitudes


def cycles_an_image(size: int) -> Tensor:
    """(H, W // 2 + 1), float64: the frequency of each coefficient of rfft2."""
    vertical = size * torch.fft.fftfreq(size, dtype=torch.float64)[:, None]
    return torch.hypot(vertical, torch.arange(size // 2 + 1, dtype=torch.float64)[None, :])


def measure(images: Iterable[Tensor]) -> RadialSpectrum:
    """The spectrum of square images, (3, H, W) each, RGB in [0, 1], of one size from 4 pixels on, to the corner's.

        amplitude(k) = mean over round(f) = k of f |rfft2| / (k pixels)

    The f and k make it exact for 1 / f, though the few frequencies of a ring are not k on average. It is of pixels as
    they are, as in published spectra, not of their logits. Raises ValueError where there are no images, or all are of
    one colour.
    """
    unmixed = torch.linalg.inv(colour_root())
    total, count = torch.zeros(()), 0
    for image in images:
        values = torch.einsum("cr,rhw->chw", unmixed, image.double())
        total = total + torch.fft.rfft2(values).abs() / values[0].numel()
        count += 1
    if not count or total.shape[1] < 4:
        raise ValueError(f"{_ABOUT}: it takes images of 4 pixels or more to measure one")
    frequency = cycles_an_image(total.shape[1])
    ring = frequency.round().long().flatten()
    times = torch.full_like(frequency, 2.0)  # most columns stand for their mirror images too
    times[:, real_columns(total.shape[1])] = 1.0
    sums = torch.stack([torch.bincount(ring, channel.flatten()) for channel in total * frequency * times / count])
    return RadialSpectrum((sums / torch.bincount(ring, times.flatten()))[:, 1:] / torch.arange(1, sums.shape[1]))


def read_spectrum(path: Path, size: int) -> RadialSpectrum:
    """The table in a JSON file of demos/measure_spectrum.py, or that of a folder's images at `size`, cropped square.

    Raises ValueError where the path is neither, an image cannot be read, or images have no structure.
    """
    if path.is_dir():
        files = list_images(path, _ABOUT)
        return measure(read_image(file, size, _ABOUT) for file in files[:: -(-len(files) // AT_MOST)])
    about = f"{_ABOUT}: {path}"
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["amplitude"]
    except OSError as error:
        raise ValueError(f"{about} cannot be read ({error.strerror}); give a folder of images, or a table") from None
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{about} is no table of demos/measure_spectrum.py; for images, give their folder") from None
    try:
        return RadialSpectrum(torch.tensor(rows, dtype=torch.float64))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{about}: {error}") from None
