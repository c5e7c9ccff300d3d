"""One distillation from a recipe to the results folder."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from ensemble.data.labelled import LabelledImages, load_images
from ensemble.data.tree import few
from ensemble.machine import hardware
from ensemble.machine.files import read_json_lines
from ensemble.machine.progress import FallingSilent, ProgressReporter, SilentProgress
from ensemble.machine.rng import generator
from ensemble.training.cut import Cut, cut
from ensemble.training.distillation import DistillationRecipe, RealImages
from ensemble.training.folder import METRICS, TrainingFolder
from ensemble.training.hard_labels import Teaching
from ensemble.training.loop import train
from ensemble.training.pool import Pool, read_pool
from ensemble.training.reading import evaluate, inputs_of, logits_of, recalibrate_bn
from ensemble.training.run import build_network, recorder, relabelled
from ensemble.training.weights import save_weights
from models import ModelCard, parse_spec, sha256
from models.pruned import narrow

_WATCHED = 1000
"""At most so many training images are read again after each epoch."""
_DIAGNOSED = 5000
"""At most so many real training images give the statistics of the diagnosis."""


def distill(
    recipe: DistillationRecipe,
    folder: TrainingFolder,
    device: torch.device,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: ProgressReporter | None = None,
) -> dict[str, Any]:
    """The summary of the run, all of which is in `folder`.

    With `resume`, goes on from the folder's checkpoint; a finished run is left as it is, unless its test is another
    now. Everything that can be checked is checked before what the folder holds is touched. Raises ValueError as
    `TrainingFolder.check` does, where another run holds the folder, where datasets, student, teachers and real images
    do not match, and where the loss is not finite.
    """
    folder.check(recipe, resume=resume, overwrite=overwrite)
    if resume and folder.finished and all(path.startswith("dataset") for path in folder.changes(recipe)):
        return folder.read_summary()
    with folder.held():
        display = FallingSilent(progress or SilentProgress())
        return _distill(recipe, folder, device, resume, overwrite, display)


@dataclass(frozen=True)
class _Class:
    """A student, what it learns from, and what it is tested on."""

    net: nn.Module
    card: ModelCard
    pool: Pool
    test_set: LabelledImages | None
    real_set: LabelledImages | None
    """Training images for the diagnosis."""
    lost: Mapping[str, Any] = field(default_factory=dict)
    """What pruning took."""


def _distill(
    recipe: DistillationRecipe,
    folder: TrainingFolder,
    device: torch.device,
    resume: bool,
    overwrite: bool,
    progress: ProgressReporter,
) -> dict[str, Any]:
    """`distill`, in a folder that it holds."""
    began = time.perf_counter()
    saved = folder.read_checkpoint() if resume else None
    hardware.set_up("fp32", device)
    student = prepare(recipe)
    if recipe.prune is not None:
        student = _pruned(student, recipe.prune, recipe.seed, saved, device)
    pool = student.pool
    lesson = recipe.lesson.begin(pool, student.card, recipe.schedule, device)
    steps = recipe.schedule.steps_per_epoch(len(pool.data)) * recipe.schedule.epochs
    if saved is not None:
        if saved.get("dataset") != pool.digest:
            raise ValueError(
                f"resume: the dataset holds other images now than where {folder.path} began; pass --overwrite instead"
            )
        folder.go_on(recipe, saved["epoch"])
    else:
        folder.begin(recipe, overwrite=overwrite or resume)
    told = recipe.lesson.names(pool)
    by = f", told by {', '.join(told)}" if told else ""
    progress.message(
        f"{recipe.student} learns from {len(pool.data)} generated images, {recipe.lesson.kind} labels{by}; "
        "a step is one epoch"
    )
    progress.start(recipe.schedule.epochs, 0 if saved is None else saved["epoch"])
    try:
        net = _trained(recipe, folder, student, lesson, device, saved, progress)
    finally:
        progress.close()
    save_weights(net, folder.weights, student.card)
    summary: dict[str, Any] = {
        "student": recipe.student,
        "labels": recipe.lesson.kind,
        "teachers": list(told),
        "images": len(pool.data),
        "epochs": recipe.schedule.epochs,
        "steps": steps,
        "views_seen": steps * recipe.schedule.batch_size,
        **({"pruned": student.lost} if student.lost else {}),
        **_tested(recipe, folder, replace(student, net=net), device),
        "train_accuracy": evaluate(net, student.card, pool.data, device),
        "sha256": sha256(folder.weights),
        "device": str(device),
        "torch": str(torch.__version__),
        "wall_seconds": time.perf_counter() - began,
    }
    folder.write_summary(summary)
    return summary


def prepare(recipe: DistillationRecipe) -> _Class:
    """The student, the images and the test images, with the classes in one order, which the student's card says.

    That is the card's own where it knows these classes. An untrained student of others takes the dataset's, as in
    training. Raises ValueError where names or numbers of classes, or sizes, do not match.
    """
    pool = read_pool(recipe.dataset)
    # weights that are a model's default were trained on real images
    spec = recipe.student if "@" in recipe.student or recipe.prune else f"{recipe.student}@random"
    net, card = build_network(spec, recipe.seed)
    names = pool.data.class_names
    if len(names) != card.num_classes:
        raise ValueError(
            f"student: {card.name} has {card.num_classes} classes, the dataset {len(names)}; ask for "
            f"{card.name}:num_classes={len(names)}"
        )
    if set(card.class_names) == set(names):
        pool = pool.ordered(card.class_names)
    elif card.class_names and parse_spec(spec).weights != "random":
        raise ValueError(
            f"student: {recipe.student} knows other classes than the dataset's "
            f"({few(set(card.class_names) ^ set(names))}); ask for @random"
        )
    card = replace(relabelled(card, pool.data.class_names), input_size=pool.size)
    _check_size(net, card)
    test_set = real_set = None
    if recipe.test is not None:
        test_set = _real(recipe.test, recipe.test.split, card)
        real_set = _real(recipe.test, recipe.test.train, card, at_most=_DIAGNOSED) if recipe.diagnose else None
    return _Class(net, card, pool, test_set, real_set)


def _pruned(
    student: _Class, rule: Cut, seed: int, saved: Mapping[str, Any] | None, device: torch.device
) -> _Class:
    """The student without the channels that it loses, or that it lost before the run was saved."""
    if saved is not None:
        narrow(student.net, saved["net"], "resume")
        return replace(student, lost=saved["pruned"])
    found = cut(student.net, student.card, student.pool, rule, seed, device)
    return replace(student, net=found.net, lost=found.said())


def _check_size(net: nn.Module, card: ModelCard) -> None:
    """ValueError where the student does not take images of the dataset's size."""
    blank = LabelledImages(torch.zeros(1, 3, card.input_size, card.input_size, dtype=torch.uint8), torch.zeros(1), ())
    try:
        with torch.no_grad():
            logits_of(copy.deepcopy(net).eval(), inputs_of(blank.images, card, torch.device("cpu")), card)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"student: {card.name} fails on images of {card.input_size} x {card.input_size}, the dataset's size "
            f"({' '.join(str(error).split())[:120]}); choose another"
        ) from None


def _real(spec: RealImages, split: str, card: ModelCard, at_most: int | None = None) -> LabelledImages:
    """Real images at the student's size, labelled by its classes; ValueError where they have others."""
    data = load_images(spec.path, split, card.input_size, at_most=at_most)
    unknown, missing = set(data.class_names) - set(card.class_names), set(card.class_names) - set(data.class_names)
    if unknown or (missing and at_most is None):
        raise ValueError(
            f"test: {spec.path}, {split}, has other classes than the dataset ({few(unknown | missing)}); name its "
            "folders as the dataset's class_names"
        )
    index = torch.tensor([card.class_names.index(name) for name in data.class_names])
    return LabelledImages(data.images, index[data.labels], card.class_names)


def _trained(
    recipe: DistillationRecipe,
    folder: TrainingFolder,
    student: _Class,
    lesson: Teaching,
    device: torch.device,
    saved: Mapping[str, Any] | None,
    progress: ProgressReporter,
) -> nn.Module:
    with folder.open_metrics() as metrics:
        return train(
            student.net,
            student.card,
            student.pool.data,
            _some(student.pool.data, recipe.seed),
            schedule=recipe.schedule,
            augmentation=recipe.augmentation,
            seed=recipe.seed,
            device=device,
            compile_net=recipe.compile and hardware.can_compile(device),
            lesson=lesson,
            measure=_tests_along_the_way(recipe.test_every, student, device),
            saved=saved,
            after_epoch=recorder(folder, metrics, progress, {"dataset": student.pool.digest, "pruned": dict(student.lost)}),
        )


def _some(data: LabelledImages, seed: int) -> LabelledImages:
    """Images that are read after each epoch: all, or some that the seed draws."""
    chosen = torch.randperm(len(data), generator=generator(seed, "watched"))[:_WATCHED].sort().values
    return LabelledImages(data.images[chosen], data.labels[chosen], data.class_names)


def _tests_along_the_way(
    every: int, student: _Class, device: torch.device
) -> Callable[[nn.Module, int], Mapping[str, float]]:
    def measure(net: nn.Module, epoch: int) -> Mapping[str, float]:
        if student.test_set is None or not every or epoch % every:
            return {}
        return {"test_accuracy": evaluate(net, student.card, student.test_set, device)}

    return measure


def _tested(
    recipe: DistillationRecipe, folder: TrainingFolder, student: _Class, device: torch.device
) -> dict[str, Any]:
    """What the summary says of real images."""
    if recipe.test is None or student.test_set is None:
        return {"test_accuracy": None, "real_images_read": {"images": 0, "split": None}}
    tested: dict[str, Any] = {
        "test_accuracy": evaluate(student.net, student.card, student.test_set, device),
        "real_images_read": {"images": len(student.test_set), "split": recipe.test.split},
    }
    rows = [row for row in read_json_lines(folder.path / METRICS) if "test_accuracy" in row]
    if rows:
        best = max(rows, key=lambda row: row["test_accuracy"])
        tested["best_along_the_way"] = {
            "test_accuracy": best["test_accuracy"],
            "epoch": best["epoch"],
            "note": "chosen on the test images: not to be reported",
        }
    if student.real_set is not None:
        tested["diagnosis"] = {
            "test_accuracy_with_real_bn_statistics": _with_statistics(student.real_set, student, device),
            "real_images_read": {"images": len(student.real_set), "split": recipe.test.train},
            "note": "a diagnosis: this network has seen real training images",
        }
    return tested


def _with_statistics(real: LabelledImages, student: _Class, device: torch.device) -> float:
    """The test accuracy with BatchNorm statistics of real images: what it gains was covariate shift."""
    assert student.test_set is not None
    net = copy.deepcopy(student.net)
    recalibrate_bn(net, inputs_of(real.images, student.card, device))
    return evaluate(net, student.card, student.test_set, device)
