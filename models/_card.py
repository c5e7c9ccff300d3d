"""ModelCard: all the engine must know about a classifier and its weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Assumed(tuple[float, ...]):
    """A mean or std that nobody said; as a value of its own it stays so in copies of a card."""

    __slots__ = ()


@dataclass(frozen=True)
class Weights:
    """Where one set of weights comes from and what is known about it."""

    source: str
    """`bundled`, `package`, `torchvision`, `timm`, `file` or `random`."""
    file: str | None = None
    """Bundled weights: file name below models/weights/; a package's: IMPORT_NAME/path/in/it; a file's: its path."""
    sha256: str | None = None
    licence: str | None = None
    trained_on: str | None = None
    accuracy: float | None = None
    """Top-1 in [0, 1] on the test set that `trained_on` names."""
    command: str | None = None
    """What reproduces the weights."""
    package: str | None = None
    """What pip installs to bring the file, where the source is `package`."""
    levels: Mapping[str, tuple[float, float, float, float]] = field(default_factory=dict)
    """How far batches of real images are from the statistics, by layer (`ensemble.teachers.calibration`)."""

    def __post_init__(self) -> None:
        if self.source == "package" and not (self.package and self.sha256 and "/" in (self.file or "")):
            raise ValueError(
                "weights of a package need `package`, what pip installs, `file`, IMPORT_NAME/path/in/it, and `sha256`: "
                f"got {self.package!r}, {self.file!r}, {self.sha256!r}"
            )


def classes_of(logits: int) -> int:
    """How many classes so many logits tell apart: one logit, under a sigmoid, tells two."""
    return 2 if logits == 1 else logits


@dataclass(frozen=True)
class ModelCard:
    """A network's input convention, label space and weights.

    `mean` and `std` are per channel, for RGB in [0, 1]: the network sees (rgb - mean) / std. Left out, they are
    ImageNet's, and `create_model` warns that this is assumed.
    `label_space` names what the logits mean; teachers of one run must share it. An empty name means
    that nobody knows (a network of a user's own that does not say): such teachers agree with any
    other that has as many classes.
    """

    name: str
    family: str
    input_size: int
    num_classes: int
    mean: tuple[float, ...] = Assumed(IMAGENET_MEAN)
    std: tuple[float, ...] = Assumed(IMAGENET_STD)
    class_names: tuple[str, ...] = ()
    label_space: str = ""
    weights: Mapping[str, Weights] = field(default_factory=dict)
    default_weights: str | None = None
    citation: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.num_classes, Integral) or self.num_classes < 0:  # 0: without a classifier
            raise ValueError(f"{self.name}: num_classes is how many logits there are, not {self.num_classes!r}")
        object.__setattr__(self, "num_classes", classes_of(self.num_classes))
        for key in ("mean", "std", "class_names"):
            value = getattr(self, key)
            if isinstance(value, str) or not isinstance(value, Iterable):
                raise ValueError(f"{self.name}: {key} is a list, not {value!r}")
            if not isinstance(value, tuple):
                object.__setattr__(self, key, tuple(value))
        if others := [name for name in self.class_names if not isinstance(name, str)]:
            raise ValueError(f"{self.name}: class_names are strings, and {others[0]!r} is none; put them in quotes")
        if not all(isinstance(value, Real) and math.isfinite(value) for value in (*self.mean, *self.std)):
            raise ValueError(f"{self.name}: mean {self.mean} and std {self.std} need a finite number a channel")
        if not isinstance(self.input_size, Integral) or self.input_size < 1:
            raise ValueError(f"{self.name}: input_size is the side of a square in pixels, not {self.input_size!r}")
        if len(self.mean) != len(self.std) or not all(value > 0 for value in self.std):
            raise ValueError(f"{self.name}: mean {self.mean} and std {self.std} need a number a channel, std above 0")
        if max(self.mean, default=0.0) > 1:
            raise ValueError(
                f"{self.name}: mean {self.mean} is of 0..255, and images are in 0..1; divide mean and std by 255"
            )
        if len(self.mean) not in (1, 3):
            raise ValueError(
                f"{self.name}: {len(self.mean)} channels; images have 3, and a network of 1 sees their luminance"
            )
        if self.class_names and len(self.class_names) != self.num_classes:
            raise ValueError(f"{self.name}: {len(self.class_names)} class names for {self.num_classes} classes")
        if self.default_weights is not None and self.default_weights not in self.weights:
            raise ValueError(f"{self.name}: default weights {self.default_weights!r} are not on the card")

    @property
    def loaded(self) -> Weights | None:
        """What is known of the default weights: of a network that was created, of its own; None of random ones."""
        return self.weights.get(self.default_weights or "")

    @property
    def input_convention(self) -> str:
        """How it is to see images, in words: input size, mean and std."""
        mean, std = ("/".join(map(str, map(float, values))) for values in (self.mean, self.std))
        return f"{self.input_size} px, mean {mean}, std {std}"

    @property
    def assumed(self) -> dict[str, tuple[float, ...]]:
        """Those of `mean` and `std` that nobody said, by name."""
        return {key: value for key, value in (("mean", self.mean), ("std", self.std)) if isinstance(value, Assumed)}

    def shares_classes(self, other: ModelCard) -> bool:
        """As many classes, and one label space where both name theirs, else the same names where both have some."""
        if self.num_classes != other.num_classes:
            return False
        if self.label_space and other.label_space:
            return self.label_space == other.label_space
        return not (self.class_names and other.class_names) or self.class_names == other.class_names
