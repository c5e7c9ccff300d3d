"""A dataset from a plan: batch after batch, each written when it is finished."""

from __future__ import annotations

import re
import time
from collections import Counter
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch

from ensemble.config.parsing import to_plain
from ensemble.engine.inversion import Inversion
from ensemble.image.pictures import to_eight_bits
from ensemble.machine.errors import Failure
from ensemble.machine.files import JsonLines
from ensemble.machine.launch import stop_on_signals
from ensemble.machine.output_folder import writing
from ensemble.machine.progress import FallingSilent, ProgressReporter
from ensemble.machine.ranks import ProcessContext
from ensemble.machine.words import plural
from ensemble.runs.build import Earlier, PlacedEnsemble, build_inversion, looks_back
from ensemble.runs.checkpoints import Restored, compare_ranks, saved_runtime
from ensemble.runs.dataset_end import Finished, finish
from ensemble.runs.dataset_folder import BatchRow, Begun, DatasetFolder, Wanted
from ensemble.runs.history import History
from ensemble.runs.origin import file_digests, versions
from ensemble.runs.plan import Plan, own_targets
from ensemble.runs.prepare import agree_on_auto, notes_of, ready
from ensemble.runs.results import recipe_text
from ensemble.runs.trial import Clock, Interrupted, Replica, count, show


def make_dataset(
    plan: Plan,
    context: ProcessContext,
    folder: DatasetFolder,
    wanted: Wanted,
    *,
    resume: bool,
    overwrite: bool,
    began: float,
    progress: ProgressReporter,
    command: str = "",
) -> Finished | None:
    """Make what is missing of the images; what is to be told of them on rank 0, None on the others.

    Raises ValueError for a user's mistake, NotFiniteError where a loss stops being a number,
    MachineFailure where the disk or another rank fails, and Interrupted after a stop that was asked for: batches that
    were finished stay.
    """
    progress = FallingSilent(progress)
    agree_on_auto(plan, context)
    replica = context.split(plan.recipe.runtime.replicas)
    found: tuple[Begun, dict[str, Any]] | None = None
    with context.agree():
        if context.is_main and resume and folder.goes_on() and (begun := folder.begun()):
            found = begun, to_plain(folder.read_recipe().runtime)
    found = context.broadcast(found)
    check = None
    if found is not None:
        plan = saved_runtime(plan, found[1])
        check = partial(found[0].origin.check_weights, what="dataset")
    plan, ensemble, verifiers = ready(plan, context, replica, 0, progress.message, check)
    with context.agree():
        if context.is_main:  # again: another may have made something there before this held it
            folder.check(plan.recipe, wanted, resume=resume, overwrite=overwrite)
    here = Replica(
        plan=plan,
        folder=None,
        context=replica,
        ensemble=ensemble,
        restored=Restored({}),
        progress=progress,
        metrics=None,
        clock=Clock(began),
        history=History(),
        keeps_partial=False,
        digests={**ensemble.files, **file_digests(plan.files_of_networks)} if context.is_main else {},
    )
    try:
        missing = _open(here, context, folder, wanted, command, goes_on=found is not None)
        for text in notes_of(plan, ensemble):
            progress.message(text)
        with stop_on_signals(here.stop):
            _make(here, context, folder, wanted, missing)
            with here.waiting(context):
                context.gather(None)
            return finish(here, folder, wanted, verifiers) if context.is_main else None
    except Failure as error:
        here.tells(error)
        raise
    finally:
        progress.close()


# --- before the first step ------------------------------------------------------------------------------------


def _open(
    here: Replica, context: ProcessContext, folder: DatasetFolder, wanted: Wanted, command: str, *, goes_on: bool
) -> list[int]:
    """Rank 0 begins the folder, or goes on with it; the batches that are missing."""
    missing: list[int] = []
    with context.agree():
        if context.is_main:
            recipe = recipe_text(here.plan.recipe)
            weights, world = here.ensemble.weights, here.context.world_size
            begun = Begun(wanted.images, weights, versions(context.device), world, command)
            rows: dict[int, BatchRow] = {}
            if goes_on:
                begun, rows = _left(here, folder, begun, wanted)
            with writing(folder.path):
                if goes_on:
                    folder.go_on(begun, recipe, rows)
                else:
                    folder.begin(begun, recipe)
            missing = [batch for batch in range(wanted.batches) if batch not in rows]
    return context.broadcast(missing)


def _left(here: Replica, folder: DatasetFolder, now: Begun, wanted: Wanted) -> tuple[Begun, dict[int, BatchRow]]:
    """How the dataset began, and its batches that are whole."""
    begun, rows, tell = folder.begun(), folder.rows(), here.progress.message
    assert begun is not None
    if rows:
        tell(f"checking {plural(len(rows), 'shard')}")
    folder.check_shards(rows)
    for batch, row in rows.items():
        if not folder.is_there(batch):
            tell(f"warning: {folder.shards / row.file} is gone; it is made again")
    for text in begun.origin.notes(now.origin, "dataset", here.plan.recipe.runtime):
        tell(f"warning: {text}")
    whole = {batch: row for batch, row in rows.items() if folder.is_there(batch) and row.images == wanted.of(batch)}
    command = re.sub(r"(--images[ =])\d+", rf"\g<1>{wanted.images}", begun.command or now.command)
    return replace(begun, images=wanted.images, command=command), whole


# --- batches --------------------------------------------------------------------------------------------------


def _make(here: Replica, context: ProcessContext, folder: DatasetFolder, wanted: Wanted, missing: list[int]) -> None:
    """This replica's share of the missing batches."""
    replica, steps = here.context, here.plan.recipe.iterations
    mine = missing[replica.replica :: replica.replicas]
    there = (wanted.batches - len(missing)) // replica.replicas
    here.progress.start(steps * (there + len(mine)), steps * there)
    with context.agree():  # all are open before any is written: opening cuts off what a crash left half written
        lines = folder.open_rows() if replica.is_main else None
    began, made = time.perf_counter(), 0
    try:
        for number, batch in enumerate(mine, there):
            here.steps_done = number * steps
            here.pace |= {"batch": number + 1, "of": there + len(mine)}
            _make_batch(here, folder, batch, wanted, lines)
            made += wanted.of(batch) * replica.replicas
            here.pace["images an hour"] = made / (time.perf_counter() - began) * 3600
    finally:
        if lines is not None:
            lines.close()


def _make_batch(here: Replica, folder: DatasetFolder, batch: int, wanted: Wanted, lines: JsonLines | None) -> None:
    """Optimises a batch and writes its shard, then the line that lists it."""
    plan, replica, began = here.plan, here.context, time.perf_counter()
    inversion = build_inversion(plan, here.ensemble, replica, batch, _earlier(here, folder, batch, wanted))
    _take_steps(here, batch, inversion)
    compare_ranks(replica, inversion.state()[0], inversion.step)
    pixels, logits = _as_stored(here, inversion)
    n, seed = wanted.of(batch), plan.recipe.seed + batch
    with replica.agree():
        if lines is None:
            return
        said = {name: rows[:n] for name, rows in logits.items()}
        file, sha256 = folder.write_shard(batch, pixels[:n], plan.targets(batch)[:n], said, seed)
        passes, gflop = _cost(here.ensemble, inversion)
        row = BatchRow(file, n, seed, sha256, time.perf_counter() - began, passes, gflop)
        lines.write(asdict(row))
        if batch == 0:
            folder.write_grid(plan.class_names)


def _take_steps(here: Replica, batch: int, inversion: Inversion) -> None:
    """All steps of a batch; Interrupted after a stop that was asked for, with what is to be done then."""
    inversion.ask(stop=here.stop.asked)
    for step in inversion:
        count(here, step)
        show(here, batch, step)
        if step.stop and not step.last:
            raise Interrupted(
                f"stopped at step {inversion.step} of batch {batch}; finished batches are kept; to go on, run the same "
                "command with --resume"
            )
        inversion.ask(stop=here.stop.asked)
    here.first_losses.clear()


def _as_stored(here: Replica, inversion: Inversion) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The images in 8 bits, rounded, (N, 3, H, W); and what every teacher says of these, in the classes of the first.

    All ranks must call it.
    """
    images = inversion.result()
    pixels = to_eight_bits(images)
    here.context.from_owner_(pixels)
    said = inversion.loss.read(pixels.to(images.dtype) / 255).logits
    plan = here.plan
    classes = torch.arange(plan.cards[0].num_classes)
    columns = [own_targets(classes, entry, plan.cards[0]) for entry in plan.recipe.teachers]
    told = {name: said[name].cpu()[:, own] for name, own in zip(plan.names, columns, strict=True)}
    return pixels.cpu(), {name: told[name] for name in plan.teachers}


def _cost(ensemble: PlacedEnsemble, inversion: Inversion) -> tuple[int, float]:
    """Passes with gradient of all teachers through all images of the batch, and operations in units of 1e9.

    Those of a student beside them count as operations, and as no passes.
    """
    acted: Counter[int] = Counter()
    for step in range(inversion.step):
        acted.update(inversion.weights_at(step).keys())
    images = inversion.loss.images
    flops = sum(ensemble.teachers[t].cost * times for t, times in sorted(acted.items()))
    return images * sum(acted[t] for t in inversion.loss.teachers), images * flops / 1e9


def _earlier(here: Replica, folder: DatasetFolder, batch: int, wanted: Wanted) -> Earlier | None:
    """The last images before the batch, as they are stored, on every rank; as many as the recipe looks back at."""
    plan = here.plan
    most = looks_back(plan)
    if not most or not batch:
        return None
    first = max(0, batch - -(-most // wanted.size))
    images: list[torch.Tensor] = []
    with here.context.agree():
        if here.context.is_main:
            images = [folder.shard(number).pixels() for number in range(first, batch)]
    pixels = here.context.broadcast(torch.cat(images) if images else torch.empty(0))
    targets = torch.cat([plan.targets(number) for number in range(first, batch)])
    return pixels[-most:].float() / 255, targets[-most:]
