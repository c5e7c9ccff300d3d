"""Images made from a network's statistics alone, to be looked at and to be scored."""

from __future__ import annotations

import torch
from torch import nn

from ensemble.api import invert
from ensemble.image.pixels import Pixels
from ensemble.image.start import Noise
from ensemble.objectives.bn_matching import BNMatching
from models import ModelCard


def bn_inversions(net: nn.Module, card: ModelCard, images: int, steps: int, seed: int) -> torch.Tensor:
    """(N, 3, H, W), RGB in [0, 1]: pixels that match the stored statistics, whatever the class.

    No prior, no shift, no mirroring: total variation takes seams away, and shifts that wrap around make them.
    """
    made = invert(
        [(net, card)],
        objectives=[BNMatching(weight=10.0, convention="relative")],
        image={"parameterization": Pixels(), "start": Noise()},
        targets=[0],
        images_per_class=images,
        stages=[{"iterations": steps, "jitter": 0, "flip": 0.0}],
        optimizer={"lr": 0.05},
        seed=seed,
        device="cpu",
        progress=False,
    )
    assert made is not None
    return made.images
