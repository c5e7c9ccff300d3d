"""What determines a leakage study: frozen dataclasses whose fields are the keys of the YAML."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import comb
from typing import Annotated, Any

from pydantic import Field, NonNegativeInt, PositiveInt

from ensemble.config.checked import Checked
from ensemble.config.mistakes import ConfigError
from ensemble.config.parsing import parse
from ensemble.training.augment import Augmentation
from ensemble.training.recipe import DataSpec, RunRecipe
from ensemble.training.schedule import Schedule

LEVEL = 0.05
"""At which the sequence is tested."""


@dataclass(frozen=True)
class Arm(Checked):
    """Networks that were trained alike but for their seed; in all arms those of a seed have the same half of the
    images, first weights and order."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    teachers: Annotated[int, Field(ge=1, le=16)]
    """At most so many that all ways to part two arms can be counted."""
    augmentation: Augmentation = Augmentation()
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @property
    def dose(self) -> float:
        """The share of its batches that CutMix acts on."""
        return self.augmentation.mix_probability if self.augmentation.cutmix else 0.0

    @property
    def mixes(self) -> bool:
        """Whether CutMix or mixup acts on any batch."""
        return bool((self.augmentation.cutmix or self.augmentation.mixup) and self.augmentation.mix_probability)


@dataclass(frozen=True)
class Inversions(Checked):
    """Images that are made from each network's statistics."""

    images: Annotated[int, Field(ge=2)] = 100
    steps: PositiveInt = 250


@dataclass(frozen=True)
class Groups(Checked):
    """Ensembles of `size` networks of which 0 to all are of the arm `mixed`, the others of `plain`."""

    size: Annotated[int, Field(ge=2)] = 4
    each: NonNegativeInt = 1
    """Ensembles for each number, none of which shares a network with another; three have an interval; 0: none."""


@dataclass(frozen=True)
class Stress(Checked):
    """Networks that learn few images by heart: where attacks must fire."""

    networks: NonNegativeInt = 3
    images: Annotated[int, Field(ge=20)] = 500
    epochs: PositiveInt = 60


@dataclass(frozen=True)
class LeakageRecipe(RunRecipe):
    """A bank of networks, what is read of them, and which contrasts are tested in which order."""

    what = "leakage study"
    free = ("data.path",)

    model: str
    """NAME[:option=value]@random"""
    data: DataSpec
    arms: Annotated[tuple[Arm, ...], Field(min_length=2)]
    plain: str = "plain"
    """The arm that the others are compared with."""
    mixed: str = "cutmix"
    """The arm of the swap of statistics and weights, and of the ensembles."""
    sequence: Annotated[tuple[str, ...], Field(min_length=1)] = ("cutmix",)
    """Arms whose seams are tested against `plain`, one after the other until one fails; the first is the primary."""
    pool: PositiveInt = 16000
    """Training images that are drawn; each network has a random half of them."""
    canaries: NonNegativeInt = 0
    """Of these, with a wrong label."""
    schedule: Schedule = Schedule(recalibrate_bn=False)
    inversions: Inversions = Inversions()
    ensembles: Groups = Groups()
    stress: Stress = Stress()
    probed: PositiveInt = 300
    """Images that a network was not trained on, of which detectors read composites and blends."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0

    def rules(self) -> Iterator[str]:
        yield from self._of_names()
        yield from self._of_contrasts()
        if self.schedule.recalibrate_bn:
            yield "schedule.recalibrate_bn: must be false; the study is about statistics as training leaves them"
        if not self.model.endswith("@random"):
            yield "model: networks begin untrained; ask for NAME@random"
        if self.schedule.label_smoothing or self.schedule.ema:
            yield "schedule: label_smoothing is an arm's, and ema must be 0, whose statistics are other averages"
        for arm in self.arms:
            if arm.name == self.plain and arm.teachers < 2:
                yield "arms: the plain one needs two networks at least"
        if len({(arm.augmentation.crop_padding, arm.augmentation.flip) for arm in self.arms}) > 1:
            yield "arms: all crop and flip alike, or what they differ in is not told apart"
        yield from self._of_ensembles()
        if self.canaries > self.pool // 4:
            yield f"canaries: at most a quarter of the pool, {self.pool // 4}"

    def _of_names(self) -> Iterator[str]:
        names = [arm.name for arm in self.arms]
        if len(set(names)) < len(names):
            yield "arms: two have the same name"
        asked = {"plain": [self.plain], "mixed": [self.mixed], "sequence": [*self.sequence]}
        for field, those in asked.items():
            for name in those:
                if name not in names:
                    yield f"{field}: {name} is none of the arms ({', '.join(names)})"
        if len(set(self.sequence)) < len(self.sequence):
            yield "sequence: names an arm twice, which is tested once; leave one out"

    def _of_contrasts(self) -> Iterator[str]:
        """Seams are CutMix's: an arm without it has none to find, and a plain arm with mixes is no null."""
        arms = {arm.name: arm for arm in self.arms}
        if self.plain in (self.mixed, *self.sequence):
            yield f"plain: {self.plain} cannot be compared with itself"
        elif self.plain in arms and arms[self.plain].mixes:
            yield f"plain: {self.plain} has CutMix or mixup; name an arm without, which the others are compared with"
        asked = [("mixed", self.mixed), *(("sequence", name) for name in dict.fromkeys(self.sequence))]
        for field, name in asked:
            if name in arms and name != self.plain and not arms[name].dose:
                yield f"{field}: {name} has no CutMix; name an arm with cutmix and mix_probability above 0"

    def _of_ensembles(self) -> Iterator[str]:
        """Ensembles that share networks are no independent values, and an interval takes them for that."""
        size, each = self.ensembles.size, self.ensembles.each
        least = min((arm.teachers for arm in self.arms if arm.name in (self.plain, self.mixed)), default=0)
        if each and size > least:
            yield f"ensembles.size: {size} networks, and an arm has {least}; one would sit there twice"
        elif size * each > least:
            yield (
                f"ensembles.each: {each} of {size} networks take {each * size}, and an arm has {least}; ask for "
                f"{least // size} at most, which share none"
            )

    def arm(self, name: str) -> Arm:
        return next(arm for arm in self.arms if arm.name == name)

    def hastened(self) -> LeakageRecipe:
        """The same with so little of everything that it shows whether it runs, and nothing else.

        Its arms are too small for any test, so `parse_leakage_recipe` would refuse it.
        """
        return replace(
            self,
            arms=tuple(replace(arm, teachers=min(2, arm.teachers)) for arm in self.arms),
            pool=min(640, self.pool),
            canaries=min(20, self.canaries),
            schedule=replace(self.schedule, epochs=1, batch_size=min(64, self.schedule.batch_size)),
            inversions=Inversions(images=min(10, self.inversions.images), steps=min(10, self.inversions.steps)),
            ensembles=replace(self.ensembles, size=2, each=min(1, self.ensembles.each)),
            stress=replace(self.stress, networks=min(1, self.stress.networks), images=40, epochs=2),
            probed=min(64, self.probed),
        )


def parse_leakage_recipe(data: dict[str, Any]) -> LeakageRecipe:
    """The recipe that `data` describes; raises ConfigError with every mistake in it.

    A primary contrast that no data could show is one, too. It is no rule of the class: a quick study has few networks.
    """
    recipe = parse(LeakageRecipe, data)
    first, plain = recipe.arm(recipe.sequence[0]), recipe.arm(recipe.plain)
    ways = comb(first.teachers + plain.teachers, first.teachers)
    if ways * LEVEL < 1:  # the least p of an exact permutation test is 1 / ways
        raise ConfigError(
            [
                f"sequence: {first.teachers} networks of {first.name} and {plain.teachers} of {plain.name} can be "
                f"parted in {ways} ways, so p is {1 / ways:.2g} at least and never {LEVEL}; train more (3 and 3 do)"
            ]
        )
    return recipe
