"""Scores of networks by arm and seed, and what they say of the arms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ensemble.evaluation.estimate import Estimate
from ensemble.privacy.rates import auc
from ensemble.privacy.study.bank import BankTeacher
from ensemble.privacy.study.cells import Cells
from ensemble.privacy.study.inference import permutation_p, sign_flip_p
from ensemble.privacy.study.ridge import leave_pair_out_auroc, ridge_p


@dataclass(frozen=True)
class Detector:
    """A score of a network, larger where it learned with mixes, and what it takes to compute it."""

    name: str
    access: str
    score: Callable[[BankTeacher], float]
    arms: frozenset[str] | None = None
    """Those that it is computed for; None: all."""


@dataclass(frozen=True)
class Ridge:
    """Features of a network that a ridge regression over the bank turns into a score."""

    name: str
    access: str
    features: str


@dataclass(frozen=True)
class Scores:
    """What the cells of a finished study hold, by teacher."""

    cells: Cells

    def teachers(self, arm: str) -> list[BankTeacher]:
        return [each for each in self.cells.bank.teachers() if each.arm == arm]

    def read(self, teacher: BankTeacher) -> dict[str, Any]:
        return self.cells.folder.figures(f"read_{teacher.name}")

    def seen(self, teacher: BankTeacher, statistics: str, what: str = "seam") -> float:
        return float(self.cells.folder.figures(f"seen_{teacher.name}_{statistics}")[what])

    @property
    def seams(self) -> Detector:
        """That of the primary contrast."""
        return Detector("I1: seams of inversions", "weights and statistics", lambda t: self.seen(t, "stored"))

    @property
    def turned(self) -> Detector:
        """Seams less those of images that were interpolated alike and have none along the axes."""
        return Detector("turned control", "weights and statistics", lambda t: self.seen(t, "stored", "turned"))

    def without_mixes(self) -> list[str]:
        """Arms that are compared with the plain one, and had no CutMix."""
        recipe = self.cells.bank.recipe
        return [arm.name for arm in recipe.arms if not arm.dose and arm.name != recipe.plain]

    def detectors(self) -> list[Detector]:
        """In the order of the access that they take."""
        recipe = self.cells.bank.recipe
        with_class = frozenset((recipe.plain, recipe.mixed))

        def probe(kind: str) -> Callable[[BankTeacher], float]:
            return lambda t: float(self.read(t)[kind]["composite"])

        statistics = "weights and statistics"
        return [
            Detector("B1: slope of the second class in composites", "logits, and such images", probe("probes")),
            Detector("B2: the same on inversions of another network", "logits", probe("synthetic")),
            Detector(
                "S1: share of mixed batches by re-estimation",
                "weights, statistics, and such images",
                lambda t: float(self.read(t)["share"]),
            ),
            self.seams,
            Detector(
                "I2: a classifier of real mixes, of inversions",
                f"{statistics}, and such images",
                lambda t: self.seen(t, "stored", "mixes"),
            ),
            Detector(
                "I3: a second class in a window of inversions with classes",
                f"{statistics}, and another network",
                lambda t: self.seen(t, "class", "second_class"),
                with_class,
            ),
        ]

    def ridges(self) -> list[Ridge]:
        """Those that need the bank itself."""
        return [
            Ridge(
                "S2: ridge on statistics beside re-estimated ones", "weights, statistics, images, a bank", "statistics"
            ),
            Ridge("W1: ridge on weights", "weights, a bank", "weights"),
        ]

    def values(self, detector: Detector, arm: str) -> list[float]:
        return [detector.score(teacher) for teacher in self.teachers(arm)]

    def auroc(self, detector: Detector, arm: str) -> Estimate:
        """Of the arm against the plain one, with Newcombe's interval."""
        plain = self.cells.bank.recipe.plain
        return auc(torch.tensor(self.values(detector, arm)), torch.tensor(self.values(detector, plain)))

    def p(self, detector: Detector, arm: str) -> float:
        return permutation_p(self.values(detector, arm), self.values(detector, self.cells.bank.recipe.plain))

    def ridge(self, ridge: Ridge, arm: str) -> float:
        """AUROC under leave-pair-out, on the seeds that both arms have."""
        return leave_pair_out_auroc(*self._features(ridge, arm))

    def ridge_p(self, ridge: Ridge, arm: str) -> float:
        """Of the whole pipeline, labels exchanged within seeds."""
        return ridge_p(*self._features(ridge, arm), draws=999, seed=self.cells.bank.recipe.seed)

    def _features(self, ridge: Ridge, arm: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        teachers = [each for pair in self.pairs(arm) for each in pair]
        rows = [self.cells.folder.tensors(f"read_{each.name}")[ridge.features].double() for each in teachers]
        positive = torch.tensor([each.arm == arm for each in teachers])
        return torch.stack(rows), positive, torch.tensor([each.seed for each in teachers])

    def pairs(self, arm: str) -> list[tuple[BankTeacher, BankTeacher]]:
        """(arm's, plain one's) of the seeds that both have."""
        plain = {t.seed: t for t in self.teachers(self.cells.bank.recipe.plain)}
        return [(t, plain[t.seed]) for t in self.teachers(arm) if t.seed in plain]


@dataclass(frozen=True)
class Swap:
    """Seams of inversions of {plain, mixed} weights with {plain, CutMix} statistics, re-estimated alike, by seed."""

    seam: Mapping[tuple[str, str], Sequence[float]]
    accuracy: Mapping[tuple[str, str], Sequence[float]]

    def of_statistics(self) -> list[float]:
        """What CutMix statistics add, over both weights, by seed."""
        return self._halved(("plain", "cutmix"), ("mixed", "cutmix"), ("plain", "plain"), ("mixed", "plain"))

    def of_weights(self) -> list[float]:
        """What the weights of the mixed arm add, over both statistics, by seed."""
        return self._halved(("mixed", "plain"), ("mixed", "cutmix"), ("plain", "plain"), ("plain", "cutmix"))

    def interaction(self) -> list[float]:
        s = self.seam
        cells = s["mixed", "cutmix"], s["mixed", "plain"], s["plain", "cutmix"], s["plain", "plain"]
        return [a - b - c + d for a, b, c, d in zip(*cells, strict=True)]

    def _halved(self, *cells: tuple[str, str]) -> list[float]:
        """The mean of the first two cells less that of the others."""
        return [(a + b - c - d) / 2 for a, b, c, d in zip(*(self.seam[cell] for cell in cells), strict=True)]


def swap_of(scores: Scores) -> Swap:
    """Weights are named first, statistics second."""
    recipe = scores.cells.bank.recipe
    pairs = scores.pairs(recipe.mixed)
    seam: dict[tuple[str, str], list[float]] = {}
    accuracy: dict[tuple[str, str], list[float]] = {}
    for weights, teachers in (("mixed", [m for m, _ in pairs]), ("plain", [p for _, p in pairs])):
        for statistics in ("plain", "cutmix"):
            seam[weights, statistics] = [scores.seen(t, statistics) for t in teachers]
            accuracy[weights, statistics] = [scores.seen(t, statistics, "test_accuracy") for t in teachers]
    return Swap(seam, accuracy)


def swap_p(swap: Swap) -> dict[str, float]:
    """One-sided, exact."""
    return {"statistics": sign_flip_p(swap.of_statistics()), "weights": sign_flip_p(swap.of_weights())}
