"""The figures of one set of images, alone and beside real ones, as far as there are images for them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ensemble.evaluation import cautions
from ensemble.evaluation.density_coverage import density_coverage
from ensemble.evaluation.diversity import diversity
from ensemble.evaluation.frechet import frechet_distance
from ensemble.evaluation.inception_score import inception_score
from ensemble.evaluation.kernel_distance import kernel_distance
from ensemble.evaluation.neighbours import nearest_neighbours
from ensemble.evaluation.precision_recall import precision_recall
from ensemble.machine.rng import generator

Found = tuple[dict[str, float], list[str]]
"""Figures by their names in `Judgement`, and a line for each that is missing or not to be trusted."""

_NEIGHBOURS = 2000


@dataclass(frozen=True)
class Known:
    """Real images that were read: features (N, D), labels (N,), and where in their data they are (N,)."""

    features: torch.Tensor
    labels: torch.Tensor
    index: torch.Tensor

    def of(self, classes: torch.Tensor, but: torch.Tensor | None = None) -> Known:
        """Those of `classes`, without those at the places `but`."""
        kept = torch.isin(self.labels, classes)
        if but is not None:
            kept &= ~torch.isin(self.index, but)
        return Known(self.features[kept], self.labels[kept], self.index[kept])


def alone(features: torch.Tensor, logits: torch.Tensor, targets: torch.Tensor) -> Found:
    """Diversity and Inception Score of images, by features (N, D), logits (N, classes) and targets (N,)."""
    figures: dict[str, float] = {}
    notes = [cautions.of_score(len(logits), logits.shape[1])]
    if len(targets.unique()) == len(targets):
        notes.append("no diversity within a class: no class has two images")
    elif not features.any(1).all():
        notes.append("no diversity within a class: there is an image for which all features are zero")
    else:
        figures["diversity"] = diversity(features, targets)
    if len(logits) >= cautions.images_for_score(logits.shape[1]):
        figures["inception_score"], _ = inception_score(logits.double().softmax(1))
    return figures, [note for note in notes if note]


def beside(features: torch.Tensor, real: torch.Tensor) -> Found:
    """Distances, precision, recall, density and coverage of images, by features (N, D) and those of real ones (M, D).

    Neighbours are sought among 2,000 real images, or N where that is more, drawn always alike: searches grow with
    the product of both sets.
    """
    n, m = len(features), len(real)
    drawn = torch.randperm(m, generator=generator(0, "neighbours"))
    some = real[drawn[: max(_NEIGHBOURS, n)]]
    figures: dict[str, float] = {}
    notes = []
    if min(n, m) >= 2:
        figures["frechet"] = frechet_distance(features, real)
        figures["kernel"] = kernel_distance(features, real)
        notes.append(cautions.of_distances(n, features.shape[1]))
    else:
        notes.append(f"no Frechet and kernel distance: they take 2 images and 2 real ones, here are {n} and {m}")
    if min(n, m) >= 4:
        figures["precision"], figures["recall"] = precision_recall(some, features, k=3)
    else:
        notes.append(f"no precision and recall: they take 4 images and 4 real ones, here are {n} and {m}")
    if m >= 6:
        figures["density"], figures["coverage"] = density_coverage(some, features, k=5)
    else:
        notes.append(f"no density and coverage: they take 6 real images, here are {m}")
    return figures, [note for note in notes if note]


def memorised(features: torch.Tensor, train: Known, test: Known) -> Found:
    """The share of images (N, D) that are nearer to training than to test images, as many of each class."""
    train_some = as_many_of_each(train.labels, test.labels)
    test_some = as_many_of_each(test.labels, train.labels)
    if not len(train_some):
        return {}, ["nothing about copies: no training image of their classes is left to compare with"]
    near = nearest_neighbours(features, train.features[train_some], test.features[test_some])
    note = cautions.of_memorisation(len(features))
    return {"closer_to_train": near.closer_to_train}, [note] if note else []


def as_many_of_each(labels: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Positions in `labels`, drawn always alike: of each class as many as `others` have, or all it has."""
    drawn = torch.randperm(len(labels), generator=generator(0, "as many of each"))
    found = [torch.empty(0, dtype=torch.long)]
    for label in others.unique():
        found.append(drawn[labels[drawn] == label][: int((others == label).sum())])
    return torch.cat(found)
