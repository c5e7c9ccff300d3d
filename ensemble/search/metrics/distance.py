"""Fréchet distance from real images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from ensemble.data.labelled import LabelledImages, load_images
from ensemble.evaluation.judge import Judge, of_classes
from ensemble.runs.job import job
from ensemble.search.metric import Kit, Measure, Metric


@dataclass(frozen=True)
class Distance(Metric, kind="distance"):
    """The Fréchet distance from real images of the same classes in the judge's features, at least 0; less is better.

    It is biased upwards, the more so the fewer images there are: compare only points of as many images. What is
    found is chosen by real images, so it is no data-free result; the test split is left alone.
    """

    minimised: ClassVar[bool] = True
    needs_data: ClassVar[bool] = True

    split: str = "train"
    """Which real images."""
    images: Annotated[int, Field(ge=2)] = 5000
    """How many of them at most, of each class as many, drawn always alike."""

    def check(self, kit: Kit) -> None:
        """ValueError where the real images cannot be read, or are of other classes than judge or recipe."""
        of_classes(kit.network[1], self._real(kit), job(kit.recipe, None).plan.targets(0).unique())

    def _real(self, kit: Kit) -> LabelledImages:
        assert kit.data is not None, "checked before"
        return load_images(kit.data, self.split, kit.network[1].input_size, at_most=self.images, evenly=True)

    def measure(self, kit: Kit) -> Measure:
        judge = Judge(*kit.network, self._real(kit))

        def distance(images: torch.Tensor, targets: torch.Tensor, seed: int) -> float:
            value = judge(images, targets).frechet
            if value is None:
                raise ValueError("distance: it takes at least two images of a point, and two real ones of its classes")
            return value

        return distance
