"""What determines a distillation: frozen dataclasses whose fields are the keys of the YAML."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from ensemble.config.checked import Checked
from ensemble.config.parsing import parse
from ensemble.training.augment import Augmentation
from ensemble.training.cut import Cut
from ensemble.training.lessons import Lesson, Live, Soft
from ensemble.training.recipe import RunRecipe
from ensemble.training.schedule import Schedule


@dataclass(frozen=True)
class StudentSchedule(Schedule):
    """AdamW under a one-cycle schedule, for some hundred to ten thousand small images."""

    epochs: PositiveInt = 200
    batch_size: Annotated[int, Field(ge=2)] = 64
    lr: PositiveFloat = 2e-3
    """Peak learning rate, for a loss averaged over the batch."""
    warmup: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Share of the steps over which lr rises linearly from 0; then it falls along a cosine to 0."""
    weight_decay: NonNegativeFloat = 0.01
    """Acts on tensors with more than one dimension; AdamW's is decoupled: a step takes lr times it."""
    optimizer: Literal["sgd", "adamw"] = "adamw"
    """SGD with Nesterov momentum wants an lr of about 0.1 and a weight_decay of about 5e-4."""


@dataclass(frozen=True)
class RealImages(Checked):
    """Real images, in a folder or an archive with `<split>/<class>/<image>` inside, or `<class>/<image>`."""

    path: str
    split: str | None = None
    """The split that is read, once, at the end: by default `test`, or where there are no splits, all."""
    train: str = "train"
    """The split whose statistics the diagnosis takes."""


@dataclass(frozen=True)
class DistillationRecipe(RunRecipe):
    """A student that learns from generated images alone."""

    what = "distillation"
    free = ("dataset", "test", "diagnose")

    student: str
    """NAME[:option=value][@WEIGHTS]; without weights it begins untrained, or where it is pruned, with its own."""
    dataset: Annotated[tuple[str, ...], Field(min_length=1)]
    """Folders of `invert.py dataset`, which are joined."""
    prune: Cut | None = None
    """What the student loses before it learns."""
    lesson: Lesson = Live()
    """What the student is told."""
    test: RealImages | None = None
    """What the student is tested on, at the end."""
    test_every: NonNegativeInt = 0
    """Also test every so many epochs, to look at; the last epoch counts."""
    diagnose: bool = False
    """Also test with BatchNorm statistics of real training images, which no student of generated images has."""
    schedule: StudentSchedule = StudentSchedule()
    augmentation: Augmentation = Augmentation()
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] = 0
    compile: bool = False
    """By torch.compile, where it can be had."""

    def rules(self) -> Iterator[str]:
        for name in ("test_every", "diagnose"):
            if getattr(self, name) and self.test is None:
                yield f"{name}: there is nothing to test on; give real images, as --test DATA"
        if self.schedule.label_smoothing and isinstance(self.lesson, Soft) and not self.lesson.hard_weight:
            yield "schedule.label_smoothing: soft labels are not smoothed; leave it out, or give lesson.hard_weight"


def parse_distillation_recipe(data: dict[str, Any]) -> DistillationRecipe:
    """The recipe that `data` describes; raises ConfigError with every mistake in it."""
    return parse(DistillationRecipe, data)
