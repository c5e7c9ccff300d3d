"""The recipe: frozen dataclasses whose fields are the allowed keys of the YAML."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from ensemble.config.parsing import parse

# --- teachers ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TeacherEntry:
    """One teacher: a model's name with its weights, as on the command line (NAME[:option=value][@WEIGHTS])."""

    model: str
    weight: float = 1.0
    """Relative; the acting teachers' weights are scaled to sum to 1."""
    ranks: int | None = None
    """How many ranks its batch is split over; by default as many as balance the load."""
    classes: dict[str, int] | None = None
    """Maps the run's class names to this network's class indices, where its label space is another."""

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ValueError("weight must be positive")
        if self.ranks is not None and self.ranks < 1:
            raise ValueError("ranks must be at least 1")


@dataclass(frozen=True)
class Ensemble:
    """Which teachers act at a step: `all` of them summed, one in `turn`, or `count` drawn at `random`."""

    acting: Literal["all", "turn", "random"] = "all"
    count: int = 1

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError("count must be at least 1")


# --- the image --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FourierSpec:
    """Fourier coefficients scaled by 1/f^decay, pixels through a sigmoid."""

    kind: ClassVar[str] = "fourier"
    decay: float = 1.0
    decorrelate: bool = True
    """Optimise luminance and two opponent colours, in the proportions of photographs."""


@dataclass(frozen=True)
class PixelSpec:
    """The pixels themselves, in RGB or in the first teacher's normalised space."""

    kind: ClassVar[str] = "pixels"
    space: Literal["rgb", "normalised"] = "rgb"
    clip: bool = True


@dataclass(frozen=True)
class Start:
    """The image before the first step."""

    kind: Literal["noise", "black", "grey", "image", "folder"] = "noise"
    scale: float = 0.3
    """Standard deviation of the parameters, for noise."""
    path: str | None = None


@dataclass(frozen=True)
class ImageSpec:
    """What is optimised. `size` defaults to the largest input size among the teachers."""

    parameterization: FourierSpec | PixelSpec = FourierSpec()
    start: Start = Start()
    size: int | None = None
    batch_size: int | None = None
    """Default: number of targets x images_per_class. Otherwise the targets are repeated in turn to fill it."""

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 1:
            raise ValueError("size must be positive")
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError("batch_size must be positive")


# --- objectives -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CrossEntropySpec:
    kind: ClassVar[str] = "cross_entropy"
    weight: float = 10.0
    temperature: float = 4.0
    """Above 1 the loss goes on after the teachers read the target: images of more than their minimum."""

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError("temperature must be positive")


@dataclass(frozen=True)
class ClassScoreSpec:
    kind: ClassVar[str] = "class_score"
    weight: float = 1.0


@dataclass(frozen=True)
class BNMatchingSpec:
    kind: ClassVar[str] = "bn_matching"
    weight: float = 10.0
    convention: Literal["relative", "paper"] = "relative"
    first: float = 1.0
    layers: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class TotalVariationSpec:
    kind: ClassVar[str] = "tv"
    weight: float = 1e-3
    order: Literal[1, 2] = 2
    over: Literal["batch", "image"] = "batch"


@dataclass(frozen=True)
class L2Spec:
    kind: ClassVar[str] = "l2"
    weight: float = 1e-5
    over: Literal["batch", "image"] = "batch"


ObjectiveSpec = CrossEntropySpec | ClassScoreSpec | BNMatchingSpec | TotalVariationSpec | L2Spec


# --- the loop ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StageSpec:
    """One stretch of the loop, with a fresh optimiser."""

    iterations: int = 300
    size: int | None = None
    """Resolution of the view; by default the image's own."""
    jitter: int = 0
    """Largest shift, in pixels of the view."""
    jitter_mode: Literal["wrap", "reflect"] = "reflect"
    jitter_per_image: bool = False
    flip: float = 0.0
    flip_per_image: bool = False
    lr: float | None = None
    """Overrides the optimiser's."""

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise ValueError("iterations must be at least 1")
        if self.size is not None and self.size < 1:
            raise ValueError("size must be positive")
        if self.jitter < 0:
            raise ValueError("jitter must not be negative")
        if not 0 <= self.flip <= 1:
            raise ValueError("flip is a probability, between 0 and 1")


@dataclass(frozen=True)
class OptimizerSpec:
    """Adam under a schedule of its learning rate; each stage runs the schedule from its start."""

    lr: float = 0.1
    betas: tuple[float, float] = (0.5, 0.9)
    eps: float = 1e-8
    schedule: Literal["cosine", "constant", "plateau"] = "cosine"
    warmup: int = 0
    """Steps over which lr rises linearly."""
    plateau_factor: float = 0.5
    plateau_patience: int = 50
    early_stopping: int = 0
    """Stop once the last stage's loss has not improved for so many steps; 0 never does."""

    def __post_init__(self) -> None:
        problems = []
        if not self.lr > 0:
            problems.append("lr must be positive")
        if not all(0 <= beta < 1 for beta in self.betas):
            problems.append("betas must lie in [0, 1)")
        if not 0 < self.plateau_factor < 1:
            problems.append("plateau_factor must lie between 0 and 1")
        if min(self.warmup, self.plateau_patience, self.early_stopping) < 0:
            problems.append("warmup, plateau_patience and early_stopping must not be negative")
        if problems:
            raise ValueError("; ".join(problems))


@dataclass(frozen=True)
class CheckpointSpec:
    """When the run is saved, so that it can be resumed; 0 switches a trigger off."""

    every: int = 0
    """Steps."""
    seconds: float = 300.0

    def __post_init__(self) -> None:
        if self.every < 0 or self.seconds < 0:
            raise ValueError("every and seconds must not be negative")


@dataclass(frozen=True)
class Runtime:
    """How the run is computed; what it computes does not depend on it, beyond rounding."""

    device: str | tuple[str, ...] = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:N`, or a list with one of these for each rank of a machine."""
    replicas: int = 1
    """Groups of ranks that make batches (trials) of their own, side by side."""
    precision: Literal["auto", "fp32", "bf16", "fp16", "tf32", "fp64"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"
    micro_batch: int | Literal["auto"] | None = None
    """At most so many images at once through a teacher; `auto` halves on out-of-memory."""
    reproducible: Literal["placement", "ranks"] = "placement"
    """`ranks`: bitwise the same images on any number of ranks, slower."""
    cell_size: int = 50
    """Images per cell under `reproducible: ranks`."""
    timeout: float = 600.0
    """Seconds after which a collective gives up on a rank; replicas do not wait for each other before the end."""

    def __post_init__(self) -> None:
        if isinstance(self.micro_batch, int) and self.micro_batch < 1:
            raise ValueError("micro_batch must be at least 1")
        if not self.device:
            raise ValueError("device: name at least one")
        if self.replicas < 1:
            raise ValueError("replicas must be at least 1")
        if self.cell_size < 1 or not self.timeout > 0:
            raise ValueError("cell_size and timeout must be positive")


@dataclass(frozen=True)
class Recipe:
    """Everything that determines a run."""

    teachers: tuple[TeacherEntry, ...]
    ensemble: Ensemble = Ensemble()
    image: ImageSpec = ImageSpec()
    targets: str | tuple[int | str, ...] = "all"
    """`all`, `random`, class indices, ranges `0-15` or class names."""
    images_per_class: int = 1
    trials: int = 1
    """Batches, each from its own seed; one after the other, or side by side in replicas."""
    seed: int = 0
    objectives: tuple[ObjectiveSpec, ...] = (CrossEntropySpec(), BNMatchingSpec(), TotalVariationSpec())
    prior_space: Literal["rgb", "normalised"] = "rgb"
    """What priors see: RGB, or RGB normalised as the first teacher does."""
    stages: tuple[StageSpec, ...] = (StageSpec(),)
    optimizer: OptimizerSpec = OptimizerSpec()
    best_every: int = 50
    """Measure the loss without augmentation every so many steps of the last stage and keep the best; 0: the last."""
    verifiers: tuple[str, ...] = ()
    record_every: int = 10
    checkpoint: CheckpointSpec = CheckpointSpec()
    runtime: Runtime = Runtime()

    def __post_init__(self) -> None:
        problems = []
        if not self.teachers:
            problems.append("teachers: name at least one")
        if not self.stages:
            problems.append("stages: name at least one")
        if not any(isinstance(o, CrossEntropySpec | ClassScoreSpec | BNMatchingSpec) for o in self.objectives):
            problems.append("objectives: nothing ties the images to a teacher; add cross_entropy or bn_matching")
        if self.images_per_class < 1:
            problems.append("images_per_class must be at least 1")
        if self.trials < 1:
            problems.append("trials must be at least 1")
        if self.runtime.replicas > self.trials:
            problems.append(
                f"runtime.replicas: {self.runtime.replicas} replicas for {self.trials} trial(s); "
                f"ask for more with --trials {self.runtime.replicas}"
            )
        if self.record_every < 1 or self.best_every < 0:
            problems.append("record_every must be positive and best_every not negative")
        if self.ensemble.count > len(self.teachers):
            problems.append(f"ensemble.count: {self.ensemble.count} of {len(self.teachers)} teachers cannot act")
        longest = max((s.iterations for s in self.stages), default=0)
        if self.optimizer.warmup > longest:
            problems.append(f"optimizer.warmup: {self.optimizer.warmup} steps are more than a stage's {longest}")
        if problems:
            raise ValueError("; ".join(problems))

    @property
    def iterations(self) -> int:
        return sum(stage.iterations for stage in self.stages)

    def with_iterations(self, total: int) -> Recipe:
        """The stages scaled to `total` steps, in their proportions, and the warm-up with them."""
        if total < len(self.stages):
            raise ValueError(f"iterations: {total} are fewer than the recipe's {len(self.stages)} stages")
        factor, stages, left = total / self.iterations, [], total
        for i, stage in enumerate(self.stages):
            rest = len(self.stages) - i - 1
            steps = left if not rest else min(max(1, round(stage.iterations * factor)), left - rest)
            stages.append(replace(stage, iterations=steps))
            left -= steps
        optimizer = replace(self.optimizer, warmup=round(self.optimizer.warmup * min(1.0, factor)))
        return replace(self, stages=tuple(stages), optimizer=optimizer)


def default_recipe(models: list[str], input_size: int) -> dict[str, Any]:
    """The plain recipe of `--models` for teachers of that input size (the largest among them)."""
    small = input_size <= 64
    stages: list[dict[str, Any]]
    if small:
        stages = [{"iterations": 300, "jitter": max(2, input_size // 8), "flip": 0.5}]
    else:
        half = input_size // 2
        stages = [
            {"iterations": 1000, "size": half, "jitter": half // 8, "flip": 0.5},
            {"iterations": 500, "jitter": input_size // 8, "flip": 0.5},
        ]
    return {"teachers": [{"model": model} for model in models], "stages": stages}


def parse_recipe(data: dict[str, Any]) -> Recipe:
    """The recipe that `data` describes; raises ConfigError with every mistake in it."""
    return parse(Recipe, data)
