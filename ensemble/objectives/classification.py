"""What the logits should say. A slice of the batch contributes its sum over the whole batch's size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F


class LogitsObjective(Protocol):
    """A term of one teacher's logits that adds over images."""

    @property
    def name(self) -> str: ...

    @property
    def weight(self) -> float: ...

    def share(self, logits: torch.Tensor, targets: torch.Tensor, images: int) -> torch.Tensor:
        """The unweighted contribution of a slice (n, classes) to the mean over the batch's `images`: a scalar."""


@dataclass(frozen=True)
class CrossEntropy:
    """(1/N) sum_i -log softmax(z_i / T)[y_i]; `temperature` T > 0 (Yin et al. 2020, eq. 1, with T = 1)."""

    weight: float = 1.0
    temperature: float = 1.0
    name: str = "cross_entropy"

    def share(self, logits: torch.Tensor, targets: torch.Tensor, images: int) -> torch.Tensor:
        return F.cross_entropy(logits / self.temperature, targets, reduction="sum") / images


@dataclass(frozen=True)
class ClassScore:
    """-(1/N) sum_i z_i[y_i]: the raw score of the target class (Simonyan et al. 2014), to be minimised."""

    weight: float = 1.0
    name: str = "class_score"

    def share(self, logits: torch.Tensor, targets: torch.Tensor, images: int) -> torch.Tensor:
        return -logits.gather(1, targets[:, None]).sum() / images
