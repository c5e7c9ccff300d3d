"""One training run from a recipe to the results folder."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ensemble.config.overrides import differences
from ensemble.config.parsing import to_plain
from ensemble.config.yaml_files import dump_yaml, load_yaml
from ensemble.data.labelled import LabelledImages, load_images
from ensemble.machine import hardware
from ensemble.machine.files import Metrics, write_json
from ensemble.machine.progress import progress_reporter
from ensemble.training.loop import Progress, evaluate, train
from ensemble.training.recipe import DataSpec, TrainingRecipe
from ensemble.training.weights import Provenance, export_weights, save_weights
from models import ModelCard, create_model, model_card, parse_spec
from models._loading import sha256
from models._registry import _find, _options


def run(
    recipe: TrainingRecipe,
    output: Path,
    device: torch.device,
    *,
    export: Path | None = None,
    command: str = "",
) -> dict[str, Any]:
    """The summary of the run, after training or going on from `output`/checkpoint.pt.

    Writes recipe.yaml, metrics.jsonl (one line an epoch), weights.safetensors and summary.json into `output`;
    with `export`, also the bundled weights and their record, which names `command`, into that folder.

    Raises ValueError where `output` holds something else than this run, data and network do not match, or
    the network cannot be exported under its name.
    """
    began = time.perf_counter()
    hardware.set_up("fp32", device)
    if export is not None:
        _check_exportable(recipe.model)
    net, card = build_network(recipe.model, recipe.seed)
    _check_folder(recipe, output)
    train_set, test_set = load_splits(recipe.data, card, recipe.augmentation.crop_padding)
    trained = replace(_relabelled(card, train_set.class_names), input_size=recipe.data.size or card.input_size)
    if export is not None and trained != card:
        raise ValueError(
            f"export: the data's classes or size are not those of {card.name}, whose weights these would be"
        )
    checkpoint = output / "checkpoint.pt"
    output.mkdir(parents=True, exist_ok=True)
    (output / "recipe.yaml").write_text(dump_yaml(to_plain(recipe)), encoding="utf-8")
    done = _epochs_done(checkpoint)
    if not done:
        (output / "metrics.jsonl").unlink(missing_ok=True)
    progress = progress_reporter()
    progress.message(f"training {recipe.model} on {len(train_set)} images; a step is one epoch")
    progress.start(recipe.schedule.epochs, resumed_at=done)
    with Metrics(output / "metrics.jsonl") as metrics:

        def report(state: Progress) -> None:
            metrics.write(vars(state))
            progress.step(state.epoch - 1, {"loss": state.loss, "accuracy": state.accuracy})

        try:
            net = train(
                net,
                train_set,
                test_set,
                mean=card.mean,
                std=card.std,
                schedule=recipe.schedule,
                augmentation=recipe.augmentation,
                seed=recipe.seed,
                device=device,
                compile_net=recipe.compile and hardware.can_compile(device),
                checkpoint=checkpoint,
                report=report,
            )
        finally:
            progress.close()
    weights = output / "weights.safetensors"
    save_weights(net, weights, trained)
    summary: dict[str, Any] = {
        "model": recipe.model,
        "accuracy": evaluate(net, test_set, mean=card.mean, std=card.std, device=device),
        "train_images": len(train_set),
        "test_images": len(test_set),
        "epochs": recipe.schedule.epochs,
        "sha256": sha256(weights),
        "device": str(device),
        "torch": str(torch.__version__),
        "wall_seconds": time.perf_counter() - began,
    }
    if export is not None:
        provenance = Provenance(trained_on(recipe.data), command)
        summary["exported_accuracy"] = export_weights(net, card, export, provenance, test_set, device)
    write_json(output / "summary.json", summary)
    return summary


def build_network(spec: str, seed: int) -> tuple[nn.Module, ModelCard]:
    """The network to train, its parameters free, and its card.

    `@random` is the factory's own initialisation right after `torch.manual_seed(seed)`, so that runs of
    several seeds differ; the global generator keeps its state. Other weights are those of `create_model`.
    """
    parsed = parse_spec(spec)
    if parsed.weights != "random":
        net, card = create_model(parsed)
        if card.family == "edge_popup":
            raise ValueError(f"{parsed.name}: the scores of a subnet are learned from the start; ask for @random")
        return net.requires_grad_(True), card
    card, entry = model_card(parsed), _find(parsed)
    if card.num_classes < 1:
        raise ValueError(f"{card.name} has no classifier; give one as {card.name}:num_classes=N@random")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return entry.factory(**_options(entry, parsed)).float(), card


def load_splits(data: DataSpec, card: ModelCard, crop_padding: int) -> tuple[LabelledImages, LabelledImages]:
    """The training and the test set, at `data.size` or the network's input size.

    Raises ValueError where their classes differ from each other or in number from the network's, or where
    the images are too small for the crop.
    """
    size = data.size or card.input_size
    if crop_padding >= size:
        raise ValueError(f"augmentation.crop_padding: {crop_padding} must be below the image size {size}")
    train_set, test_set = (load_images(data.path, split, size) for split in (data.train, data.test))
    if train_set.class_names != test_set.class_names:
        raise ValueError(f"data: the splits {data.train} and {data.test} of {data.path} have different classes")
    classes = len(train_set.class_names)
    if classes != card.num_classes:
        raise ValueError(
            f"data: {data.path} has {classes} classes, {card.name} has {card.num_classes};"
            f" ask for {card.name}:num_classes={classes}@random"
        )
    return train_set, test_set


def trained_on(data: DataSpec) -> str:
    """The data set's name for a record: its file, without the folders above it, and the splits."""
    return f"{Path(data.path).name}, {data.train}; accuracy on {data.test}"


def _relabelled(card: ModelCard, class_names: tuple[str, ...]) -> ModelCard:
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


def _check_folder(recipe: TrainingRecipe, output: Path) -> None:
    if output.exists() and not output.is_dir():
        raise ValueError(f"output: {output} is a file; give a folder")
    if not output.is_dir() or not any(output.iterdir()):
        return
    stored = output / "recipe.yaml"
    if not stored.is_file():
        raise ValueError(f"output: {output} is not empty and holds no training run; give another folder")
    changed = [path for path in differences(load_yaml(stored), to_plain(recipe)) if path != "data.path"]
    if changed:
        shown = ", ".join(changed[:5]) + (", …" if len(changed) > 5 else "")
        raise ValueError(f"output: {output} holds a run that differs in {shown}; give another folder")


def _epochs_done(checkpoint: Path) -> int:
    if not checkpoint.exists():
        return 0
    return int(torch.load(checkpoint, map_location="cpu", weights_only=True)["epoch"])
