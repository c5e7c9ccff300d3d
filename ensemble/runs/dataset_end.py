"""What ends a dataset: what it cost, what verifiers read, and the manifest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from ensemble.data.shards import FORMAT, class_labels
from ensemble.evaluation.classification import logits_of
from ensemble.evaluation.intervals import clopper_pearson
from ensemble.machine.errors import MachineFailure
from ensemble.runs.dataset_folder import BatchRow, DatasetFolder, Wanted
from ensemble.runs.origin import versions
from ensemble.runs.plan import Plan
from ensemble.runs.summary import Verifiers
from ensemble.runs.trial import Replica
from models import ModelCard


@dataclass(frozen=True)
class Finished:
    """What is to be told of a finished dataset."""

    manifest: Mapping[str, Any]
    cost: Mapping[str, Any]


def finish(here: Replica, folder: DatasetFolder, wanted: Wanted, verifiers: Verifiers) -> Finished:
    """Writes the grid, what it cost, and at last the manifest; all but the time follows from recipe and shards."""
    plan, rows = here.plan, folder.rows()
    if missing := wanted.batches - len(rows):  # a shared disk that shows the ranks different files
        raise MachineFailure(f"{missing} batches are not listed in {folder.path}; run the same command with --resume")
    passes = sum(row.passes for row in rows.values()) / wanted.images
    gflop = sum(row.gflop for row in rows.values()) / wanted.images
    seconds = sum(row.seconds for row in rows.values())
    work = {"passes_per_image": passes, "gflop_per_image": gflop}
    time = {"images": wanted.images, "seconds": seconds, "seconds_per_image": seconds / wanted.images}
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "images": wanted.images,
        "size": plan.size,
        "class_names": list(plan.class_names),
        "per_class": _per_class(plan, wanted),
        "teachers": _teachers(here, folder, rows, wanted),
        "files": dict(here.digests),
    }
    if verifiers:
        read = {name: _verified(here, *judge, folder, rows) for name, judge in verifiers.items()}
        manifest["verifiers"] = {
            name: {"model": model, **read[name]}
            for name, model in zip(plan.verifier_names, plan.recipe.verifiers, strict=True)
        }
    manifest["shards"] = [
        {"file": row.file, "images": row.images, "seed": row.seed, "sha256": row.sha256} for row in rows.values()
    ]
    begun = folder.begun()
    manifest |= {"cost": work, "versions": versions(here.context.device), "command": (begun and begun.command) or None}
    folder.write_grid(plan.class_names)
    folder.write_end(time | work, manifest)
    return Finished(manifest, time | work)


def _per_class(plan: Plan, wanted: Wanted) -> dict[str, int]:
    """How many images each class has, of those that have any."""
    found: Counter[int] = Counter()
    for batch in range(wanted.batches):
        found.update(plan.targets(batch)[: wanted.of(batch)].tolist())
    labels = class_labels(plan.class_names, plan.cards[0].num_classes)
    return {labels[target]: found[target] for target in sorted(found)}


def _teachers(here: Replica, folder: DatasetFolder, rows: Mapping[int, BatchRow], wanted: Wanted) -> dict[str, Any]:
    """By name: which network with which weights, and how many of the stored images it reads as their target."""
    right: Counter[str] = Counter()
    for batch in rows:
        shard = folder.shard(batch)
        for name in here.plan.teachers:
            right[name] += int((shard.logits(name).argmax(1) == shard.targets()).sum())
    found: dict[str, Any] = {}
    for placed, entry in zip(here.ensemble.teachers, here.plan.recipe.teachers, strict=True):
        if entry.student:
            continue
        name, loaded = placed.profile.name, placed.profile.card.loaded
        found[name] = {"model": entry.model, "sha256": loaded.sha256 if loaded else None}
        found[name]["input"] = placed.profile.card.input_convention
        if entry.classes is not None:
            found[name]["classes"] = entry.classes
        if placed.measurement is not None:
            found[name]["statistics"] = placed.measurement.digest
        found[name]["accuracy"] = right[name] / wanted.images
    return found


def _verified(
    here: Replica, net: nn.Module, card: ModelCard, folder: DatasetFolder, rows: Mapping[int, BatchRow]
) -> dict[str, Any]:
    """A verifier's weights, and its accuracy on the stored images with its 95 % interval."""
    net, right, images = net.to(here.context.device), 0, 0
    for batch in rows:
        shard = folder.shard(batch)
        reads = logits_of(net, card, shard.pixels() / 255).argmax(1)
        right += int((reads == shard.targets()).sum())
        images += shard.images
    sha256 = card.loaded.sha256 if card.loaded else None
    return {"sha256": sha256, "accuracy": right / images, "interval": list(clopper_pearson(right, images))}
