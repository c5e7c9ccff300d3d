"""What determines a training run: frozen dataclasses whose fields are the keys of the YAML."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ensemble.config.mistakes import ConfigError
from ensemble.config.parsing import parse
from ensemble.training.loop import Augmentation, Schedule


@dataclass(frozen=True)
class DataSpec:
    """A folder or an archive with `<split>/<class>/<image>` inside."""

    path: str
    train: str = "train"
    """The split that is trained on."""
    test: str = "test"
    """The split that the accuracy is measured on."""
    size: int | None = None
    """Images are resized and cropped to it; by default to the network's input size."""

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 1:
            raise ValueError("size must be positive")


@dataclass(frozen=True)
class TrainingRecipe:
    """One network, one data set, one schedule."""

    model: str
    """NAME[:option=value][@WEIGHTS]: the weights to begin with; `@random` are drawn from `seed`."""
    data: DataSpec
    schedule: Schedule = field(default_factory=Schedule)
    augmentation: Augmentation = field(default_factory=Augmentation)
    seed: int = 0
    compile: bool = True
    """By torch.compile, where it can be had."""

    def __post_init__(self) -> None:
        s, a = self.schedule, self.augmentation
        rules = (
            (s.epochs >= 1, "schedule.epochs: must be at least 1"),
            (s.batch_size >= 2, "schedule.batch_size: must be at least 2"),
            (s.lr > 0, "schedule.lr: must be positive"),
            (0 <= s.warmup <= 1, "schedule.warmup: a share, between 0 and 1"),
            (0 < s.momentum < 1, "schedule.momentum: must lie between 0 and 1"),
            (s.weight_decay >= 0, "schedule.weight_decay: must not be negative"),
            (0 <= s.label_smoothing < 1, "schedule.label_smoothing: must be at least 0 and below 1"),
            (0 <= s.ema < 1, "schedule.ema: must be at least 0 and below 1"),
            (
                min(a.crop_padding, a.cutout) >= 0,
                "augmentation: crop_padding and cutout must not be negative",
            ),
            (min(a.mixup, a.cutmix) >= 0, "augmentation: mixup and cutmix must not be negative"),
            (0 <= a.mix_probability <= 1, "augmentation.mix_probability: must lie between 0 and 1"),
            (-(2**63) <= self.seed < 2**64, "seed: must fit into 64 bits"),
        )
        problems = [message for holds, message in rules if not holds]
        if problems:
            raise ConfigError(problems)


def parse_training_recipe(data: dict[str, Any]) -> TrainingRecipe:
    """The recipe that `data` describes; raises ConfigError with every mistake in it."""
    return parse(TrainingRecipe, data)
