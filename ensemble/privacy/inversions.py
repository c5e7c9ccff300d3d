"""Images made from networks' statistics, to be looked at and to be scored."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import nn

from ensemble.api import invert
from ensemble.image.pixels import Pixels
from ensemble.image.start import Noise
from ensemble.objectives.bn_matching import BNMatching
from ensemble.objectives.classification import CrossEntropy
from ensemble.runs.results import Results
from models import ModelCard

Networks = Sequence[tuple[nn.Module, ModelCard]]


def bn_inversions(networks: Networks, images: int, steps: int, seed: int) -> torch.Tensor:
    """(N, 3, H, W), RGB in [0, 1]: pixels that match the stored statistics of all networks, whatever the class.

    No prior, no shift, no mirroring: total variation takes seams away, and shifts that wrap around make them.
    """
    return _inverted(networks, [0], images, steps, seed, ())[0]


def class_inversions(networks: Networks, images: int, steps: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The same of all classes in turn, which the networks read (cross-entropy, weight 1): images, and classes (N,).

    Of more classes than images, as many classes, spread evenly over all.
    """
    of = networks[0][1].num_classes
    count = min(images, of)
    classes = [i * of // count for i in range(count)]
    each = -(-images // count)
    made, targets = _inverted(networks, classes, each, steps, seed, (CrossEntropy(weight=1.0),))
    return made[:images], targets[:images]


def _inverted(
    networks: Networks, targets: list[int], each: int, steps: int, seed: int, terms: Sequence[CrossEntropy]
) -> tuple[torch.Tensor, torch.Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that targets are missed, or losses high, is no mistake here
        made = _made(networks, targets, each, steps, seed, terms)
    assert made is not None
    return made.images, made.targets


def _made(
    networks: Networks, targets: list[int], each: int, steps: int, seed: int, terms: Sequence[CrossEntropy]
) -> Results | None:
    return invert(
        list(networks),
        objectives=[*terms, BNMatching(weight=10.0, convention="relative")],
        image={"parameterization": Pixels(), "start": Noise()},
        targets=targets,
        images_per_class=each,
        stages=[{"iterations": steps, "jitter": 0, "flip": 0.0}],
        optimizer={"lr": 0.05},
        seed=seed,
        device="cpu",
        progress=False,
    )
