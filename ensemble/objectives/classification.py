"""What the logits should say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import PositiveFloat

from ensemble.objectives.terms import Slice, TeacherTerm
from ensemble.teachers.teacher import Observation


@dataclass(frozen=True)
class CrossEntropy(TeacherTerm, kind="cross_entropy"):
    """(1/N) sum_i -log softmax(z_i / T)[y_i] (Yin et al. 2020, eq. 1, with T = 1)."""

    aims: ClassVar[bool] = True
    weight: float = 10.0
    temperature: PositiveFloat = 4.0
    """T. Above 1 the loss goes on after the teachers read the target: images of more than their minimum."""

    def sums(self, seen: Observation, batch: Slice) -> torch.Tensor:
        return F.cross_entropy(seen.logits / self.temperature, batch.targets, reduction="sum") / batch.images


@dataclass(frozen=True)
class ClassScore(TeacherTerm, kind="class_score"):
    """-(1/N) sum_i z_i[y_i]: the raw score of the target class (Simonyan et al. 2014), to be minimised."""

    aims: ClassVar[bool] = True
    weight: float = 1.0

    def sums(self, seen: Observation, batch: Slice) -> torch.Tensor:
        return -seen.logits.gather(1, batch.targets[:, None]).sum() / batch.images
