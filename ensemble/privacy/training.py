"""Networks of a recipe that learned some of the images in question and not the others."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from ensemble.data.labelled import LabelledImages
from ensemble.machine.files import write_bytes
from ensemble.machine.rng import generator
from ensemble.privacy.members import Shadows
from ensemble.privacy.membership import answers
from ensemble.training.augment import Augmentation
from ensemble.training.loop import train
from ensemble.training.recipe import TrainingRecipe
from ensemble.training.run import build_network
from ensemble.training.schedule import Schedule
from models import ModelCard

_QUICK_EPOCHS = 2


class Haste(Protocol):
    @property
    def quick(self) -> bool: ...

    @property
    def seed(self) -> int: ...


def learned(
    model: str,
    images: LabelledImages,
    watched: LabelledImages,
    *,
    schedule: Schedule,
    augmentation: Augmentation,
    seed: int,
) -> tuple[nn.Module, ModelCard]:
    """A network of this name that learned the images on the CPU, and its card; the seed is of weights and order."""
    net, card = build_network(model, seed)
    made = train(
        *(net, card, images, watched),
        schedule=schedule,
        augmentation=augmentation,
        seed=seed,
        device=torch.device("cpu"),
        compile_net=False,
    )
    return made, card


def train_shadows(
    recipe: TrainingRecipe,
    count: int,
    members: LabelledImages,
    others: LabelledImages,
    given: Haste,
    mark: Callable[[str], None],
    kept: Path | None = None,
) -> Shadows:
    """`count` networks, each trained as the recipe says on a half of the members and non-members, drawn by image.

    Each image is in with p = 1/2, by itself, so that how often others hold it says nothing of the target. Fewer images
    than the target learned, so a lower bound. `quick` trains two epochs. ValueError as training raises it.

    What each network says is written into the folder `kept` once it is trained, under a name by the recipe, first
    weights, images and seed: the next call with these reads it there, one with others leaves it.
    """
    images, labels = torch.cat([members.images, others.images]), torch.cat([members.labels, others.labels])
    both = LabelledImages(images, labels, members.class_names)
    schedule = (
        replace(recipe.schedule, epochs=min(_QUICK_EPOCHS, recipe.schedule.epochs)) if given.quick else recipe.schedule
    )
    made_of = hashlib.sha256(repr((recipe.model, schedule, recipe.augmentation, given.seed)).encode())
    both.hash_into(made_of)
    for tensor in build_network(recipe.model, given.seed)[0].state_dict().values():  # a plugin's network may be another
        made_of.update(tensor.numpy().tobytes())
    rows, inside = [], []
    for k in range(count):
        within = torch.rand(len(labels), generator=generator(given.seed, "shadow", k)) < 0.5
        inside.append(within)
        file = None if kept is None else kept / f"{made_of.hexdigest()[:12]}_{k:03d}.safetensors"
        own = f"{k} of {made_of.hexdigest()}"
        row = None if file is None else _read(file, own)
        if row is not None:
            mark(f"reference network {k + 1} of {count} was trained before: {file}")
        else:
            mark(f"training reference network {k + 1} of {count}")
            net, card = learned(
                recipe.model,
                *(both.subset(within), both.subset(slice(100))),
                schedule=schedule,
                augmentation=recipe.augmentation,
                seed=given.seed + k,
            )
            row = answers(net, card, images, labels).margins
            if file is not None:
                file.parent.mkdir(parents=True, exist_ok=True)
                write_bytes(file, save({"margins": row.contiguous()}, {"made_of": own}))
        rows.append(row)
    return Shadows(torch.stack(rows), torch.stack(inside))


def _read(file: Path, made_of: str) -> torch.Tensor | None:
    """The margins in the file; None where it is not there, damaged, or of something else."""
    try:
        with safe_open(file, "pt") as held:
            return held.get_tensor("margins") if (held.metadata() or {}).get("made_of") == made_of else None
    except (OSError, SafetensorError):
        return None
