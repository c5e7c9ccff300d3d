"""How far a set of images is from real ones, in the features of a network that was no teacher."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from ensemble.data import LabelledImages
from ensemble.evaluation.classification import Accuracy, accuracy
from ensemble.evaluation.density_coverage import density_coverage
from ensemble.evaluation.diversity import diversity
from ensemble.evaluation.features import penultimate_features
from ensemble.evaluation.frechet import frechet_distance
from ensemble.evaluation.kernel_distance import kernel_distance
from ensemble.evaluation.precision_recall import precision_recall
from ensemble.rng import generator
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
    """A network that was no teacher, and its features of the real test images."""

    def __init__(self, net: nn.Module, card: ModelCard, real: LabelledImages) -> None:
        self.net = net.to(memory_format=torch.channels_last)
        self.card = card
        self.real = penultimate_features(net, card, real.images.float() / 255)

    def __call__(self, images: torch.Tensor, targets: torch.Tensor) -> Judgement:
        """Judge `images` (N, 3, H, W), RGB in [0, 1], with their targets (N,)."""
        features = penultimate_features(self.net, self.card, images)
        some = self.real[: max(2000, len(features))]  # neighbour searches grow with the product of both sets
        precision, recall = precision_recall(some, features)
        density, coverage = density_coverage(some, features)
        return Judgement(
            n=len(features),
            accuracy=accuracy(self.net, self.card, images, targets),
            frechet=frechet_distance(features, self.real),
            kernel=kernel_distance(features, self.real),
            precision=precision,
            recall=recall,
            density=density,
            coverage=coverage,
            diversity=diversity(features, targets),
        )

    def scale(self, train: LabelledImages, n: int, seed: int = 0) -> Judgement:
        """The same for `n` real training images, drawn without replacement: what a perfect inversion would get."""
        index = torch.randperm(len(train), generator=generator(seed, "scale"))[:n]
        return self(train.images[index].float() / 255, train.labels[index])
