"""What a student is told: the images' classes, what teachers said of each image, or what they say of each view."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field, NonNegativeFloat

from ensemble.config.kinds import Kind
from ensemble.data.soft_labels import Average, centred, deviation, pooled, scales
from ensemble.training.augment import MixedLabels
from ensemble.training.hard_labels import Teaching, hard_labels
from ensemble.training.pool import Pool
from ensemble.training.schedule import Schedule
from ensemble.training.soft_labels import kl_divergence, squared_distance
from ensemble.training.teachers import LabelTeacher, made_teacher
from models import ModelCard, create_model, model_card, parse_spec, sha256

_ToldOf = Callable[[torch.Tensor, MixedLabels], torch.Tensor]
"""What a student is to say of views, and of which images are in them (`Teaching`)."""


@dataclass(frozen=True)
class Lesson(Kind, default="live"):
    """What a student is told for a batch."""

    @abstractmethod
    def begin(self, pool: Pool, card: ModelCard, schedule: Schedule, device: torch.device) -> Teaching:
        """Ready to teach the student of this card; ValueError where the pool does not have what it takes."""

    @abstractmethod
    def names(self, pool: Pool) -> tuple[str, ...]:
        """Whose labels they are."""

    def digests(self, pool: Pool) -> Mapping[str, str]:
        """By name, of those that it reads and whose weights are files: their SHA-256, and how they see images."""
        return {}


@dataclass(frozen=True)
class Hard(Lesson, kind="hard"):
    """The class that each image was made for: cross-entropy."""

    def begin(self, pool: Pool, card: ModelCard, schedule: Schedule, device: torch.device) -> Teaching:
        return hard_labels(pool.data.labels.to(device), schedule.label_smoothing)

    def names(self, pool: Pool) -> tuple[str, ...]:
        return ()


@dataclass(frozen=True)
class Soft(Lesson):
    """Teachers' logits, each teacher's centred and brought to one reach, averaged: z.

    The loss is a distance of the student's logits from z, and `hard_weight` times the cross-entropy with the class.
    """

    teachers: tuple[str, ...] = ()
    """All of the dataset's where none is named."""
    divergence: Literal["kl", "mse"] = "kl"
    """KL(softmax(z / T) || softmax(student / T)), or the mean squared difference of the centred logits."""
    temperature: Annotated[float, Field(gt=0, le=1e4)] = 4.0
    scale: bool = True
    """Multiply KL by T², so that its gradient does not shrink with T."""
    average: Average = "probabilities"
    """Of several teachers."""
    hard_weight: NonNegativeFloat = 0.0

    def rules(self) -> Iterator[str]:
        if len({*self.teachers}) < len(self.teachers):
            yield "teachers: one is named twice and would count once; name each once"
        if self.divergence == "mse" and not self.scale:
            yield "scale: there is no T² in a squared difference; leave it out, or take divergence kl"

    def target(self, logits: torch.Tensor) -> torch.Tensor:
        """What the student is to say, of z; mixed images are told the mean of theirs, by their shares."""
        return (logits / self.temperature).softmax(1) if self.divergence == "kl" else centred(logits)

    def distance(self, told: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """The loss of the student's logits."""
        if self.divergence == "kl":
            return kl_divergence(told, logits, self.temperature, self.scale)
        return squared_distance(told, logits)

    def pooled(self, logits: dict[str, torch.Tensor], factors: dict[str, float]) -> torch.Tensor:
        """z of the teachers' logits, each (N, classes)."""
        return pooled([factors[name] * z for name, z in logits.items()], self.average, self.temperature)

    def teaching(self, told_of: _ToldOf, hard: Teaching) -> Teaching:
        """Told what `told_of` says of a batch."""

        def teach(logits: torch.Tensor, batch: torch.Tensor, mixed: MixedLabels) -> tuple[torch.Tensor, torch.Tensor]:
            told = told_of(batch, mixed)
            loss = self.distance(told, logits)
            if self.hard_weight:
                loss = loss + self.hard_weight * hard(logits, batch, mixed)[0]
            return loss, told.argmax(1)

        return teach


@dataclass(frozen=True)
class Stored(Soft, kind="stored"):
    """One soft label an image, which its views keep: what the teachers said of it when it was made."""

    def begin(self, pool: Pool, card: ModelCard, schedule: Schedule, device: torch.device) -> Teaching:
        logits = {name: pool.stored[name].float() for name in self.names(pool)}
        factors = scales({name: deviation(each) for name, each in logits.items()})
        targets = self.target(self.pooled(logits, factors)).to(device)

        def told_of(batch: torch.Tensor, mixed: MixedLabels) -> torch.Tensor:
            first, second, share = mixed
            return targets[first] if share == 1.0 else share * targets[first] + (1 - share) * targets[second]

        return self.teaching(told_of, Hard().begin(pool, card, schedule, device))

    def names(self, pool: Pool) -> tuple[str, ...]:
        if not pool.stored:
            raise ValueError("lesson: no teacher's logits are in all datasets; ask for --labels live")
        for name in self.teachers:
            if name not in pool.stored:
                raise ValueError(
                    f"lesson.teachers: no logits of {name} are stored; name some of {', '.join(pool.stored)}, or ask "
                    "for --labels live"
                )
        return self.teachers or tuple(pool.stored)


@dataclass(frozen=True)
class Live(Soft, kind="live"):
    """The teachers read the very views that the student sees, mixed ones too.

    `teachers` are the dataset's, by their names there, or NAME[:option=value][@WEIGHTS]. How far a teacher's logits
    reach is taken from those that are stored, or measured once on the dataset's images.
    """

    def begin(self, pool: Pool, card: ModelCard, schedule: Schedule, device: torch.device) -> Teaching:
        networks = [_network(name, pool, device) for name in self.names(pool)]
        channels = len(card.mean)
        if others := [each.name for each in networks if len(each.card.mean) > channels]:
            raise ValueError(
                f"lesson: {card.name} sees luminance, its teacher {others[0]} colours; give teachers that see it, "
                "too, or --set lesson.kind=stored"
            )
        alone = len(networks) == 1  # its reach cancels
        factors = scales({each.name: 1.0 if alone else _reach(each, pool) for each in networks})
        mean, std = (torch.tensor(values, device=device)[:, None, None] for values in (card.mean, card.std))
        precision = schedule.settled(device).precision

        def told_of(batch: torch.Tensor, mixed: MixedLabels) -> torch.Tensor:
            rgb = (batch * std + mean).expand(-1, 3, -1, -1)  # a luminance is that of the grey of so much
            logits = {each.name: each.read(rgb, precision) for each in networks}
            return self.target(self.pooled(logits, factors))

        return self.teaching(told_of, Hard().begin(pool, card, schedule, device))

    def names(self, pool: Pool) -> tuple[str, ...]:
        return self.teachers or tuple(pool.teachers)

    def digests(self, pool: Pool) -> Mapping[str, str]:
        found = {}
        for name in self.names(pool):
            spec = pool.teachers[name].model if name in pool.teachers else name
            file = parse_spec(spec).path
            if file is not None and file.is_file():
                found[name] = f"{sha256(file)}, {model_card(spec).input_convention}"
        return found


def _reach(teacher: LabelTeacher, pool: Pool) -> float:
    stored = pool.stored.get(teacher.name)
    return deviation(teacher.read_all(pool.data) if stored is None else stored)


def _network(name: str, pool: Pool, device: torch.device) -> LabelTeacher:
    """The dataset's teacher of this name, or the network that it names itself."""
    source = pool.teachers.get(name)
    net, card = create_model(name if source is None else source.model)
    order, classes = pool.as_made, None
    if source is not None:
        order, classes, weights = source.class_names, source.classes, card.loaded
        if classes is None and len(order) == card.num_classes and set(pool.data.class_names) <= set(order):
            classes = {label: index for index, label in enumerate(order)}  # whatever it calls them itself
        if source.sha256 and weights and weights.sha256 and weights.sha256 != source.sha256:
            raise ValueError(
                f"teacher: the weights of {source.model} are others than those that made the dataset; name the "
                "network by --teacher MODEL, or ask for --labels stored"
            )
        if source.input not in (None, card.input_convention):
            raise ValueError(
                f"teacher: {source.model} saw images otherwise when it made the dataset ({source.input}) than it does "
                f"now ({card.input_convention}); mend its card, or name the network by --teacher MODEL"
            )
    return made_teacher(name, net, card, pool.data.class_names, order, device, classes)
