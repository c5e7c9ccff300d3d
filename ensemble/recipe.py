"""The recipe: what determines a run, as frozen dataclasses whose fields are the allowed keys of the YAML."""

from __future__ import annotations

import pkgutil
from collections.abc import Container, Iterator
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

import ensemble.engine
import ensemble.image
import ensemble.objectives
from ensemble.config.checked import Checked
from ensemble.config.parsing import parse
from ensemble.engine.optimizers import Adam, Optimizer
from ensemble.image.fourier import Fourier
from ensemble.image.parameterization import Parameterization
from ensemble.image.pixels import Pixels
from ensemble.image.start import Noise, Start
from ensemble.objectives.bn_matching import BNMatching
from ensemble.objectives.classification import CrossEntropy
from ensemble.objectives.image_priors import TotalVariation
from ensemble.objectives.terms import Objective, TeacherTerm

for _room in (ensemble.engine, ensemble.image, ensemble.objectives):  # a kind is known once its file is imported
    for _module in pkgutil.iter_modules(_room.__path__):
        import_module(f"{_room.__name__}.{_module.name}")


@dataclass(frozen=True)
class TeacherEntry(Checked):
    """One teacher: a model's name with its weights, as on the command line (NAME[:option=value][@WEIGHTS])."""

    model: str
    weight: PositiveFloat = 1.0
    """Relative; the acting teachers' weights are scaled to sum to 1."""
    ranks: PositiveInt | None = None
    """How many ranks its batch is split over; by default as many as balance the load."""
    classes: dict[str, int] | None = None
    """Maps the run's class names to this network's class indices, where its label space is another."""
    layers: dict[str, NonNegativeFloat] = field(default_factory=dict)
    """Factors of this teacher's BN layers, by shell patterns of their names; after those of the objective."""
    statistics: str | None = None
    """A file of `invert.py calibrate`: real images' statistics of layers that keep none, and levels of all layers."""
    student: bool = False
    """It is no teacher but the network that `competition` parts from the teachers; no other term reads it."""


@dataclass(frozen=True)
class EnsembleRule(Checked):
    """Which teachers act at a step, `all`, one in `turn`, or `count` drawn at `random`, and how they are added up."""

    acting: Literal["all", "turn", "random"] = "all"
    count: PositiveInt = 1
    per: Literal["step", "batch"] = "step"
    """How often `random` draws: anew at each step, or once for a batch (trial)."""
    aggregation: Literal["sum", "agree", "equal"] = "sum"
    """`agree`: their sum, but 0 where their gradients conflict in sign; `equal`: each teacher's gradient of an image is
    brought to a mean magnitude of 1 times its weight; priors are added afterwards, whole."""
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Under `agree`, a value of the gradient stays where |sum of weight x sign| is at least so much; 1: unanimous."""

    def rules(self) -> Iterator[str]:
        if self.count > 1 and self.acting != "random":
            yield f"count: it is for `acting: random`, and it is `{self.acting}`"
        if self.per == "batch" and self.acting != "random":
            yield f"per: `batch` is for `acting: random`, and it is `{self.acting}`"
        if self.aggregation != "agree" and self.threshold != type(self).threshold:
            yield f"threshold: it is for `aggregation: agree`, and it is `{self.aggregation}`"

    def acting_of(self, teachers: int) -> int:
        """How many of so many teachers act at a step."""
        return {"all": teachers, "turn": 1, "random": self.count}[self.acting]

    def describe(self) -> str:
        """The rule in words, for a dry run."""
        text = f"{self.count} at random, drawn each {self.per}" if self.acting == "random" else self.acting
        how = {
            "sum": "",
            "agree": f"; gradients masked where |sum_t w_t sign(g_t)| < {self.threshold:g}",
            "equal": "; gradients of each teacher and image scaled to a mean magnitude of w_t",
        }
        return text + how[self.aggregation]


@dataclass(frozen=True)
class ImageRule(Checked):
    """What is optimised."""

    parameterization: Parameterization = Fourier()
    start: Start = Noise()
    size: PositiveInt | None = None
    """Pixels; by default the largest input size among the teachers."""
    batch_size: PositiveInt | None = None
    """Default: number of targets x images_per_class. Otherwise the targets are repeated in turn to fill it."""
    alike: PositiveInt = 1
    """So many images, one after the other, begin alike; 1: each by itself."""

    def rules(self) -> Iterator[str]:
        if (what := self.start.paints) and not self.parameterization.takes_images:
            yield (
                f"start: {what} says what images look like, which kind {self.parameterization.kind!r} cannot be told; "
                "use kind 'noise' without spreads: --set 'image.start={kind: noise}'"
            )
        if self.alike > 1 and self.start.memory:
            yield f"alike: kind {self.start.kind!r} begins each image from another one; leave alike out"


@dataclass(frozen=True)
class Stage(Checked):
    """One stretch of the loop, with a fresh optimiser."""

    iterations: PositiveInt = 300
    size: PositiveInt | None = None
    """Resolution of the view; by default the image's own."""
    jitter: NonNegativeInt = 0
    """Largest shift, in pixels of the view."""
    jitter_mode: Literal["wrap", "reflect"] = "reflect"
    """What comes in at the border: the other side, or the image mirrored."""
    jitter_per_image: bool = False
    flip: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Probability of mirroring left and right."""
    flip_per_image: bool = False
    zoom: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Views show a square part of each image, of `zoom` to 1 times its side, at the view's size; 1: the whole."""
    noise: NonNegativeFloat = 0.0
    """Standard deviation of what is added to each colour value of a view; RGB lies in [0, 1]."""
    lr: PositiveFloat | None = None
    """Overrides the optimiser's."""
    moving: Annotated[float, Field(gt=0, le=1)] = 1.0
    """The share of the batch's images, the first ones, that the stage moves; the others wait, and are seen."""


@dataclass(frozen=True)
class CheckpointRule(Checked):
    """When the run is saved, so that it can be resumed; 0 switches a trigger off."""

    every: NonNegativeInt = 0
    """Steps."""
    seconds: NonNegativeFloat = 300.0


@dataclass(frozen=True)
class Runtime(Checked):
    """How the run is computed; what it computes does not depend on it, beyond rounding."""

    device: str | Annotated[tuple[str, ...], Field(min_length=1)] = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:N`, or a list with one of these for each rank of a machine."""
    replicas: PositiveInt = 1
    """Groups of ranks that make batches (trials) of their own, side by side."""
    precision: Literal["auto", "fp32", "bf16", "fp16", "tf32", "fp64"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"
    micro_batch: PositiveInt | Literal["auto"] | None = None
    """At most so many images at once through a teacher; `auto` halves on out-of-memory. Under `reproducible: ranks`
    any value says that cells go one by one, each of at most `cell_size` images."""
    reproducible: Literal["placement", "ranks"] = "placement"
    """`ranks`: bitwise the same images on any number of ranks, slower."""
    cell_size: PositiveInt = 50
    """Images per cell under `reproducible: ranks`."""
    timeout: PositiveFloat = 600.0
    """Seconds after which a collective gives up on a rank; replicas do not wait for each other before the end."""


@dataclass(frozen=True)
class Recipe(Checked):
    """Everything that determines a run."""

    teachers: Annotated[tuple[TeacherEntry, ...], Field(min_length=1)]
    ensemble: EnsembleRule = EnsembleRule()
    image: ImageRule = ImageRule()
    targets: str | tuple[int | str, ...] | dict[str, PositiveFloat] = "all"
    """`all`, `random`, class indices, ranges `0-15` or class names; or shares, {cat: 3, dog: 1}."""
    images_per_class: PositiveInt = 1
    trials: PositiveInt = 1
    """Batches, each from its own seed; one after the other, or side by side in replicas."""
    seed: int = 0
    objectives: tuple[Objective, ...] = (CrossEntropy(at_most=0.8), BNMatching(), TotalVariation())
    """Summed, each times its weight."""
    prior_space: Literal["rgb", "normalised"] = "rgb"
    """What priors see: RGB, or RGB normalised as the first teacher does."""
    stages: Annotated[tuple[Stage, ...], Field(min_length=1)] = (Stage(),)
    optimizer: Optimizer = Adam()
    best_every: NonNegativeInt = 50
    """Measure the loss without augmentation every so many steps of the last stage and keep the best; 0: the last."""
    verifiers: tuple[str, ...] = ()
    """Networks that judge the images and are no teachers."""
    agreement: bool = False
    """Compare the teachers' gradients at the end, image by image and place by place: one more pass of each teacher."""
    attribution: bool = False
    """Keep where the gradient went, pixel by pixel: the sum over the steps of its magnitude."""
    record_every: PositiveInt = 10
    """Steps between two lines of metrics; where teachers take turns, between lines of one teacher's, all in a row."""
    checkpoint: CheckpointRule = CheckpointRule()
    runtime: Runtime = Runtime()

    def rules(self) -> Iterator[str]:
        if self.runtime.replicas > self.trials:
            yield (
                f"runtime.replicas: {self.runtime.replicas} replicas for {self.trials} trial(s); "
                f"ask for trials={self.runtime.replicas} (--trials {self.runtime.replicas})"
            )
        if self.image.start.memory:
            yield from self.looking_back(f"a {self.image.start.kind} start")
        if any(isinstance(term, TeacherTerm) and term.memory for term in self.objectives):
            yield from self.looking_back("a term's memory")
        yield from self.student_rules()
        if self.image.parameterization.couples_images:
            for i, stage in enumerate(self.stages):
                if stage.moving < 1:
                    yield f"stages[{i}].moving: the images of one generator all move together; leave it out"
        if self.runtime.reproducible == "ranks":
            for i, entry in enumerate(self.teachers):
                if entry.ranks is not None:
                    yield f"teachers[{i}].ranks: under `reproducible: ranks` any rank takes any cell; leave it out"
        teachers = self.teaching
        if self.ensemble.count > teachers > 0:
            yield f"ensemble.count: {self.ensemble.count} of {teachers} teachers cannot act"
        if self.ensemble.aggregation == "agree" and self.acting == 1:
            yield "ensemble.aggregation: `agree` needs several teachers that act at a step, and one does; use `sum`"
        if self.agreement and teachers == 1:
            yield "agreement: it compares teachers, and there is one; name more, or leave it out"
        one_loss = not self.alternates and self.ensemble.aggregation == "sum"
        pixels = isinstance(self.image.parameterization, Pixels)
        yield from self.optimizer.conflicts(self.stages, self.objectives, one_loss, pixels)
        signed = [term.name for term in self.objectives if isinstance(term, TeacherTerm) and term.signed]
        if self.optimizer.enough and signed:
            yield (
                f"optimizer.enough: the loss of {signed[0]} may be below 0, so no share of what it was at first is "
                "enough; leave it out, or use terms that end (saturating, calibrated)"
            )
        longest = max(stage.iterations for stage in self.stages)
        if self.optimizer.warmup > longest:
            yield f"optimizer.warmup: {self.optimizer.warmup} steps are more than a stage's {longest}"

    def student_rules(self) -> Iterator[str]:
        """What is wrong about the student."""
        students = [i for i, entry in enumerate(self.teachers) if entry.student]
        compared = any(isinstance(term, TeacherTerm) and term.compares for term in self.objectives)
        if len(students) > 1:
            yield f"teachers[{students[1]}].student: there is a student already, teachers[{students[0]}]; name one"
        elif students and students[0] != len(self.teachers) - 1:
            yield f"teachers[{students[0]}].student: the student comes last, after the teachers"
        elif students == [0]:
            yield "teachers[0].student: there is no teacher; put one before it"
        if students and self.ensemble.aggregation == "equal":
            yield "ensemble.aggregation: `equal` scales each teacher's gradient, and a student is none; use `sum`"
        if students and not compared:
            yield (
                f"teachers[{students[0]}].student: no term compares it with the teachers; add "
                "{kind: competition} to the objectives"
            )
        if compared and not students:
            yield "objectives: competition compares the teachers with a student; add {model: NAME, student: true} last"

    def looking_back(self, what: str) -> Iterator[str]:
        """What is wrong where a batch depends on those before it, by `what`."""
        if self.runtime.replicas > 1:
            yield f"runtime.replicas: {what} goes back to the batches before, so batches are not made side by side"
        if self.trials == 1:
            yield f"trials: {what} goes back to the batches before, and there is one; ask for more (--trials 10)"

    @property
    def teaching(self) -> int:
        """How many of `teachers` teach: all but a student, which comes last."""
        return sum(not entry.student for entry in self.teachers)

    @property
    def acting(self) -> int:
        """How many of them act at a step."""
        return self.ensemble.acting_of(self.teaching)

    @property
    def alternates(self) -> bool:
        """Whether not all teachers act at each step."""
        return self.acting < self.teaching

    @property
    def iterations(self) -> int:
        return sum(stage.iterations for stage in self.stages)

    def with_iterations(self, total: int, but: Container[str] = ()) -> Recipe:
        """The stages scaled to `total` steps, in their proportions, and with them the optimiser's waits, `but` some."""
        if total < 1:
            raise ValueError(f"iterations: must be at least 1, got {total}")
        if total < len(self.stages):
            raise ValueError(f"iterations: {total} are fewer than the recipe's {len(self.stages)} stages")
        factor, stages, left = total / self.iterations, [], total
        for i, stage in enumerate(self.stages):
            rest = len(self.stages) - i - 1
            steps = left if not rest else min(max(1, round(stage.iterations * factor)), left - rest)
            stages.append(replace(stage, iterations=steps))
            left -= steps
        optimizer, shorter = self.optimizer, min(1.0, factor)
        waits: dict[str, Any] = {"warmup": round(optimizer.warmup * shorter)}
        if optimizer.schedule == "plateau":
            waits["plateau_patience"] = max(1, round(optimizer.plateau_patience * shorter))
        if optimizer.early_stopping:
            waits["early_stopping"] = max(1, round(optimizer.early_stopping * shorter))
        optimizer = replace(optimizer, **{name: steps for name, steps in waits.items() if name not in but})
        return replace(self, stages=tuple(stages), optimizer=optimizer)

    def with_steps_of(self, other: Recipe, but: Container[str] = ()) -> Recipe:
        """The other's stages and its optimiser's waits, `but` some: what `with_iterations` changes."""
        names = ("warmup", "plateau_patience", "early_stopping")
        waits = {name: getattr(other.optimizer, name) for name in names if name not in but}
        return replace(self, stages=other.stages, optimizer=replace(self.optimizer, **waits))

    def continued_to(self, total: int) -> Recipe:
        """The last stage made longer, so that all have `total` steps; ValueError where that is less than now."""
        if total < self.iterations:
            raise ValueError(f"iterations: the run has {self.iterations} steps already; give at least as many")
        *earlier, last = self.stages
        longer = replace(last, iterations=last.iterations + total - self.iterations)
        return replace(self, stages=(*earlier, longer))


def default_recipe(models: list[str], input_size: int) -> dict[str, Any]:
    """The plain recipe of `--models` for teachers of that input size (the largest among them).

    All teachers act at each step, since ranks work side by side.
    """
    teachers = [{"model": model} for model in models]
    if input_size <= 64:
        views = {"flip": 0.5, "flip_per_image": True, "jitter_per_image": True}
        return {  # as recipes/quickstart.yaml, but for turns and steps
            "teachers": teachers,
            "image": {"start": {"kind": "noise", "amplitude_spread": 0.5, "colour_spread": 0.5}},
            "stages": [{"iterations": 150, "jitter": max(2, input_size // 8), **views}],
        }
    views = {"flip": 0.5, "flip_per_image": True, "jitter_per_image": True, "zoom": 0.6}
    half = input_size // 2
    return {  # as recipes/imagenet.yaml
        "teachers": teachers,
        "objectives": [
            {"kind": "cross_entropy", "weight": 30.0, "temperature": 4.0},
            {"kind": "bn_matching", "weight": 10.0, "convention": "relative"},
            {"kind": "tv", "weight": 0.03},
        ],
        "stages": [
            {"iterations": 500, "size": half, "jitter": input_size // 14, **views},
            {"iterations": 200, "jitter": input_size // 7, **views},
        ],
        "optimizer": {"lr": 0.05},
    }


def parse_recipe(data: dict[str, Any]) -> Recipe:
    """The recipe that `data` describes; raises ConfigError with every mistake in it."""
    return parse(Recipe, data)
