"""What the logits should say."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat

from ensemble.machine.rng import generator
from ensemble.objectives.terms import Slice, TeacherTerm
from ensemble.teachers.teacher import Observation


@dataclass(frozen=True)
class CrossEntropy(TeacherTerm, kind="cross_entropy"):
    """(1/N) sum_i -log softmax(z_i / T_i)[y_i] (Yin et al. 2020, eq. 1, with T_i = 1).

    T_i is `temperature` or, with `at_most`, min(`temperature`, `at_most` * s_i), where s_i is the standard deviation of
    z_i over the classes, taken as a constant. Without the limit a temperature that suits one network makes the logits
    of a weaker one, which are smaller, all alike: its images are pulled away from the mean of the other classes and not
    from the nearest one.
    """

    aims: ClassVar[bool] = True
    weight: float = 1.0
    temperature: PositiveFloat = 4.0
    """Above 1 the loss goes on after the teachers read the target: images of more than their minimum."""
    at_most: PositiveFloat | None = None
    """Limits the temperature, in standard deviations of each image's own logits."""

    def sums(self, seen: Observation, batch: Slice) -> torch.Tensor:
        temperature: float | torch.Tensor = self.temperature
        if self.at_most is not None:
            spread = seen.logits.detach().std(1, keepdim=True, unbiased=False)
            temperature = (self.at_most * spread).clamp(1e-3, self.temperature)  # a network may say nothing
        return F.cross_entropy(seen.logits / temperature, batch.targets, reduction="sum") / batch.images


@dataclass(frozen=True)
class Saturating(TeacherTerm, kind="saturating"):
    """(1/N) sum_i max(0, log until - log softmax(z_i)[y_i]): each image is pulled until its target has `until`.

    The cross-entropy, without a temperature, that stops at a probability: what is certain enough is let alone, so a
    strong teacher pulls no longer than a weak one, and images need not become more than their minimum.
    """

    aims: ClassVar[bool] = True
    weight: float = 10.0
    until: Annotated[float, Field(gt=0, le=1)] = 0.9
    """The probability of the target at which an image is no longer pulled."""

    def sums(self, seen: Observation, batch: Slice) -> torch.Tensor:
        each = F.cross_entropy(seen.logits, batch.targets, reduction="none")
        return (each + math.log(self.until)).clamp_min(0).sum() / batch.images


@dataclass(frozen=True)
class SoftTargets(TeacherTerm, kind="soft_targets"):
    """(1/N) sum_i KL(q_i | softmax(z_i)): each image has a target distribution of its own.

    q_i gives its class a probability drawn uniformly from [`least`, `most`], and the rest to the other classes by a
    Dirichlet distribution (all parameters `concentration`: small ones favour few classes). All are drawn for the batch,
    over the first teacher's classes: a teacher whose classes are mapped is asked for the same of those that it has.
    """

    aims: ClassVar[bool] = True
    weight: float = 10.0
    least: Annotated[float, Field(gt=0, lt=1)] = 0.6
    most: Annotated[float, Field(gt=0, le=1)] = 1.0
    concentration: Annotated[float, Field(ge=0.05)] = 0.3

    def rules(self) -> Iterator[str]:
        if self.least > self.most:
            yield f"least: {self.least:g} must not be above most, {self.most:g}"

    def sums(self, seen: Observation, batch: Slice) -> torch.Tensor:
        wanted = self.distributions(batch, seen.logits.shape[1]).to(seen.logits)
        each = F.kl_div(seen.logits.log_softmax(1), wanted, reduction="none").sum(1)
        return each.sum() / batch.images

    def distributions(self, batch: Slice, classes: int) -> torch.Tensor:
        """q of the slice's images over this teacher's classes, (n, classes), float64."""
        columns = batch.teacher.columns
        drawn_of = classes if columns is None else len(columns)

        def drawn() -> torch.Tensor:
            """Of the whole batch: of each image its class's probability, then the others' shares, not yet scaled."""
            rng = generator(batch.seed, "soft targets")
            own = self.least + (self.most - self.least) * torch.rand(batch.images, generator=rng, dtype=torch.float64)
            shape = torch.full((batch.images, drawn_of), self.concentration, dtype=torch.float64)
            others = torch._standard_gamma(shape, generator=rng)
            return torch.cat([own[:, None], others], 1).to(batch.targets.device)

        rows = batch.once((self, drawn_of), drawn)[batch.start : batch.stop]
        own, others, target = rows[:, :1], rows[:, 1:], batch.targets[:, None]
        if columns is not None:
            known = [(theirs, k) for k, theirs in enumerate(columns) if theirs >= 0]
            places, sources = (torch.tensor(part, device=others.device) for part in zip(*known, strict=True))
            others = others.new_zeros((len(others), classes)).index_add(1, places, others[:, sources])
        others = others.scatter(1, target, 0.0)
        rest = others.sum(1, keepdim=True)
        own = torch.where(rest > 0, own, 1.0)  # of a teacher that knows none of the others
        others = others / rest.clamp_min(1e-300)
        return (others * (1 - own)).scatter(1, target, own)


@dataclass(frozen=True)
class ClassScore(TeacherTerm, kind="class_score"):
    """-(1/N) sum_i z_i[y_i]: the raw score of the target class (Simonyan et al. 2014), to be minimised."""

    aims: ClassVar[bool] = True
    signed: ClassVar[bool] = True
    weight: float = 1.0

    def sums(self, seen: Observation, batch: Slice) -> torch.Tensor:
        return -seen.logits.gather(1, batch.targets[:, None]).sum() / batch.images
