"""A dataset that is checked and may begin."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ensemble.config.parsing import to_plain
from ensemble.machine.files import user_path
from ensemble.machine.hardware import choose_devices
from ensemble.machine.progress import ProgressReporter
from ensemble.machine.ranks import process_context
from ensemble.recipe import Recipe
from ensemble.runs.build import looks_back
from ensemble.runs.dataset import make_dataset
from ensemble.runs.dataset_end import Finished
from ensemble.runs.dataset_folder import DatasetFolder, Wanted
from ensemble.runs.job import held_for_all
from ensemble.runs.origin import changed, file_digests
from ensemble.runs.plan import Plan, check_placement, make_plan
from ensemble.runs.recipes import assembled, read_recipe

_ANY = 10**9
"""Trials of a recipe while it is not known how many batches there are."""


@dataclass(frozen=True)
class DatasetJob:
    """A plan with a trial for each batch, the devices it is for, how many images, and where they go."""

    plan: Plan
    device: torch.device
    """Of this process."""
    devices: Sequence[torch.device]
    """All that are known to take part."""
    folder: DatasetFolder
    wanted: Wanted
    resume: bool
    overwrite: bool
    command: str

    @property
    def is_finished(self) -> bool:
        """Whether it is to go on with a dataset that has so many images, and was read by the same verifiers.

        Not where a file that decides images is another now: to go on is refused then.
        """
        if not self.resume or not self.folder.finished:
            return False
        manifest, rows, begun = self.folder.read_manifest(), self.folder.rows(), self.folder.begun()
        known = (begun.weights if begun is not None else {}) | manifest.get("files", {})
        if changed(known, file_digests(self.plan.all_files)):
            return False
        listed = [batch for batch in rows if self.folder.is_there(batch)]
        judges = {name: judge.get("model") for name, judge in manifest.get("verifiers", {}).items()}
        asked = dict(zip(self.plan.verifier_names, self.plan.recipe.verifiers, strict=True))
        whole = manifest.get("images") == self.wanted.images and listed == [*range(self.wanted.batches)]
        return whole and judges == asked

    def check(self, ranks: int) -> None:
        """ValueError where the dataset may not be written, or cannot be computed so on so many ranks."""
        self.folder.check(self.plan.recipe, self.wanted, resume=self.resume, overwrite=self.overwrite)
        check_placement(self.plan, ranks)

    def run(self, began: float, progress: ProgressReporter) -> Finished | None:
        """What `make_dataset` returns, as a process of its own or as one of torchrun's ranks."""
        with process_context(self.device) as context, held_for_all(self.folder, context):
            return make_dataset(
                self.plan,
                context,
                self.folder,
                self.wanted,
                resume=self.resume,
                overwrite=self.overwrite,
                began=began,
                progress=progress,
                command=self.command,
            )


def dataset_job(
    source: str | Path | Mapping[str, Any] | None,
    fields: Mapping[str, Any],
    overrides: Sequence[str],
    output: str | Path,
    images: int | None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    command: str = "",
) -> DatasetJob:
    """The job of so many images of a recipe (a file, a shipped name, plain data); its `trials` follow from them.

    Where `output` goes on, recipe and number of images may be left out. Raises ValueError for what recipe, cards,
    devices and files do not allow.
    """
    folder = DatasetFolder(user_path(output))
    begun = folder.begun() if resume else None
    if images is None and begun is not None:
        images = begun.images
    if images is None:
        raise ValueError("images: say how many the dataset is to have, with --images N")
    if images < 1:
        raise ValueError(f"images: must be at least 1, not {images}")
    if source is None and not folder.goes_on():
        raise ValueError(f"name teachers or a recipe; {output} holds no dataset to go on with")
    data = to_plain(folder.read_recipe()) if source is None else source
    if isinstance(data, str | Path):
        data = read_recipe(data)
    recipe = assembled(data, {**fields, "trials": _ANY}, overrides)
    device, devices = choose_devices(recipe.runtime.device)
    plan, wanted = _plan(recipe, devices, images)
    return DatasetJob(plan, device, devices, folder, wanted, resume, overwrite, command)


def _plan(recipe: Recipe, devices: Sequence[torch.device], images: int) -> tuple[Plan, Wanted]:
    """The plan with a trial for each batch; a batch's size is known once targets are read beside the cards."""
    replicas = recipe.runtime.replicas
    notes = [*_notes(recipe)]
    recipe = replace(recipe, agreement=False, attribution=False)
    plan = make_plan(replace(recipe, trials=max(2, replicas)), devices)
    wanted = Wanted(images, plan.batch_size)
    if problems := [*_problems(plan, wanted)]:
        raise ValueError(problems)
    plan = make_plan(replace(recipe, trials=wanted.batches), devices)
    if more := wanted.batches * wanted.size - images:
        notes.append(f"{_batches_of(wanted)} are made, and the last {more} of their images left out")
    return replace(plan, notes=(*plan.notes, *notes)), wanted


def _problems(plan: Plan, wanted: Wanted) -> Iterator[str]:
    batches = f"{wanted.images} images are {_batches_of(wanted)}"
    if plan.recipe.runtime.replicas > wanted.batches:
        yield f"runtime.replicas: {batches}, fewer than {plan.recipe.runtime.replicas} replicas; ask for more images"
    if looks_back(plan) and wanted.batches == 1:
        yield f"images: the recipe goes back to the batches before, and {batches}; ask for more (--images)"
    first = plan.cards[0]
    for i, entry in enumerate(plan.recipe.teachers):
        if entry.classes is not None and len(entry.classes) < first.num_classes:
            yield (
                f"teachers[{i}].classes: a dataset has every teacher's logits of all {first.num_classes} classes of "
                f"{first.name}, and {len(entry.classes)} are mapped; map all of them"
            )


def _batches_of(wanted: Wanted) -> str:
    return f"{wanted.batches} batch{'es' * (wanted.batches > 1)} of {wanted.size}"


def _notes(recipe: Recipe) -> Iterator[str]:
    if recipe.agreement:
        yield "agreement: a dataset does not compare the teachers' gradients"
    if recipe.attribution:
        yield "attribution: a dataset does not keep which teacher pulled where"
    if recipe.image.start.memory:
        yield f"a {recipe.image.start.kind} start draws from the last {recipe.image.start.memory} images"
