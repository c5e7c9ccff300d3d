"""Images of random phase: as many edges as before, and none in one place. The negative control of seams."""

from __future__ import annotations

import torch

from ensemble.machine.rng import generator


def phase_randomised(images: torch.Tensor, seed: int) -> torch.Tensor:
    """(N, 3, H, W) in [0, 1]: the images' periodic parts with the phase of white noise added.

    F(y) = F(p) F(w) / |F(w)|: p is `periodic_part`, since a step from one border to the other would be a seam that
    wraps around, w an image's own noise, one for its channels, whose relations stay. The mean keeps its sign. What
    leaves [0, 1] is cut off.

    Source: Galerne, Gousseau & Morel, "Random Phase Textures: Theory and Synthesis" (IEEE TIP 2011).
    """
    n, _, height, width = images.shape
    noise = torch.randn(n, 1, height, width, generator=generator(seed, "phase"), dtype=torch.float64)
    turn = torch.fft.fft2(noise).sgn()
    turn[:, :, 0, 0] = 1
    made = torch.fft.ifft2(torch.fft.fft2(periodic_part(images).double()) * turn).real
    return made.clamp(0, 1).to(images.dtype)


def periodic_part(images: torch.Tensor) -> torch.Tensor:
    """(N, C, H, W): u - s, where the smooth s has the steps of u (N, C, H, W) from one border to the opposite one.

    s = F^-1(F(v) / (2 cos(2 pi q / H) + 2 cos(2 pi r / W) - 4)), with the steps v on the border and a mean of 0.

    Source: Moisan, "Periodic plus Smooth Image Decomposition" (JMIV 2011), equations 8 to 11.
    """
    u = images.double()
    steps = torch.zeros_like(u)
    down, across = u[..., -1, :] - u[..., 0, :], u[..., -1] - u[..., 0]
    steps[..., 0, :] += down
    steps[..., -1, :] -= down
    steps[..., 0] += across
    steps[..., -1] -= across
    q, r = (2 * torch.pi * torch.fft.fftfreq(k, dtype=torch.float64) for k in u.shape[-2:])
    laplacian = 2 * q.cos()[:, None] + 2 * r.cos() - 4
    laplacian[0, 0] = 1  # the steps' mean is 0 already
    smooth = torch.fft.ifft2(torch.fft.fft2(steps) / laplacian).real
    return (u - smooth).to(images.dtype)
