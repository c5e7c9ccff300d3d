"""How many images a network that was no teacher reads as their target."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ensemble.evaluation.classification import accuracy
from ensemble.search.metric import Kit, Measure, Metric


@dataclass(frozen=True)
class Agreement(Metric, kind="agreement"):
    """The share of images, in [0, 1], that the judge reads as their target."""

    def measure(self, kit: Kit) -> Measure:
        net, card = kit.network

        def share(images: torch.Tensor, targets: torch.Tensor, seed: int) -> float:
            return accuracy(net, card, images, targets).top1

        return share
