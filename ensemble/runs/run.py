"""One run from a plan to its results: trials over replicas, verifiers, summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ensemble.engine.agreement import Agreement
from ensemble.engine.guard import NotFiniteError
from ensemble.machine.checkpoint import CheckpointError
from ensemble.machine.errors import Failure
from ensemble.machine.files import JsonLines
from ensemble.machine.launch import stop_on_signals
from ensemble.machine.output_folder import writing
from ensemble.machine.progress import FallingSilent, ProgressReporter
from ensemble.machine.ranks import ProcessContext
from ensemble.runs.checkpoints import Restored, from_main, read_checkpoints, saved_runtime
from ensemble.runs.folder import ResultsFolder
from ensemble.runs.history import History
from ensemble.runs.origin import Origin, file_digests, versions
from ensemble.runs.plan import Plan, left_out, own_targets
from ensemble.runs.prepare import agree_on_auto, notes_of, ready
from ensemble.runs.results import Results, image_rows, recipe_text
from ensemble.runs.summary import Verifiers, layer_rows, summarise, verify, warnings_of
from ensemble.runs.tensorboard import Board
from ensemble.runs.trial import Clock, Replica, run_trial
from ensemble.runs.trial_results import TrialResults


def run(
    plan: Plan,
    context: ProcessContext,
    folder: ResultsFolder | None,
    *,
    resume: bool,
    overwrite: bool,
    began: float,
    progress: ProgressReporter,
    keeps_partial: bool = False,
    command: str = "",
    tensorboard: Path | None = None,
) -> Results | None:
    """Run all trials; the results on rank 0, None on the others. `folder` None writes nothing.

    Everything that can be checked is checked before the output folder is touched. Raises ValueError for a
    user's mistake, NotFiniteError where a loss stops being a number (the last good images are written),
    MachineFailure where the disk or another rank fails, and Interrupted after a stop that was asked for, unless
    `keeps_partial` is to give what there is. `command`, how the run was asked for, goes into the summary. Scalars
    and grids of images go into the folder `tensorboard`.
    """
    progress = FallingSilent(progress)
    agree_on_auto(plan, context)
    replica = context.split(plan.recipe.runtime.replicas)
    trials = range(replica.replica, plan.recipe.trials, replica.replicas)
    restored = Restored({})
    if resume and folder is not None:
        restored, plan = _restore(plan, folder, context, replica, trials)
    plan, ensemble, verifiers = ready(plan, context, replica, trials[0], progress.message, restored.check_weights)
    recipe = plan.recipe
    told = [one for some in context.gather(restored.told if replica.is_main else []) for one in some]
    history = History.of(told, recipe.iterations, command)
    metrics: JsonLines | None = None
    if folder is not None:
        removed = _open(plan, folder, context, restored, trials, resume or overwrite, history.notes())
        if removed:
            progress.message("what was read of units' images is removed; invert.py units --resume reads the new ones")
        with context.agree():  # all are open before any is written: opening cuts off what a crash left half written
            metrics = folder.open_metrics() if replica.is_main else None
    here = Replica(
        plan=plan,
        folder=folder,
        context=replica,
        ensemble=ensemble,
        restored=restored,
        progress=progress,
        metrics=metrics,
        clock=Clock(began),
        history=history,
        keeps_partial=keeps_partial,
        first_losses=restored.first_losses,
        digests={**ensemble.files, **file_digests(plan.files_of_networks)} if context.is_main else {},
    )
    if tensorboard is not None and replica.is_main:
        here.board = Board(tensorboard, plan)
    try:
        _tell_notes(here, context)
        here.steps_done = sum(restored.steps(trial) for trial in trials)
        progress.start(recipe.iterations * len(trials), here.steps_done)
        with stop_on_signals(here.stop):
            for trial in trials:
                if restored.finished(trial, recipe.iterations):
                    here.done[trial] = restored.results(trial)
                else:
                    here.partial = run_trial(here, trial)
                if here.partial:
                    break
                if folder is not None and recipe.trials > 1 and replica.replicas == 1 and context.is_main:
                    _write_images(folder, plan, here.done)
            _collect(context, here)
            summary = summarise(plan, context, here.done, here.told())
            return _finish(here, verifiers, summary) if context.is_main else None
    except Failure as error:
        if isinstance(error, NotFiniteError):
            _keep_last_good(here, error)
        here.tells(error)
        raise
    finally:
        progress.close()
        if here.board is not None:
            here.board.close()
        if metrics is not None:
            metrics.close()


def _finish(here: Replica, verifiers: Verifiers, summary: dict[str, Any]) -> Results:
    """All results, written where there is a folder; the summary of a run that was stopped is not."""
    results = _results(here, verifiers, summary)
    if here.folder is not None:
        results.write(here.folder)
        if not here.partial:
            here.folder.write_summary(results.summary)
    for text in results.summary["warnings"]:
        here.progress.message(f"warning: {text}")
    return results


def _keep_last_good(here: Replica, error: NotFiniteError) -> None:
    """The images of trials that ended and the last good ones of this one: written, or else left on the error."""
    images, _ = _images_and_targets(here.plan, here.done)
    error.images = images
    if here.folder is not None and here.context.is_main:
        replica = here.context.replica
        _write_images(here.folder if replica == 0 else here.folder.beside(replica), here.plan, here.done)


def _results(here: Replica, verifiers: Verifiers, summary: dict[str, Any]) -> Results:
    """All trials' images in the order of their seeds, with what teachers and verifiers make of them."""
    plan, done = here.plan, here.done
    images, targets = _images_and_targets(plan, done)
    own = {
        name: own_targets(targets, entry, plan.cards[0])
        for name, entry in zip(plan.names, plan.recipe.teachers, strict=True)
    }
    logits = {name: torch.cat([result.logits[name] for result in done.values()]) for name in plan.names}
    read, verifier_logits = verify(verifiers, images, targets, here.context.device)
    own |= dict.fromkeys(verifier_logits, targets)
    logits |= verifier_logits
    trials = [trial for trial, result in done.items() for _ in range(len(result.images))]
    compared = [result.agreement for result in done.values() if result.agreement is not None]
    agreement = Agreement.joined(compared) if compared else None
    rows = image_rows(logits, targets, own, trials, plan.class_names, agreement)
    summary["layers"] = {
        placed.profile.name: {
            "matched": placed.matched,
            "measured": placed.measured,
            "left_out": dict(placed.left_out),
        }
        for placed in here.ensemble.teachers
    }
    continued = here.history.notes()
    summary |= read | {"warnings": warnings_of(plan, done, here.first_losses), "continued": continued}
    summary["in_memory"] = list(plan.in_memory)
    summary["files"] = dict(here.digests)
    if here.partial:
        summary["stopped"] = True
    summary["wall_seconds"] = here.told().wall_seconds
    per_layer = layer_rows(here.ensemble, done)
    attributed = [result.attribution for result in done.values() if result.attribution is not None]
    attribution = torch.cat(attributed) if len(attributed) == len(done) else None
    return Results(
        images=images,
        targets=targets,
        logits=logits,
        per_image=rows,
        per_layer=per_layer,
        summary=summary,
        recipe=plan.recipe,
        class_names=plan.class_names,
        notes=(*plan.in_memory, *continued),
        agreement=agreement,
        attribution=attribution,
    )


def _images_and_targets(plan: Plan, done: Mapping[int, TrialResults]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.cat([result.images for result in done.values()]), torch.cat([plan.targets(trial) for trial in done])


def _write_images(folder: ResultsFolder, plan: Plan, done: Mapping[int, TrialResults]) -> None:
    folder.write_images(*_images_and_targets(plan, done), plan.class_names)


# --- before the first step ------------------------------------------------------------------------------------


def _restore(
    plan: Plan, folder: ResultsFolder, context: ProcessContext, replica: ProcessContext, trials: range
) -> tuple[Restored, Plan]:
    """This replica's checkpoints, and the plan with the runtime that the run began with."""
    found = Restored({})
    with context.agree():
        if replica.is_main:
            found = read_checkpoints(plan, folder.checkpoints, trials)
    metas = [checkpoint.meta for checkpoint in found.trials.values()]
    saved = [s for s in context.gather(metas[0]["recipe"]["runtime"] if metas else None) if s is not None]
    if not saved:
        damaged = [text for texts in context.gather(found.warnings) for text in texts]
        if damaged:
            raise CheckpointError(f"{'; '.join(damaged)}; none is left: begin anew with overwrite (--overwrite)")
        with context.agree():
            if context.is_main:
                folder.check_left_over()
        return found, plan
    return from_main(found, replica, plan.recipe.iterations), saved_runtime(plan, saved[0])


def _tell_notes(here: Replica, context: ProcessContext) -> None:
    """What the user should know before the first step."""
    for text in (*notes_of(here.plan, here.ensemble), *left_out(here.plan)):
        here.progress.message(text)
    now = Origin(here.ensemble.weights, versions(context.device), here.context.world_size)
    notes = here.restored.notes(here.plan, now)
    for text in dict.fromkeys(text for texts in context.gather(notes) for text in texts):
        here.progress.message(f"warning: {text}")


def _open(
    plan: Plan,
    folder: ResultsFolder,
    context: ProcessContext,
    restored: Restored,
    trials: range,
    replace_files: bool,
    continued: Sequence[str],
) -> bool:
    """Rank 0 begins the results folder, or winds its metrics back to the checkpoints.

    Whether it has removed what was read of units' images, which will be others.
    """
    reached = context.gather({trial: restored.steps(trial) for trial in trials if trial in restored.trials})
    until = {trial: step for positions in reached for trial, step in positions.items()}
    ended = all(context.gather(all(restored.finished(trial, plan.recipe.iterations) for trial in trials)))
    removed = False
    with context.agree():
        if not context.is_main:
            return False
        with writing(folder.path):
            if until:
                folder.go_on(until)
                removed = not ended and folder.remove_units()
            else:
                folder.begin(replace_files)
            folder.write_recipe(recipe_text(plan.recipe, (*plan.in_memory, *continued)))
    return removed


# --- after the last step --------------------------------------------------------------------------------------


def _collect(context: ProcessContext, here: Replica) -> None:
    """All replicas' trials, on rank 0 of all, in the order of their seeds."""
    replica = here.context
    if replica.replicas == 1:
        return
    with here.waiting(context):
        here.partial = any(context.gather(here.partial))
        parts = context.collect((here.done, here.first_losses) if replica.is_main else ({}, {}))
    if context.is_main:
        here.done = dict(sorted((trial, result) for done, _ in parts for trial, result in done.items()))
        here.first_losses = {trial: first for _, losses in parts for trial, first in losses.items()}
