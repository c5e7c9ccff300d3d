"""One training run from a recipe to the results folder."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ensemble.data.labelled import LabelledImages, check_same_classes, load_images
from ensemble.machine import hardware
from ensemble.machine.files import JsonLines
from ensemble.machine.output_folder import check_writable
from ensemble.machine.progress import FallingSilent, ProgressReporter, SilentProgress
from ensemble.training.folder import TrainingFolder
from ensemble.training.loop import Progress, State, train
from ensemble.training.reading import evaluate
from ensemble.training.recipe import DataSpec, TrainingRecipe
from ensemble.training.weights import Provenance, check_own, export_weights, save_weights
from models import ModelCard, check_reads, class_indices, create_model, parse_spec, sha256, untrained_model

_FEW_STEPS = 200
"""Fewer are warned of."""


def run(
    recipe: TrainingRecipe,
    folder: TrainingFolder,
    device: torch.device,
    *,
    resume: bool = False,
    overwrite: bool = False,
    export: Path | None = None,
    command: str = "",
    progress: ProgressReporter | None = None,
) -> dict[str, Any]:
    """The summary of the run, all of which is in `folder`.

    With `export`, also writes the bundled weights and their record, which names `command`, there. With `resume`, goes
    on from the folder's checkpoint; a finished run is left as it is, unless it is to be exported. A display that
    fails ends nothing.

    Everything that can be checked is checked before what the folder holds is touched. Raises ValueError as
    `TrainingFolder.check` does, where another run holds the folder, where data and network do not match or the
    network cannot be exported under its name; and where the loss is not finite.
    """
    folder.check(recipe, resume=resume, overwrite=overwrite)
    if export is None and resume and folder.finished and not folder.changes(recipe):
        return folder.read_summary()
    with folder.held():
        display = FallingSilent(progress or SilentProgress())
        return _train(recipe, folder, device, resume, overwrite, export, command, display)


def _train(
    recipe: TrainingRecipe,
    folder: TrainingFolder,
    device: torch.device,
    resume: bool,
    overwrite: bool,
    export: Path | None,
    command: str,
    progress: ProgressReporter,
) -> dict[str, Any]:
    """`run`, in a folder that it holds."""
    saved = folder.read_checkpoint() if resume else None
    began = time.perf_counter() - (0.0 if saved is None else saved.get("seconds", 0.0))
    hardware.set_up("fp32", device)
    if export is not None:
        _check_exportable(recipe.model)
        check_writable(export, "export")
        if not overwrite:
            check_own(export, parse_spec(recipe.model).name, Provenance(trained_on(recipe.data), command))
    net, card = build_network(recipe.model, recipe.seed)
    train_set, test_set = load_splits(recipe.data, card, recipe.augmentation.crop_padding)
    trained = replace(relabelled(card, train_set.class_names), input_size=recipe.data.size or card.input_size)
    if export is not None and trained != card:
        raise ValueError(
            f"export: the data's classes or size are not those of {card.name}, whose weights these would be"
        )
    steps = recipe.schedule.steps_per_epoch(len(train_set)) * recipe.schedule.epochs
    check_reads(f"model: {recipe.model}", net, replace(card, input_size=trained.input_size), learns=True)
    done = 0 if saved is None else saved["epoch"]
    schedule = recipe.schedule.settled(device, saved)
    digests = {"data": _digest_of(train_set), "test_data": _digest_of(test_set)}
    if saved is None:
        if resume:
            folder.check_goes_on()
        folder.check_kept(weights_files([recipe.model]))
        folder.begin(recipe, overwrite=overwrite or resume)
    elif any(saved.get(name, digest) != digest for name, digest in digests.items()):
        raise ValueError(
            f"resume: {recipe.data.path} holds other images or classes than where {folder.path} began; give those, or "
            "pass --overwrite instead"
        )
    elif export is None and folder.finished:  # its data lie elsewhere now
        return folder.read_summary()
    else:
        folder.go_on(recipe, done)
    progress.message(f"training {recipe.model} on {len(train_set)} images; a step is one epoch")
    if steps < _FEW_STEPS:
        progress.message(
            f"warning: batches of {recipe.schedule.batch_size} make {steps} steps in all, in which a network learns "
            "little; set a smaller schedule.batch_size or more schedule.epochs"
        )
    progress.start(recipe.schedule.epochs, done)
    with folder.open_metrics() as metrics:
        try:
            net = train(
                net,
                card,
                train_set,
                test_set,
                schedule=schedule,
                augmentation=recipe.augmentation,
                seed=recipe.seed,
                device=device,
                compile_net=recipe.compile and hardware.can_compile(device),
                saved=saved,
                after_epoch=recorder(folder, metrics, progress, began, {**digests, "precision": schedule.precision}),
            )
        finally:
            progress.close()
    save_weights(net, folder.weights, trained, recipe.model)
    summary: dict[str, Any] = {
        "model": recipe.model,
        "accuracy": evaluate(net, card, test_set, device),
        "train_images": len(train_set),
        "test_images": len(test_set),
        "epochs": recipe.schedule.epochs,
        "sha256": sha256(folder.weights),
        "device": str(device),
        "precision": schedule.precision,
        "torch": str(torch.__version__),
        "wall_seconds": time.perf_counter() - began,
    }
    folder.write_summary(summary)
    if export is not None:
        provenance = Provenance(trained_on(recipe.data), command)
        summary["exported_accuracy"] = export_weights(net, card, export, provenance, test_set, device)
        folder.write_summary(summary)
    return summary


def recorder(
    folder: TrainingFolder, metrics: JsonLines, progress: ProgressReporter, began: float, more: State
) -> Callable[[Progress, State], None]:
    """Writes and shows what the loop tells after each epoch; `more`, and the time since it began, is kept with it."""

    def record(epoch: Progress, state: State) -> None:
        row = {**vars(epoch), **epoch.measured}
        del row["measured"]
        metrics.write(row)  # before the checkpoint: `go_on` drops a line too many, and could not make one
        folder.write_checkpoint(state | more | {"seconds": time.perf_counter() - began})
        progress.step(epoch.epoch - 1, {"loss": epoch.loss, "accuracy": epoch.accuracy})

    return record


def build_network(spec: str, seed: int) -> tuple[nn.Module, ModelCard]:
    """The network to train, its parameters free, and its card.

    `@random` is `models.untrained_model`, so that runs of several seeds differ. Other weights are those of
    `create_model`.
    """
    parsed = parse_spec(spec)
    if parsed.weights == "random":
        return untrained_model(parsed, seed)
    net, card = create_model(parsed)
    if card.family == "edge_popup":
        raise ValueError(f"{parsed.name}: the scores of a subnet are learned from the start; ask for @random")
    return net.requires_grad_(True), card


def load_splits(data: DataSpec, card: ModelCard, crop_padding: int) -> tuple[LabelledImages, LabelledImages]:
    """The training and the test set, at `data.size` or the network's input size.

    Their classes are in the network's order where it knows them, by name, else in that of their names: a network that
    was trained says what its outputs mean. Raises ValueError where their classes differ from each other or in number
    from the network's, or where the images are too small for the crop.
    """
    size = data.size or card.input_size
    check_padding(crop_padding, size)
    train_set, test_set = (load_images(data.path, split, size) for split in (data.train, data.test))
    check_same_classes(data.path, {data.train: train_set, data.test: test_set})
    check_classes(data, card, train_set.class_names)
    names = train_set.class_names
    foreign = all(name.isdecimal() for name in names) and set(names).isdisjoint(card.class_names)  # digits of whatever
    known = {} if foreign else class_indices(card, names)
    if {known.get(name) for name in names} != {*range(card.num_classes)}:
        return train_set, test_set
    own = card.class_names
    return (
        replace(train_set, labels=train_set.numbered(known), class_names=own),
        replace(test_set, labels=test_set.numbered(known), class_names=own),
    )


def check_padding(crop_padding: int, size: int) -> None:
    """ValueError where images are too small to be padded by their mirror image so far."""
    if crop_padding >= size:
        raise ValueError(f"augmentation.crop_padding: {crop_padding} must be below the image size {size}")


def weights_files(specs: Iterable[str]) -> list[Path]:
    """The files of weights that these networks name."""
    return [file for spec in specs if (file := parse_spec(spec).path) is not None]


def _digest_of(data: LabelledImages) -> str:
    found = hashlib.sha256("\n".join(data.class_names).encode())
    data.hash_into(found)
    return found.hexdigest()


def check_classes(data: DataSpec, card: ModelCard, class_names: tuple[str, ...]) -> None:
    """ValueError where the network has not as many classes as the data."""
    classes = len(class_names)
    if classes < 2:
        raise ValueError(f"data: {data.path} has one class; a classifier is trained on two or more")
    if classes != card.num_classes:
        raise ValueError(
            f"data: {data.path} has {classes} classes, {card.name} has {card.num_classes};"
            f" ask for {card.name}:num_classes={classes}@random"
        )


def trained_on(data: DataSpec) -> str:
    """The data set's name for a record: its file, without the folders above it, and the splits."""
    return f"{Path(data.path).name}, {data.train}; accuracy on {data.test}"


def relabelled(card: ModelCard, class_names: tuple[str, ...]) -> ModelCard:
    """The card of a network that learned these classes, in this order."""
    if card.class_names == class_names:
        return card
    return replace(card, class_names=class_names, label_space="")


def _check_exportable(spec: str) -> None:
    parsed = parse_spec(spec)
    if parsed.options:
        raise ValueError(
            f"export: bundled weights belong to a name, not to its options; register {spec} under a name of"
            " its own, or leave --export out"
        )
    if "/" in parsed.name:
        raise ValueError(f"export: {parsed.name} is another library's network; leave --export out")
