"""What determines a training run: frozen dataclasses whose fields are the keys of the YAML."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field, PositiveInt

from ensemble.config.checked import Checked
from ensemble.config.parsing import parse
from ensemble.training.augment import Augmentation
from ensemble.training.schedule import Schedule


@dataclass(frozen=True)
class DataSpec(Checked):
    """A folder or an archive with `<split>/<class>/<image>` inside."""

    path: str
    train: str = "train"
    """The split that is trained on."""
    test: str = "test"
    """The split that the accuracy is measured on."""
    size: PositiveInt | None = None
    """Images are resized and cropped to it; by default to the network's input size."""


class RunRecipe(Checked):
    """What a training folder may hold the run of."""

    what: ClassVar[str]
    """What such a run is called."""
    free: ClassVar[tuple[str, ...]]
    """Fields that may be others where a run is gone on with."""


@dataclass(frozen=True)
class TrainingRecipe(RunRecipe):
    """One network, one data set, one schedule."""

    what = "training run"
    free = ("data.path",)

    model: str
    """NAME[:option=value][@WEIGHTS]: the weights to begin with; `@random` are drawn from `seed`."""
    data: DataSpec
    schedule: Schedule = Schedule()
    augmentation: Augmentation = Augmentation()
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] = 0
    compile: bool = True
    """By torch.compile, where it can be had."""


def parse_training_recipe(data: dict[str, Any]) -> TrainingRecipe:
    """The recipe that `data` describes; raises ConfigError with every mistake in it."""
    return parse(TrainingRecipe, data)
