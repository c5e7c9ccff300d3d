"""Where an optimisation starts: noise, a flat colour, an image, or a folder of images."""

from __future__ import annotations

from pathlib import Path

import torch

from ensemble.image.files import list_images, read_image
from ensemble.image.parameterization import ImageParameterization

KINDS = ("noise", "black", "grey", "image", "folder")


def initialise(
    parameterization: ImageParameterization,
    kind: str,
    *,
    scale: float = 1.0,
    path: str | Path | None = None,
    rng: torch.Generator | None = None,
) -> None:
    """Set the images to their start, in place.

    `noise`: the parameters are drawn from N(0, scale^2) with `rng` (see `randomize`; only here does scale
    count). `black`, `grey`: RGB 0 or 0.5 everywhere. `image`: the file `path` for every image of the batch.
    `folder`: the images directly in `path` in the order of their names, repeated until the batch is full.
    Files are resized (bicubic, shorter side) and centre-cropped to the parameterization's size.

    Raises ValueError for an unknown kind, a missing rng or path, a path the kind does not use, and for what
    `read_image` and `list_images` refuse.
    """
    if kind not in KINDS:
        raise ValueError(f"initial image: unknown kind {kind!r}; use one of {', '.join(KINDS)}")
    if (path is not None) != (kind in ("image", "folder")):
        raise ValueError(f"initial image: kind {kind!r} " + ("needs a path" if path is None else "takes no path"))
    if kind == "noise":
        if rng is None:
            raise ValueError("initial image: kind 'noise' needs a generator")
        if not scale >= 0:
            raise ValueError(f"initial image: scale must be >= 0, not {scale}")
        parameterization.randomize(scale, rng)
        return
    n, size = parameterization.n, parameterization.size
    if path is None:
        parameterization.set_image(torch.full((n, 3, size, size), 0.0 if kind == "black" else 0.5))
        return
    files = [Path(path)] if kind == "image" else list_images(path)[:n]
    images = torch.stack([read_image(file, size) for file in files])
    parameterization.set_image(images[torch.arange(n) % len(images)])
