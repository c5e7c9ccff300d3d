"""The bank of networks: who learned what, and what is kept of each."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import nn

from ensemble.data.labelled import LabelledImages, check_same_classes, load_images
from ensemble.machine.rng import generator
from ensemble.privacy.moments import bn_layers
from ensemble.privacy.overlap import once
from ensemble.privacy.study.canaries import mislabelled
from ensemble.privacy.study.recipe import LeakageRecipe
from ensemble.privacy.training import learned
from ensemble.training.augment import Augmentation
from ensemble.training.run import build_network, check_classes
from ensemble.training.schedule import Schedule
from models import ModelCard

CPU = torch.device("cpu")
_WATCHED = 1000
_TESTED = 5000
_TEST_IMAGES = 4
"""Times an inversion's images that the test split holds at least: half of it goes into groups of so many, of which two
then share half on average, and with twice as many all would be one."""


@dataclass(frozen=True)
class BankTeacher:
    """A network of the bank, by its arm and its seed."""

    arm: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.arm}_{self.seed:02d}"


@dataclass(frozen=True)
class Bank:
    """The images of a study and the networks that learn them."""

    recipe: LeakageRecipe

    def teachers(self) -> Iterator[BankTeacher]:
        """Seed by seed, so that what is there is paired."""
        for seed in range(max(arm.teachers for arm in self.recipe.arms)):
            for arm in self.recipe.arms:
                if seed < arm.teachers:
                    yield BankTeacher(arm.name, seed)

    @cached_property
    def card(self) -> ModelCard:
        return build_network(self.recipe.model, 0)[1]

    @property
    def size(self) -> int:
        return self.recipe.data.size or self.card.input_size

    @cached_property
    def _drawn(self) -> tuple[LabelledImages, torch.Tensor]:
        found = once(load_images(self.recipe.data.path, self.recipe.data.train, self.size, at_most=self.recipe.pool))
        return mislabelled(self._shuffled(found, "pool"), self.recipe.canaries, self.recipe.seed)

    @property
    def pool(self) -> LabelledImages:
        """The images that networks have halves of; canaries with a wrong label."""
        return self._drawn[0]

    @property
    def canaries(self) -> torch.Tensor:
        """(N,) bool."""
        return self._drawn[1]

    @cached_property
    def test(self) -> LabelledImages:
        found = load_images(self.recipe.data.path, self.recipe.data.test, self.size, at_most=_TESTED)
        return self._shuffled(found, "test")

    def _shuffled(self, data: LabelledImages, name: str) -> LabelledImages:
        """Images come sorted by class; here the first so many are to be like all others."""
        return data.subset(torch.randperm(len(data), generator=generator(self.recipe.seed, "shuffle", name)))

    def check(self) -> None:
        """ValueError where data and network do not match, or there are too few images."""
        check_same_classes(self.recipe.data.path, {self.recipe.data.train: self.pool, self.recipe.data.test: self.test})
        check_classes(self.recipe.data, self.card, self.pool.class_names)
        padding = self.recipe.arm(self.recipe.plain).augmentation.crop_padding
        if self.size < 16 or padding != self.size // 8:
            raise ValueError(
                f"data: images of {self.size} pixels and crops by {padding}; detectors take 16 pixels at least, and "
                f"re-estimate statistics with crops by an eighth of the side ({self.size // 8})"
            )
        for name in (self.recipe.plain, self.recipe.mixed):
            seen = self.recipe.arm(name).augmentation
            if seen.crop_border != "mirrored" or not seen.flip or 0 < seen.crop_scale < 1:
                raise ValueError(
                    f"arms: {name} has crops or flips that statistics are not re-estimated with; leave crop_border, "
                    "flip and crop_scale of the plain and the mixed arm as they are by default"
                )
        if not bn_layers(build_network(self.recipe.model, 0)[0]):
            raise ValueError(f"model: {self.card.name} keeps no BatchNorm statistics, which the study is about")
        if len(self.pool) < 6 * self.recipe.schedule.batch_size:
            raise ValueError(
                f"pool: {len(self.pool)} images are fewer than six batches of {self.recipe.schedule.batch_size}; each "
                "network learns half of them"
            )
        asked = self.recipe.inversions.images
        if len(self.test) < _TEST_IMAGES * asked:
            raise ValueError(
                f"data.test: {len(self.test)} images, of which controls of {asked} each are drawn; give "
                f"{_TEST_IMAGES * asked} at least, or ask for fewer inversions.images"
            )

    def digest(self) -> str:
        """Changes with the images that networks learn from and are tested on, and with their labels."""
        found = hashlib.sha256()
        for data in (self.pool, self.test):
            data.hash_into(found)
        return found.hexdigest()

    def inside(self, seed: int) -> torch.Tensor:
        """(N,) bool: the half that the networks of this seed learn; each image is in with p = 1/2, by itself."""
        return torch.rand(len(self.pool), generator=generator(self.recipe.seed, "half", seed)) < 0.5

    def training_seed(self, seed: int) -> int:
        """Of first weights and batch order, the same in all arms."""
        return 1000 * self.recipe.seed + seed

    def outside(self, seed: int) -> LabelledImages:
        """What the networks of this seed did not learn, canaries left out."""
        return self.pool.subset(~self.inside(seed) & ~self.canaries)

    def trained(self, teacher: BankTeacher) -> nn.Module:
        """The network, with its running statistics as training leaves them."""
        arm = self.recipe.arm(teacher.arm)
        schedule = replace(self.recipe.schedule, label_smoothing=arm.label_smoothing)
        seed = self.training_seed(teacher.seed)
        return self._learned(self.pool.subset(self.inside(teacher.seed)), arm.augmentation, schedule, seed)

    @property
    def by_heart(self) -> int:
        """How many images a stressed network learns: those asked for, or a third of the pool without its canaries."""
        return min(self.recipe.stress.images, int((~self.canaries).sum()) // 3)

    def stress_sets(self, number: int) -> tuple[LabelledImages, LabelledImages]:
        """Images that a stressed network learns by heart, and as many that it never sees, of right labels."""
        order = torch.randperm(len(self.pool), generator=generator(self.recipe.seed, "stress", number))
        order = order[~self.canaries[order]]
        count = self.by_heart
        return self.pool.subset(order[:count]), self.pool.subset(order[count : 2 * count])

    def stressed(self, images: LabelledImages, number: int) -> nn.Module:
        """A network that learned these few images by heart, without augmentation."""
        size = min(self.recipe.schedule.batch_size, max(2, len(images) // 4))
        schedule = replace(self.recipe.schedule, epochs=self.recipe.stress.epochs, batch_size=size)
        return self._learned(images, Augmentation(crop_padding=0, flip=False), schedule, 10**6 + number)

    def _learned(self, images: LabelledImages, augmentation: Augmentation, schedule: Schedule, seed: int) -> nn.Module:
        watched = self.test.subset(slice(_WATCHED))
        return learned(self.recipe.model, images, watched, schedule=schedule, augmentation=augmentation, seed=seed)[0]
