"""A dataset from a plan: batch after batch, each written when it is finished."""

from __future__ import annotations

import re
import time
from collections import Counter
from dataclasses import asdict, replace

import torch

from ensemble.config.parsing import to_plain
from ensemble.engine.inversion import Inversion
from ensemble.image.pictures import to_eight_bits
from ensemble.image.warm import Warm
from ensemble.machine.errors import Failure
from ensemble.machine.files import JsonLines
from ensemble.machine.hardware import set_up
from ensemble.machine.launch import stop_on_signals
from ensemble.machine.progress import FallingSilent, ProgressReporter
from ensemble.machine.ranks import ProcessContext
from ensemble.machine.words import plural
from ensemble.runs.build import Earlier, PlacedEnsemble, build_ensemble, build_inversion, looks_back
from ensemble.runs.checkpoints import Restored, changed, compare_ranks, saved_runtime, versions
from ensemble.runs.dataset_end import Finished, finish
from ensemble.runs.dataset_folder import Begun, DatasetFolder, Row, Wanted
from ensemble.runs.plan import Plan, own_targets
from ensemble.runs.prepare import agree_on_auto, micro_batch_of, notes_of
from ensemble.runs.results import recipe_text
from ensemble.runs.summary import load_verifiers
from ensemble.runs.trial import Clock, Interrupted, Replica, count, show

POOL = 1024
"""Earlier images that a warm start draws from: the last ones. All of them would not fit into memory."""


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
    saved = None
    with context.agree():
        if context.is_main and resume and folder.goes_on():
            saved = to_plain(folder.read_recipe().runtime)
    saved = context.broadcast(saved)
    if saved is not None:
        plan = saved_runtime(plan, saved)
    set_up(plan.recipe.runtime.precision, context.device)
    with context.agree():
        ensemble = build_ensemble(plan, replica)
    with context.agree():
        verifiers = load_verifiers(plan) if context.is_main else {}
    plan = plan.with_runtime(micro_batch=micro_batch_of(plan, ensemble, context, replica, progress.message))
    with context.agree():  # a folder is touched once nothing is refused
        build_inversion(plan, ensemble, replica, 0)
    with context.agree():
        if context.is_main:  # again: another may have made something there before this held it
            folder.check(plan.recipe, wanted, resume=resume, overwrite=overwrite)
    here = Replica(plan, None, replica, ensemble, Restored({}), progress, None, Clock(began), keeps_partial=False)
    try:
        missing = _open(here, context, folder, wanted, command, goes_on=saved is not None)
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
            rows: dict[int, Row] = {}
            if goes_on:
                begun, rows = _left(here, folder, begun, wanted)
                folder.go_on(begun, recipe, rows)
            else:
                folder.begin(begun, recipe)
            missing = [batch for batch in range(wanted.batches) if batch not in rows]
    return context.broadcast(missing)


def _left(here: Replica, folder: DatasetFolder, now: Begun, wanted: Wanted) -> tuple[Begun, dict[int, Row]]:
    """How the dataset began, and its batches that are whole; ValueError where it began with other weights."""
    begun, rows, tell = folder.begun(), folder.rows(), here.progress.message
    assert begun is not None
    if names := changed(begun.weights, now.weights):
        raise ValueError(f"resume: weights or statistics of {names} are not those that the dataset began with")
    if rows:
        tell(f"checking {plural(len(rows), 'shard')}")
    folder.check_shards(rows)
    for batch, row in rows.items():
        if not folder.is_there(batch):
            tell(f"warning: {folder.shards / row.file} is gone; it is made again")
    others = [f"{k} {begun.versions.get(k)} -> {v}" for k, v in now.versions.items() if begun.versions.get(k) != v]
    if others:
        tell(f"warning: the dataset began with other versions, its images may differ in bits: {', '.join(others)}")
    if now.ranks != begun.ranks and here.plan.recipe.runtime.reproducible == "placement":
        tell(
            f"warning: the dataset began on {begun.ranks} ranks a batch and goes on on {now.ranks}: its images are "
            "those of an uninterrupted one up to rounding, under --reproducible ranks to the bit"
        )
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
        row = Row(file, n, seed, sha256, time.perf_counter() - began, passes, gflop)
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
    """Passes with gradient of all teachers through all images of the batch, and their operations in units of 1e9."""
    acted: Counter[int] = Counter()
    for step in range(inversion.step):
        acted.update(inversion.weights_at(step).keys())
    images = inversion.loss.images
    flops = sum(ensemble.teachers[t].cost * times for t, times in sorted(acted.items()))
    return images * acted.total(), images * flops / 1e9


def _earlier(here: Replica, folder: DatasetFolder, batch: int, wanted: Wanted) -> Earlier | None:
    """The last images before the batch, as they are stored, on every rank; as many as the recipe looks back at."""
    plan = here.plan
    if not looks_back(plan) or not batch:
        return None
    most = max(plan.formulation.memory, POOL if isinstance(plan.recipe.image.start, Warm) else 0)
    first = max(0, batch - -(-most // wanted.size))
    images: list[torch.Tensor] = []
    with here.context.agree():
        if here.context.is_main:
            images = [folder.shard(number).pixels() for number in range(first, batch)]
    pixels = here.context.broadcast(torch.cat(images) if images else torch.empty(0))
    targets = torch.cat([plan.targets(number) for number in range(first, batch)])
    return pixels[-most:].float() / 255, targets[-most:]
