"""Images on which a student differs from its teachers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import PositiveFloat

from ensemble.objectives.terms import Slice, TeacherTerm, Totals
from ensemble.teachers.teacher import Observation, Profile

_LEAST, _MOST = 0.01, 0.99
"""What the reference code clips distributions to."""


@dataclass(frozen=True)
class Competition(TeacherTerm, kind="competition"):
    """Minus how far the student's p_s = softmax(z_s / T) is from the teacher's p_t, a mean over the N images.

    js:         1 - JS(p_t, p_s), JS = KL(p_t | m) / 2 + KL(p_s | m) / 2 with m = (p_t + p_s) / 2, natural logarithms:
                R_compete of Yin et al. 2020, eq. 8. JS is at most log 2.
    masked:     -(1/N) sum over the images that both give the same class of KL(p_t | p_s): CMI (Fang et al. 2021). An
                image on which they part is pulled no further.
    reference:  1 - min(1, KL(m | p_t) / 2 + KL(m | p_s) / 2) with all three clipped to [0.01, 0.99], as DeepInversion's
                code has it: arguments exchanged, and no pull where a clip acts.

    The student is the one of `teachers` that says `student: true`. Gradients pass through both networks. Of a network
    whose classes are mapped, the distribution is over the first teacher's classes, in their order.
    """

    compares: ClassVar[bool] = True
    signed: ClassVar[bool] = True
    weight: float = 1.0
    divergence: Literal["js", "masked", "reference"] = "js"
    temperature: PositiveFloat = 3.0
    """T, of both networks."""

    @property
    def falls(self) -> bool:
        return self.divergence != "masked"  # an image on which they part leaves the sum, which rises by it

    def check(self, teachers: Sequence[Profile]) -> None:
        first = teachers[0].card
        for teacher in teachers:
            if teacher.columns is None and not teacher.card.shares_classes(first):
                raise ValueError(
                    f"{self.name}: {teacher.name} has other classes than {first.name}; it compares what networks say "
                    "of the same classes; map them all (classes)"
                )
            columns = teacher.columns or ()
            if -1 in columns:
                raise ValueError(
                    f"{self.name}: the classes of {teacher.name} are mapped without "
                    f"{first.class_names[columns.index(-1)]!r}; it compares what networks say of all classes of "
                    f"{first.name}; map them all"
                )

    def describe(self) -> str:
        return f"{self.name}[{self.divergence}, T {self.temperature:g}]"

    def sums(self, seen: Observation, batch: Slice) -> torch.Tensor:
        """The batch's log-probabilities of the first teacher's C classes, each image's at its row: (N, C)."""
        columns = batch.teacher.columns
        logits = seen.logits if columns is None else seen.logits[:, columns]
        return batch.placed(F.log_softmax(logits.double() / self.temperature, 1))

    def loss(self, total: Totals, t: int) -> torch.Tensor:
        students = [s for s in total if total.batch(s).teacher.student]
        if t in students or not students:
            return total[t].new_zeros(())
        teacher, student = total[t], total[students[0]]
        p, q = teacher.exp(), student.exp()
        if self.divergence == "masked":
            agrees = teacher.argmax(1) == student.argmax(1)
            return -(_kl(p, teacher, student) * agrees).mean()
        if self.divergence == "js":
            middle = torch.logaddexp(teacher, student) - math.log(2)
            return 1 - (_kl(p, teacher, middle) + _kl(q, student, middle)).mean() / 2
        p, q, m = (part.clamp(_LEAST, _MOST) for part in (p, q, (p + q) / 2))
        return 1 - ((_kl(m, m.log(), p.log()) + _kl(m, m.log(), q.log())).mean() / 2).clamp(0, 1)


def _kl(p: torch.Tensor, log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """sum_c p (log p - log q), (N,)."""
    return (p * (log_p - log_q)).sum(1)
