"""Inception Score by a network that was no teacher."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cache

import torch

from ensemble.evaluation.cautions import images_for_score, score_bias
from ensemble.evaluation.classification import logits_of
from ensemble.evaluation.inception_score import inception_score
from ensemble.search.metric import Kit, Measure, Metric


@dataclass(frozen=True)
class Inception(Metric, kind="inception"):
    """The Inception Score by the judge's probabilities, in [1, classes].

    It is biased downwards, the more so the fewer images there are: compare only points of as many images.
    """

    def measure(self, kit: Kit) -> Measure:
        net, card = kit.network
        classes = card.num_classes

        @cache  # a line once, not at every seed of every point
        def caution(n: int) -> None:
            if n < images_for_score(classes):
                warnings.warn(
                    f"inception: with {n} images a point the score is too small by about {score_bias(n, classes):.0%}, "
                    "and differences below that may be chance; make more by images_per_class or trials",
                    stacklevel=2,
                )

        def score(images: torch.Tensor, targets: torch.Tensor, seed: int) -> float:
            caution(len(images))
            return inception_score(logits_of(net, card, images).double().softmax(1))[0]

        return score
