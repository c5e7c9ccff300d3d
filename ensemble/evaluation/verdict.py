"""One judge on several runs, beside real images as the scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from ensemble.data.labelled import LabelledImages
from ensemble.evaluation.judge import Judge, Judgement


class Judged(Protocol):
    """A run's images, and who taught them."""

    @property
    def name(self) -> str: ...

    @property
    def images(self) -> torch.Tensor:
        """(N, 3, H, W), RGB in [0, 1]."""

    @property
    def targets(self) -> torch.Tensor:
        """(N,)."""

    def taught_by(self, judge: str) -> bool:
        """Whether the images were made for this network."""


@dataclass(frozen=True)
class Verdict:
    """What one judge says."""

    sets: dict[str, Judgement]
    """By the run's name, and real images by how many they are."""
    warnings: list[str]
    """About the judge and the real images."""

    @property
    def notes(self) -> list[str]:
        """What is to be said of the sets, each once."""
        return list(dict.fromkeys(note for one in self.sets.values() for note in one.notes))


def verdict(name: str, judge: Judge, runs: Sequence[Judged], train: LabelledImages | None) -> Verdict:
    """Each run's judgement, and where there are real images that of as many training images, as the scale.

    ValueError as `Judge` raises it.
    """
    sets = {made.name: judge(made.images, made.targets, made.name) for made in runs}
    warnings = [
        f"{name} was a teacher of {made.name}, whose images were made for it; take a network that was none"
        for made in runs
        if made.taught_by(name)
    ]
    if train is not None:
        scales, missing = _scales(judge, train, runs)
        sets |= scales
        warnings += missing
    return Verdict(sets, warnings)


def _scales(judge: Judge, train: LabelledImages, runs: Sequence[Judged]) -> tuple[dict[str, Judgement], list[str]]:
    """Real training images, as many of each class as each run's, and a line where there are not so many."""
    sets: dict[str, Judgement] = {}
    warnings = []
    seen = set()
    for made in runs:
        n, counts = len(made.targets), tuple(made.targets.bincount().tolist())
        if counts in seen:
            continue
        seen.add(counts)
        scale = judge.scale(train, made.targets)
        name = f"{scale.n} real training images"
        sets[f"{name}, classes of {made.name}" if name in sets else name] = scale
        if scale.n < n:
            warnings.append(
                f"of the classes of {made.name} there are {scale.n} training images; its {n} have no fair scale"
            )
    return sets, warnings
