"""Random phases: the periodic part's amplitudes, and nothing of its places."""

from __future__ import annotations

import numpy as np
import torch

from ensemble.privacy.study.phase import periodic_part, phase_randomised


def soft(n: int, seed: int) -> torch.Tensor:
    """Images so close to grey that nothing leaves [0, 1]."""
    rng = torch.Generator().manual_seed(seed)
    return 0.5 + 0.02 * torch.randn(n, 3, 12, 16, generator=rng, dtype=torch.float64).cumsum(3)


def test_the_smooth_part_solves_the_discrete_poisson_equation() -> None:
    """Moisan's definition: the periodic Laplacian of s is that of u's steps over the border."""
    u = soft(2, 0)
    s = (u - periodic_part(u)).numpy()
    steps = np.zeros_like(s)
    for y in range(12):
        for x in range(16):
            for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0)):
                if not (0 <= y + dy < 12 and 0 <= x + dx < 16):
                    steps[..., y, x] += u.numpy()[..., (y + dy) % 12, (x + dx) % 16] - u.numpy()[..., y, x]
    laplacian = sum(np.roll(s, shift, axis) for axis in (-1, -2) for shift in (1, -1)) - 4 * s
    np.testing.assert_allclose(laplacian, steps, atol=1e-12)
    np.testing.assert_allclose(s.mean((2, 3)), 0, atol=1e-12)


def test_a_periodic_image_is_its_own_periodic_part_and_a_ramp_loses_its_step() -> None:
    x = torch.arange(16) * 2 * torch.pi / 16
    wave = (0.5 + 0.2 * torch.cos(x + torch.pi / 16)).expand(1, 3, 16, 16)  # equal at both borders
    torch.testing.assert_close(periodic_part(wave), wave)
    ramp = torch.linspace(0, 1, 16).expand(1, 3, 16, 16)
    made = periodic_part(ramp)
    assert float((made[..., 0] - made[..., -1]).abs().max()) < 0.2


def test_amplitudes_are_the_periodic_parts_and_phases_are_not() -> None:
    images = soft(3, 1)
    made, known = (np.fft.fft2(part.numpy()) for part in (phase_randomised(images, 0), periodic_part(images)))
    np.testing.assert_allclose(np.abs(made), np.abs(known), atol=1e-9)
    np.testing.assert_allclose(made[..., 0, 0], known[..., 0, 0])
    turned = np.angle(made / known)[..., 1:, 1:8]
    assert abs(np.exp(1j * turned).mean()) < 0.2


def test_channels_turn_together_images_do_not_and_a_seed_says_how() -> None:
    images = soft(2, 2)
    made = np.fft.fft2(phase_randomised(images, 0).numpy()) / np.fft.fft2(periodic_part(images).numpy())
    np.testing.assert_allclose(made[:, 0], made[:, 1], atol=1e-6)
    assert np.abs(made[0] - made[1]).max() > 0.5
    assert torch.equal(phase_randomised(images, 0), phase_randomised(images, 0))
    assert not torch.equal(phase_randomised(images, 0), phase_randomised(images, 1))


def test_the_result_is_an_image() -> None:
    made = phase_randomised(torch.rand(4, 3, 8, 8).round(), 0)
    assert made.dtype == torch.float32 and float(made.min()) >= 0 and float(made.max()) <= 1
