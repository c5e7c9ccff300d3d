"""Images as their own pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from ensemble.image.parameterization import ImageParameterization, drawn_normal


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
        self.pixels.copy_(centre + drawn_normal(self.pixels, scale, rng))


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
