"""Canaries: images with a wrong label, which a network can know by heart alone."""

from __future__ import annotations

from dataclasses import replace

import torch

from ensemble.data.labelled import LabelledImages
from ensemble.machine.rng import generator


def mislabelled(data: LabelledImages, count: int, seed: int) -> tuple[LabelledImages, torch.Tensor]:
    """The data with `count` random images given another class at random, and which these are, (N,) bool.

    ValueError where there are fewer images, or one class.
    """
    if count > len(data):
        raise ValueError(f"canaries: {count} of {len(data)} images; ask for fewer")
    classes = len(data.class_names)
    if count and classes < 2:
        raise ValueError("canaries: a wrong label takes a second class")
    rng = generator(seed, "canaries")
    chosen = torch.randperm(len(data), generator=rng)[:count]
    moved = torch.randint(1, classes, (count,), generator=rng) if count else chosen
    labels = data.labels.clone()
    labels[chosen] = (labels[chosen] + moved) % classes
    marked = torch.zeros(len(data), dtype=torch.bool)
    marked[chosen] = True
    return replace(data, labels=labels), marked
