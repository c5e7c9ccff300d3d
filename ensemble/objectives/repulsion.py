"""Images of one class that keep apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeInt

from ensemble.objectives.terms import Slice, TeacherTerm, Totals
from ensemble.teachers.teacher import Observation


@dataclass(frozen=True)
class Repulsion(TeacherTerm, kind="repulsion"):
    """Mean over pairs i, j of one class of max(0, cos(f_i, f_j) - limit), each pair once; 0 without pairs.

    i is of the batch, j of the batch too, or with `memory` among the last so many images of the run's earlier batches.
    f are the teacher's features, the input of the layer that makes its logits. After the contrastive term of CMI (Fang
    et al. 2021) and the cosine bounds of IntraQ (Zhong et al. 2022); no head, no negatives of other classes.
    """

    reads_features: ClassVar[bool] = True
    weight: float = 10.0
    limit: Annotated[float, Field(ge=-1, le=1)] = 0.7
    """The cosine up to which images of a class may be alike."""
    memory: NonNegativeInt = 0

    def sums(self, seen: Observation, batch: Slice) -> torch.Tensor:
        """The batch's unit features, each at its row: (N, D)."""
        return batch.placed(F.normalize(seen.features.double(), dim=1))

    def loss(self, total: Totals, t: int) -> torch.Tensor:
        batch = total.batch(t)
        others, targets = total[t], batch.targets
        pairs = (targets[:, None] == targets).triu(1)
        if self.memory and batch.earlier is not None:
            features, of = (part[-self.memory :] for part in batch.earlier)
            others = torch.cat([others, F.normalize(features, dim=1)])
            pairs = torch.cat([pairs, targets[:, None] == of], 1)
        cosine = total[t] @ others.T
        return ((cosine - self.limit).clamp_min(0) * pairs).sum() / pairs.sum().clamp_min(1)
