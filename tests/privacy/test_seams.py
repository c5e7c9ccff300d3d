"""The seam score: composites must fire; plain, recompressed and phase-randomised images must not."""

from __future__ import annotations

import numpy as np
import torch

from ensemble.image.dead_leaves import dead_leaves
from ensemble.privacy.candidates import cut_and_mixed, recompressed
from ensemble.privacy.rates import auc
from ensemble.privacy.seams import seam_scores, turned_control


def leaves(n: int, seed: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.nn.functional.avg_pool2d(dead_leaves(n, 66, 4, 30, rng).float(), 3, 2)[:, :, :32, :32]


def composites(images: torch.Tensor) -> torch.Tensor:
    rng = torch.Generator().manual_seed(7)
    return torch.cat([cut_and_mixed(part, 0.6, rng) for part in images.split(4)])


def test_one_straight_edge_raises_the_score_and_a_ramp_does_not() -> None:
    ramp = torch.linspace(0, 1, 32).expand(1, 3, 32, 32)
    edge = ramp * 0.5
    edge = torch.cat([edge[..., :13], edge[..., 13:] + 0.4], 3)
    assert float(seam_scores(ramp)) < 1e-6
    assert float(seam_scores(edge)) > 0.3
    assert torch.allclose(seam_scores(edge), seam_scores(edge.transpose(2, 3)))


def test_composites_fire() -> None:
    plain = leaves(160, 1)
    found = auc(seam_scores(composites(leaves(160, 2))), seam_scores(plain))
    assert found.low > 0.55
    means = [seam_scores(images).mean() for part in (composites(leaves(160, 2)), plain) for images in part.split(20)]
    assert auc(torch.stack(means[:8]), torch.stack(means[8:])).value > 0.9


def test_plain_and_recompressed_images_do_not() -> None:
    plain = leaves(160, 1)
    same = auc(seam_scores(leaves(160, 3)), seam_scores(plain))
    assert same.low <= 0.5 <= same.high
    pixels = (leaves(160, 3) * 255).round().clamp(0, 255).to(torch.uint8)
    for quality in (50, 75):
        again = auc(seam_scores(recompressed(pixels, quality).float() / 255), seam_scores(pixels.float() / 255))
        assert again.low <= 0.5, (quality, again)


def test_images_of_random_phase_do_not() -> None:
    """The composites' own spectra, so as many edges, which are nowhere."""
    made = composites(leaves(80, 2)).numpy()
    rng = np.random.default_rng(0)
    noise = np.fft.fft2(rng.normal(size=made.shape[2:]))
    phases = noise / np.abs(noise)
    free = np.fft.ifft2(np.fft.fft2(made) * phases).real
    assert auc(seam_scores(torch.from_numpy(free).float()), seam_scores(torch.from_numpy(made))).high < 0.5


def test_what_repeats_every_eight_pixels_is_no_seam() -> None:
    grid = torch.zeros(1, 3, 32, 32)
    grid[..., 8:16] = grid[..., 24:] = 0.5
    lone = torch.zeros(1, 3, 32, 32)
    lone[..., 13:] = 0.5
    assert float(seam_scores(grid)) < 0.2 * float(seam_scores(lone))


def test_the_turned_control_is_positive_for_lines_along_the_axes_alone() -> None:
    assert float(turned_control(composites(leaves(120, 2))).mean()) > float(turned_control(leaves(120, 2)).mean())
