"""What a search makes large or small: a number for the images of a point at a seed."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import nn

from ensemble.config.kinds import Kind
from ensemble.data.labelled import LabelledImages
from ensemble.recipe import Recipe
from models import ModelCard, check_reads, create_model

Measure = Callable[[torch.Tensor, torch.Tensor, int], float]
"""Of images (N, 3, H, W), RGB in [0, 1], and targets (N,), by the seed of what it draws itself."""


@dataclass(frozen=True)
class Kit:
    """What metrics may use."""

    judge: str
    """A network that was no teacher."""
    recipe: Recipe
    """Unchanged."""
    data: str | None
    """Real images, where they are given: a folder or an archive with SPLIT/CLASS/FILE."""
    device: torch.device
    held_out: Callable[[], LabelledImages]
    """Images that the unchanged recipe made from other seeds, labelled by the judge."""

    @cached_property
    def network(self) -> tuple[nn.Module, ModelCard]:
        """The judge with its card, on the device."""
        net, card = create_model(self.judge)
        check_reads(f"judge {self.judge}", net, card)
        return net.to(self.device), card


class Metric(Kind):
    """Base of the metrics, each one frozen dataclass in one file:

    @dataclass(frozen=True)
    class Agreement(Metric, kind="agreement"):
        def measure(self, kit): ...
    """

    minimised: ClassVar[bool] = False
    """Whether less is better."""
    needs_data: ClassVar[bool] = False
    """Whether it compares with real images (--data)."""

    def check(self, kit: Kit) -> None:
        """ValueError for what can be refused before anything is computed."""

    @abstractmethod
    def measure(self, kit: Kit) -> Measure:
        """The function of a point's images; what all points share is loaded once, here."""
