"""A student before it learns: its network, its images and those it is tested on, with the classes in one order."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from ensemble.data.labelled import LabelledImages, load_images
from ensemble.data.shards import class_labels, own_labels
from ensemble.data.tree import Layout, few
from ensemble.training.cut import cut
from ensemble.training.distillation import DistillationRecipe, RealImages
from ensemble.training.lessons import Soft
from ensemble.training.pool import Pool, read_pool
from ensemble.training.run import build_network, check_padding, relabelled
from models import ModelCard, check_reads, class_indices, model_card, parse_spec
from models.pruned import narrow

_DIAGNOSED = 5000
"""At most so many real training images give the statistics of the diagnosis."""


@dataclass(frozen=True)
class Student:
    """A network, what it learns from, and what it is tested on."""

    net: nn.Module
    card: ModelCard
    pool: Pool
    test_set: LabelledImages | None
    real_set: LabelledImages | None
    """Training images for the diagnosis."""
    lost: Mapping[str, Any] = field(default_factory=dict)
    """What pruning took."""

    @property
    def unmade(self) -> set[str]:
        """Classes that it is tested on and that no image was made for."""
        if self.test_set is None:
            return set()
        tested, made = (set(data.labels.unique().tolist()) for data in (self.test_set, self.pool.data))
        return {self.test_set.class_names[i] for i in tested - made}


def prepare(recipe: DistillationRecipe) -> Student:
    """The student, the images and the test images, with the classes in one order, which the student's card says.

    That is the card's own where it knows these classes. An untrained student of others takes the dataset's, as in
    training. Raises ValueError where names or numbers of classes, or sizes, do not match, or images are too few.
    """
    model_card(recipe.student)  # a name that is none is told first
    pool = read_pool(recipe.dataset)
    recipe.schedule.steps_per_epoch(len(pool.data))  # too few images are told before a network or real ones are read
    check_padding(recipe.augmentation.crop_padding, pool.size)
    # weights that are a model's default were trained on real images
    spec = recipe.student if "@" in recipe.student or recipe.prune else f"{recipe.student}@random"
    net, card = build_network(spec, recipe.seed)
    names = pool.data.class_names
    if len(names) != card.num_classes:
        raise ValueError(
            f"student: {card.name} has {card.num_classes} classes, the dataset {len(names)}; ask for "
            f"{card.name}:num_classes={len(names)}"
        )
    own, order = own_labels(card), learned_order(card, names)
    if own and order != own and parse_spec(spec).weights != "random":
        raise ValueError(
            f"student: {recipe.student} knows other classes than the dataset's "
            f"({few(set(own) ^ set(names))}); ask for @random"
        )
    pool = pool.ordered(order)
    card = replace(card if own == order else relabelled(card, names), input_size=pool.size)
    check_reads(f"student: {card.name}", net, card, learns=True)
    test_set = real_set = None
    if recipe.test is not None:
        made = {pool.data.class_names[i] for i in pool.data.labels.unique().tolist()}
        test_set = _real(recipe.test, recipe.test.split, card, made)
        if recipe.diagnose and not test_set.split:
            raise ValueError(
                f"diagnose: {recipe.test.path} has no splits, so no training images beside those of the test; leave it "
                "out, or give data with SPLIT/CLASS/FILE"
            )
        real_set = _real(recipe.test, recipe.test.train, card, set(), _DIAGNOSED) if recipe.diagnose else None
    return Student(net, card, pool, test_set, real_set)


def learned_order(card: ModelCard, names: tuple[str, ...]) -> tuple[str, ...]:
    """These classes in the order of the student's outputs: its own where it knows them, else theirs."""
    own = own_labels(card)
    return own if set(own) == set(names) else names


def pruned(
    student: Student, recipe: DistillationRecipe, saved: Mapping[str, Any] | None, device: torch.device
) -> Student:
    """The student without the channels that it loses, or that it lost before the run was saved; whole where none are.

    Raises ValueError where a dataset calls another network by the name of the one that is pruned, which teaches it.
    """
    if recipe.prune is None:
        return student
    namesake = student.pool.teachers.get(recipe.student)
    taught = isinstance(recipe.lesson, Soft) and recipe.student in recipe.lesson.teachers
    if taught and namesake is not None and namesake.model != recipe.student:
        raise ValueError(
            f"prune: {recipe.student} is what the dataset calls {namesake.model}; name the network with its weights, "
            f"as {recipe.student}@{student.card.default_weights or 'FILE'}"
        )
    if saved is not None:
        narrow(student.net, saved["net"], "resume")
        return replace(student, lost=saved["pruned"])
    found = cut(student.net, student.card, student.pool, recipe.prune, recipe.seed, device)
    return replace(student, net=found.net, lost=found.said())


def _real(
    spec: RealImages, split: str | None, card: ModelCard, made: Set[str], at_most: int | None = None
) -> LabelledImages:
    """Real images at the student's size, labelled by its classes, by their names or WordNet's numbers.

    ValueError where they have others, or lack some of those that images were `made` for.
    """
    layout: Layout = "classes" if split is None else "splits"
    data = load_images(spec.path, split or "test", card.input_size, at_most=at_most, layout=layout)
    own = class_labels(card.class_names, card.num_classes)
    known = class_indices(card, data.class_names) | {name: index for index, name in enumerate(own)}
    unknown = set(data.class_names) - set(known)
    where = spec.path + (f", {data.split}," if data.split else "")
    if unknown:
        raise ValueError(
            f"test: {where} has other classes than the dataset ({few(unknown)}); name its folders as the dataset's "
            "class_names"
        )
    if missing := made - {own[known[name]] for name in data.class_names}:
        raise ValueError(f"test: {where} lacks classes that images were made for ({few(missing)}); add their folders")
    return replace(data, labels=data.numbered(known), class_names=own)
