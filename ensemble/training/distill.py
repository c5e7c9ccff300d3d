"""One distillation from a recipe to the results folder."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ensemble.config.overrides import is_below
from ensemble.data.labelled import LabelledImages
from ensemble.data.tree import few
from ensemble.machine import hardware
from ensemble.machine.files import read_json_lines
from ensemble.machine.progress import FallingSilent, ProgressReporter, SilentProgress
from ensemble.machine.rng import generator
from ensemble.training.distillation import DistillationRecipe
from ensemble.training.folder import METRICS, TrainingFolder
from ensemble.training.hard_labels import Teaching
from ensemble.training.lessons import Soft
from ensemble.training.loop import train
from ensemble.training.pool import read_pool
from ensemble.training.reading import evaluate, inputs_of, recalibrate_bn
from ensemble.training.run import recorder, weights_files
from ensemble.training.schedule import Schedule
from ensemble.training.student import Student, prepare, pruned
from ensemble.training.weights import save_weights
from models import sha256

_WATCHED = 1000
"""At most so many training images are read again after each epoch."""


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
    now, and answers for no other images or teachers. Everything that can be checked is checked before what the folder
    holds is touched. Raises ValueError as `TrainingFolder.check` does, where another run holds the folder, where
    datasets, student, teachers and real images do not match, and where the loss is not finite.
    """
    folder.check(recipe, resume=resume, overwrite=overwrite)
    changed = folder.changes(recipe) if resume and folder.finished else None
    if changed == [] and not folder.has_checkpoint:
        return folder.read_summary()
    if changed is not None and all(is_below(path, ("dataset",)) for path in changed):
        saved, pool = folder.read_checkpoint() or {}, read_pool(recipe.dataset)
        same_images = saved.get("dataset") == pool.digest  # wherever they lie now
        if same_images and not _others(recipe.lesson.digests(pool), saved):
            return folder.read_summary()
    with folder.held():
        display = FallingSilent(progress or SilentProgress())
        return _distill(recipe, folder, device, resume, overwrite, display)


def _distill(
    recipe: DistillationRecipe,
    folder: TrainingFolder,
    device: torch.device,
    resume: bool,
    overwrite: bool,
    progress: ProgressReporter,
) -> dict[str, Any]:
    """`distill`, in a folder that it holds."""
    saved = folder.read_checkpoint() if resume else None
    began = time.perf_counter() - (0.0 if saved is None else saved.get("seconds", 0.0))
    hardware.set_up("fp32", device)
    student = pruned(prepare(recipe), recipe, saved, device)
    pool = student.pool
    schedule = recipe.schedule.settled(device, saved)
    lesson = recipe.lesson.begin(pool, student.card, schedule, device)
    steps = recipe.schedule.steps_per_epoch(len(pool.data)) * recipe.schedule.epochs
    weights = recipe.lesson.digests(pool)
    if saved is None:
        if resume:
            folder.check_goes_on()
        folder.check_kept(begins_from(recipe))
        folder.begin(recipe, overwrite=overwrite or resume)
    elif others := _others(weights, saved):
        raise ValueError(
            f"resume: weights, input size, mean or std of {', '.join(others)} are not those that the distillation "
            "began with; put those back, or pass --overwrite instead to begin anew"
        )
    elif saved.get("dataset") != pool.digest:
        raise ValueError(
            f"resume: the dataset holds other images now than where {folder.path} began; pass --overwrite instead"
        )
    else:
        other_test = any(is_below(path, ("test",)) for path in folder.changes(recipe))
        folder.go_on(recipe, saved["epoch"], without={"test_accuracy"} if other_test else ())
    told = recipe.lesson.names(pool)
    by = f", told by {', '.join(map(pool.called, told))}" if told else ""
    progress.message(
        f"{recipe.student} learns from {len(pool.data)} generated images, {recipe.lesson.kind} labels{by}; "
        "a step is one epoch"
    )
    if unmade := student.unmade:
        progress.message(f"warning: test: no image was made for {few(unmade)}; the accuracy is of these classes, too")
    progress.start(recipe.schedule.epochs, 0 if saved is None else saved["epoch"])
    try:
        kept = {"dataset": pool.digest, "pruned": dict(student.lost), "teachers": dict(weights)}
        net = _trained(recipe, schedule, folder, student, lesson, device, saved, progress, began, kept)
    finally:
        progress.close()
    save_weights(net, folder.weights, student.card, recipe.student)
    summary: dict[str, Any] = {
        "student": recipe.student,
        "labels": recipe.lesson.kind,
        "teachers": list(told),
        "teacher_weights": dict(weights),
        "images": len(pool.data),
        "epochs": recipe.schedule.epochs,
        "steps": steps,
        "views_seen": steps * recipe.schedule.batch_size,
        **({"pruned": student.lost} if student.lost else {}),
        **_tested(recipe, folder, replace(student, net=net), device),
        "train_accuracy": evaluate(net, student.card, pool.data, device),
        "sha256": sha256(folder.weights),
        "device": str(device),
        "precision": schedule.precision,
        "torch": str(torch.__version__),
        "wall_seconds": time.perf_counter() - began,
    }
    folder.write_summary(summary)
    return summary


def _others(weights: Mapping[str, str], saved: Mapping[str, Any]) -> list[str]:
    """The teachers whose weights, or how they see images, are not those that the run began with."""
    began = saved.get("teachers", {})
    return [name for name, digest in weights.items() if began.get(name, digest) != digest]


def _trained(
    recipe: DistillationRecipe,
    schedule: Schedule,
    folder: TrainingFolder,
    student: Student,
    lesson: Teaching,
    device: torch.device,
    saved: Mapping[str, Any] | None,
    progress: ProgressReporter,
    began: float,
    kept: Mapping[str, Any],
) -> nn.Module:
    with folder.open_metrics() as metrics:
        return train(
            student.net,
            student.card,
            student.pool.data,
            _some(student.pool.data, recipe.seed),
            schedule=schedule,
            augmentation=recipe.augmentation,
            seed=recipe.seed,
            device=device,
            compile_net=recipe.compile and hardware.can_compile(device),
            lesson=lesson,
            measure=_tests_along_the_way(recipe.test_every, student, device),
            saved=saved,
            after_epoch=recorder(folder, metrics, progress, began, {**kept, "precision": schedule.precision}),
        )


def begins_from(recipe: DistillationRecipe) -> list[str | Path]:
    """The files and folders that a distillation reads; some may be names that are none."""
    teachers = recipe.lesson.teachers if isinstance(recipe.lesson, Soft) else ()
    return [*recipe.dataset, *weights_files([recipe.student, *teachers])]


def _some(data: LabelledImages, seed: int) -> LabelledImages:
    """Images that are read after each epoch: all, or some that the seed draws."""
    chosen = torch.randperm(len(data), generator=generator(seed, "watched"))[:_WATCHED].sort().values
    return data.subset(chosen)


def _tests_along_the_way(
    every: int, student: Student, device: torch.device
) -> Callable[[nn.Module, int], Mapping[str, float]]:
    def measure(net: nn.Module, epoch: int) -> Mapping[str, float]:
        if student.test_set is None or not every or epoch % every:
            return {}
        return {"test_accuracy": evaluate(net, student.card, student.test_set, device)}

    return measure


def _tested(
    recipe: DistillationRecipe, folder: TrainingFolder, student: Student, device: torch.device
) -> dict[str, Any]:
    """What the summary says of real images."""
    if recipe.test is None or student.test_set is None:
        return {"test_accuracy": None, "real_images_read": {"images": 0, "split": None}}
    tested: dict[str, Any] = {
        "test_accuracy": evaluate(student.net, student.card, student.test_set, device),
        "real_images_read": {"images": len(student.test_set), "split": student.test_set.split},
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


def _with_statistics(real: LabelledImages, student: Student, device: torch.device) -> float:
    """The test accuracy with BatchNorm statistics of real images: what it gains was covariate shift."""
    assert student.test_set is not None
    net = copy.deepcopy(student.net)
    recalibrate_bn(net, inputs_of(real.images, student.card, device))
    return evaluate(net, student.card, student.test_set, device)
