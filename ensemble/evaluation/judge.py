"""How far a set of images is from real ones, in the features of a network that was no teacher."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from ensemble.data.labelled import LabelledImages
from ensemble.evaluation.classification import Accuracy, accuracy
from ensemble.evaluation.density_coverage import density_coverage
from ensemble.evaluation.diversity import diversity
from ensemble.evaluation.features import penultimate_features
from ensemble.evaluation.frechet import frechet_distance
from ensemble.evaluation.kernel_distance import kernel_distance
from ensemble.evaluation.precision_recall import precision_recall
from ensemble.machine.rng import generator
from models import ModelCard


@dataclass(frozen=True)
class Judgement:
    """One set of images against the real test images, by one judge."""

    n: int
    accuracy: Accuracy
    frechet: float
    kernel: float
    precision: float
    recall: float
    density: float
    coverage: float
    diversity: float


class Judge:
    """A network that was no teacher, and its features of the real test images.

    Raises ValueError where the real images' classes are neither among the judge's by name, nor as many under names
    that are all different.
    """

    def __init__(self, net: nn.Module, card: ModelCard, real: LabelledImages) -> None:
        self.net = net.to(memory_format=torch.channels_last)
        self.card = card
        self.labels = _own_labels(card, real)
        self.real = penultimate_features(net, card, real.images.float() / 255)

    def __call__(self, images: torch.Tensor, targets: torch.Tensor) -> Judgement:
        """Judge `images` (N, 3, H, W), RGB in [0, 1], with their targets (N,), against real ones of the same classes.

        Neighbours are sought among 2,000 of those, or as many as there are images, drawn always alike: searches grow
        with the product of both sets. ValueError where there are no real images of these classes.
        """
        features = penultimate_features(self.net, self.card, images)
        real = self.real[torch.isin(self.labels, targets.unique())]
        if not len(real):
            raise ValueError("data: no real test image is of a class of the images that are judged")
        drawn = torch.randperm(len(real), generator=generator(0, "neighbours"))
        some = real[drawn[: max(2000, len(features))]]
        precision, recall = precision_recall(some, features)
        density, coverage = density_coverage(some, features)
        return Judgement(
            n=len(features),
            accuracy=accuracy(self.net, self.card, images, targets),
            frechet=frechet_distance(features, real),
            kernel=kernel_distance(features, real),
            precision=precision,
            recall=recall,
            density=density,
            coverage=coverage,
            diversity=diversity(features, targets),
        )

    def scale(self, train: LabelledImages, n: int, seed: int = 0, classes: torch.Tensor | None = None) -> Judgement:
        """The same for `n` real training images, drawn without replacement: what a perfect inversion would get.

        They are of `classes`, all where it is None; fewer than `n` where there are no more. ValueError for none.
        """
        labels = _own_labels(self.card, train)
        index = torch.randperm(len(train), generator=generator(seed, "scale"))
        if classes is not None:
            index = index[torch.isin(labels[index], classes)]
        index = index[:n]
        if not len(index):
            raise ValueError("data: no real training image is of a class of the images that are judged")
        return self(train.images[index].float() / 255, labels[index])


def _own_labels(card: ModelCard, data: LabelledImages) -> torch.Tensor:
    """The labels as the judge numbers its classes: by their names, or where it has other names, in their order."""
    if set(data.class_names) <= set(card.class_names):
        return torch.tensor([card.class_names.index(name) for name in data.class_names])[data.labels]
    if len(data.class_names) == card.num_classes and set(data.class_names).isdisjoint(card.class_names):
        return data.labels
    unknown = [name for name in data.class_names if name not in card.class_names]
    raise ValueError(
        f"data: {card.name} has no class {unknown[0]!r}; name the folders as its {card.num_classes} classes, or give "
        "one for each, none named as a class, in its order"
    )
