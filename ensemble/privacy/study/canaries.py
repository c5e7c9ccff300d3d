"""Images with a wrong label: those that a network can be right about only by having learned them."""

from __future__ import annotations

import torch

from ensemble.data.labelled import LabelledImages
from ensemble.machine.rng import generator


def mislabelled(data: LabelledImages, count: int, seed: int) -> tuple[LabelledImages, torch.Tensor]:
    """The images, `count` of them with another class that is drawn at random, and which these are, (N,) bool.

    Which images and which classes depends on the seed alone; the data given is left as it is.

    Source: Aerni, Zhang and Tramèr (2024), "Evaluations of machine learning privacy defenses are misleading": averages
    over images hide the most exposed ones, for which mislabelled images stand. ValueError for fewer images than
    `count`, or for one class.
    """
    if len(data) < count:
        raise ValueError(f"canaries: {count} of {len(data)} images cannot be mislabelled; ask for fewer")
    classes = len(data.class_names)
    if count and classes < 2:
        raise ValueError("canaries: a wrong label takes a second class")
    rng = generator(seed, "canaries")
    chosen = torch.randperm(len(data), generator=rng)[:count]
    labels, canaries = data.labels.clone(), torch.zeros(len(data), dtype=torch.bool)
    if count:
        labels[chosen] = (labels[chosen] + torch.randint(1, classes, (count,), generator=rng)) % classes
    canaries[chosen] = True
    return LabelledImages(data.images, labels, data.class_names), canaries
