"""One run from a plan to the results folder: trials over replicas, verifiers, summary."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from ensemble.config.parsing import to_plain
from ensemble.config.yaml_files import dump_yaml
from ensemble.engine.inversion import Inversion, NotFiniteError, Observer, Record
from ensemble.evaluation.classification import accuracy
from ensemble.image.pictures import save_grid
from ensemble.machine import hardware
from ensemble.machine.checkpoint import CheckpointError
from ensemble.machine.errors import CollectiveFailure
from ensemble.machine.files import Metrics, write_json
from ensemble.machine.launch import StopRequest, stop_on_signals
from ensemble.machine.progress import ProgressReporter, progress_reporter
from ensemble.machine.ranks import ProcessContext, RankLostError
from ensemble.runs.build import Ensemble, build_ensemble, build_inversion
from ensemble.runs.checkpoints import (
    Restored,
    check_left_over,
    load_into,
    read_checkpoints,
    rewind_metrics,
    saved_runtime,
    share_restored,
)
from ensemble.runs.folder import prepare_output, save_images
from ensemble.runs.plan import Plan, unique_names
from ensemble.runs.saving import Saver, versions
from models import ModelCard, create_model

T = TypeVar("T")

_UNLIMITED = 7 * 24 * 3600.0
"""Seconds that a replica may wait for the others at the end; the launcher notices those that die."""


class Interrupted(CollectiveFailure):
    """The run was asked to stop; it is saved and can be resumed."""


@dataclass
class _Clock:
    """Start-up apart from the steady state."""

    began: float
    startup: float | None = None
    steady_from: float | None = None
    steps: int = 0
    steady_seconds: float = 0.0

    def step(self, warm_up: bool) -> bool:
        """Count a step; whether it was the first of the run."""
        now = time.perf_counter()
        first = self.startup is None
        if first:
            self.startup = now - self.began
        if warm_up or self.steady_from is None:
            self.steady_from = now
        else:
            self.steps += 1
            self.steady_seconds += now - self.steady_from
            self.steady_from = now
        return first


@dataclass
class _Finished:
    """What completed trials left: images (RGB, float32), and each teacher's final losses, by trial."""

    images: dict[int, torch.Tensor] = field(default_factory=dict)
    values: dict[int, dict[str, float]] = field(default_factory=dict)


@dataclass
class _Run:
    """What the trials of one replica share."""

    plan: Plan
    output: Path
    context: ProcessContext
    """This process within its replica."""
    ensemble: Ensemble
    restored: Restored
    progress: ProgressReporter
    metrics: Metrics | None
    clock: _Clock
    stop: StopRequest = field(default_factory=StopRequest)
    done: _Finished = field(default_factory=_Finished)
    steps_done: int = 0
    """Over all trials of this replica, those before a resume too."""


def run(
    plan: Plan, output: Path, context: ProcessContext, *, resume: bool, overwrite: bool, began: float
) -> dict[str, Any]:
    """Run all trials and write the results; returns the summary (whole on rank 0 only).

    Everything that can be checked is checked before the output folder is touched. Raises ValueError for a
    user's mistake, NotFiniteError where a loss stops being a number (the last good images are written),
    MachineFailure where the disk or another rank fails, and Interrupted after a stop that was asked for.
    """
    _agree_on_auto(plan, context)
    recipe = plan.recipe
    replica = context.split(recipe.runtime.replicas)
    trials = range(replica.replica, recipe.trials, replica.replicas)
    restored, plan = _restore(plan, output, context, replica, trials) if resume else (Restored({}), plan)
    recipe = plan.recipe
    hardware.set_up(recipe.runtime.precision, context.device)
    progress = progress_reporter(context.rank)
    ensemble = _agreed(context, lambda: build_ensemble(plan, replica))
    verifiers = _agreed(context, lambda: _load_verifiers(plan) if context.is_main else {})
    micro_batch = _micro_batch(plan, ensemble, context, replica, progress.message)
    plan = replace(plan, recipe=replace(recipe, runtime=replace(recipe.runtime, micro_batch=micro_batch)))
    _agreed(context, lambda: build_inversion(plan, ensemble, replica, trials[0]))  # refuses what it would at trial 1
    _agreed(context, lambda: _open_output(plan, output, context, restored, trials, resume or overwrite))
    # all are open before any is written: opening cuts off what a crash left half written
    metrics = _agreed(context, lambda: Metrics(output / "metrics.jsonl") if replica.is_main else None)
    here = _Run(plan, output, replica, ensemble, restored, progress, metrics, _Clock(began))
    try:
        for text in plan.notes:
            progress.message(text)
        notes = restored.notes(replica.world_size, recipe.runtime.reproducible, versions(context.device))
        for text in dict.fromkeys(text for texts in context.gather(notes) for text in texts):  # type: ignore[attr-defined]
            progress.message(f"warning: {text}")
        here.steps_done = sum(restored.steps(trial) for trial in trials)
        progress.start(recipe.iterations * len(trials), here.steps_done)
        with stop_on_signals(here.stop):
            for trial in trials:
                if restored.finished(trial):
                    _take_finished(here, trial)
                else:
                    _run_trial(here, trial)
            done = _collect(context, here)
    except (NotFiniteError, CollectiveFailure) as error:
        if replica.replicas > 1 and replica.is_main and not isinstance(error, Interrupted):
            error.collective = False  # only this replica met it, so its first rank tells
        raise
    finally:
        progress.close()
        if metrics is not None:
            metrics.close()
    summary = _summary(plan, context, done, here.clock)
    if context.is_main:
        _write_images(output, plan, done)
        summary |= _verify(verifiers, plan, done, context.device)
        summary["wall_seconds"] = time.perf_counter() - began
        write_json(output / "summary.json", summary)
    return summary


def _run_trial(here: _Run, trial: int) -> None:
    """One batch from its start, or its checkpoint, to its images."""
    plan, context, recipe = here.plan, here.context, here.plan.recipe
    inversion = build_inversion(plan, here.ensemble, context, trial)
    if trial in here.restored.trials:
        inversion.load_state(*load_into(here.restored.trials[trial], context.device))
    saver = Saver(plan, here.output / "checkpoints", context, trial, inversion)
    recorded: dict[str, float] = {}

    def on_record(record: Record) -> None:
        recorded.update(record.values())
        if here.metrics is not None:
            here.metrics.write({"trial": trial, "step": record.step, **recorded})

    def on_step(step: int) -> None:
        if step < 2 and context.device.type == "cuda":
            torch.cuda.synchronize(context.device)  # what is timed and limited from here on is steps, not compilation
        if here.clock.step(warm_up=step < 2):
            context.limit(recipe.runtime.timeout)
        here.progress.step(here.steps_done, recorded or None)
        here.steps_done += 1

    observer = Observer(
        every=recipe.record_every,
        on_record=on_record,
        on_step=on_step,
        on_save=saver.save,
        save_every=recipe.checkpoint.every,
        wants_save=saver.wants_save,
        wants_stop=lambda: here.stop.asked,
    )
    try:
        outcome = inversion.run(observer)
    except NotFiniteError:
        _keep_last_good(here, trial, inversion)
        raise
    if outcome == "stopped":
        raise Interrupted(
            f"stopped at step {inversion.step} of trial {trial}; to go on, run the same command with --resume"
        )
    images = inversion.result()
    values = inversion.measure(images).values()
    here.done.images[trial], here.done.values[trial] = images.float().cpu(), values
    if recipe.trials > 1:
        saver.save_finished(here.done.images[trial], values)
        if context.is_main and context.replicas == 1:
            _write_images(here.output, plan, here.done)


def _take_finished(here: _Run, trial: int) -> None:
    checkpoint = here.restored.trials[trial]
    here.done.values[trial] = checkpoint.meta["values"]
    if here.context.is_main:
        here.done.images[trial] = checkpoint.tensors["images"]


def _keep_last_good(here: _Run, trial: int, inversion: Inversion) -> None:
    """Write the images before the step that failed, beside those of finished trials."""
    if here.context.is_main:
        here.done.images[trial] = inversion.result().float().cpu()
        folder = here.output if here.context.replica == 0 else here.output / f"replica{here.context.replica}"
        _write_images(folder, here.plan, here.done)


# --- pieces -----------------------------------------------------------------------------------------------


def _agreed(context: ProcessContext, build: Callable[[], T]) -> T:
    """`build()`, or on every rank the first error that any rank met: nobody is left waiting."""
    result: T | None = None
    problem: Exception | None = None
    try:
        result = build()
    except (ValueError, CheckpointError, OSError, torch.OutOfMemoryError) as error:
        problem = error
    problems = [error for error in context.gather(problem) if isinstance(error, Exception)]
    if problems:
        problems[0].collective = True  # type: ignore[attr-defined]
        raise problems[0]
    return result  # type: ignore[return-value]


def _agree_on_auto(plan: Plan, context: ProcessContext) -> None:
    """Machines of different kinds would resolve `auto` differently."""
    mine = (plan.recipe.runtime.precision, plan.recipe.runtime.compile)
    chosen = sorted({str(value) for value in context.gather(mine)})
    if len(chosen) > 1:
        problem = ValueError(
            f"runtime: the ranks' devices suggest different precision and compile ({' and '.join(chosen)}); "
            "name both with --precision and --compile"
        )
        problem.collective = True  # type: ignore[attr-defined]
        raise problem


def _restore(
    plan: Plan, output: Path, context: ProcessContext, replica: ProcessContext, trials: range
) -> tuple[Restored, Plan]:
    """This replica's checkpoints, and the plan with the runtime that the run began with."""
    nothing = Restored({})
    found = _agreed(context, lambda: read_checkpoints(plan, output, trials) if replica.is_main else nothing)
    metas = [checkpoint.meta for checkpoint in found.trials.values()]
    saved = [s for s in context.gather(metas[0]["recipe"]["runtime"] if metas else None) if s is not None]
    if not saved:
        damaged = [text for texts in context.gather(found.warnings) for text in texts]  # type: ignore[attr-defined]
        if damaged:
            raise CheckpointError(f"{'; '.join(damaged)}; none is left: begin anew with --overwrite")
        _agreed(context, lambda: check_left_over(output) if context.is_main else None)
        return nothing, plan
    return share_restored(found, replica), saved_runtime(plan, saved[0])  # type: ignore[arg-type]


def _open_output(
    plan: Plan, output: Path, context: ProcessContext, restored: Restored, trials: range, replace_files: bool
) -> None:
    """Rank 0 begins the results folder, or winds its metrics back to the checkpoints."""
    reached = context.gather({trial: restored.steps(trial) for trial in trials if trial in restored.trials})
    until = {trial: step for positions in reached for trial, step in positions.items()}  # type: ignore[attr-defined]
    if not context.is_main:
        return
    try:
        if until:
            rewind_metrics(output / "metrics.jsonl", until)
            (output / "summary.json").unlink(missing_ok=True)  # of the run before, if it had ended
        else:
            prepare_output(output, replace_files)
        (output / "recipe.yaml").write_text(dump_yaml(to_plain(plan.recipe)), encoding="utf-8")
    except OSError as error:
        why = error.strerror or error
        raise ValueError(f"output: {output} cannot be written ({why}); give another folder") from None


def _load_verifiers(plan: Plan) -> dict[str, tuple[nn.Module, ModelCard]]:
    """Display name -> network and card: loaded before the run, so that it does not end in their errors."""
    names = unique_names(plan.recipe.verifiers)
    return {name: create_model(model) for name, model in zip(names, plan.recipe.verifiers, strict=True)}


def _micro_batch(
    plan: Plan, ensemble: Ensemble, context: ProcessContext, replica: ProcessContext, tell: Callable[[str], None]
) -> int | None:
    """The recipe's micro-batch; `auto` takes the smallest of what fits on each rank, None where all does."""
    wanted = plan.recipe.runtime.micro_batch
    if wanted != "auto":
        return wanted
    fits = context.gather(_largest_that_fits(plan, ensemble, replica))
    sizes = [size for size in fits if isinstance(size, int)]
    if 0 in sizes:
        problem = ValueError("memory: not even one image fits through the teachers on this device")
        problem.collective = True  # type: ignore[attr-defined]
        raise problem
    if sizes:
        tell(f"out of memory with the whole batch: micro-batches of {min(sizes)} images")
    return min(sizes, default=None)


def _largest_that_fits(plan: Plan, ensemble: Ensemble, context: ProcessContext) -> int | None:
    """Tries a step's cells alone and halves while the device is out of memory; 0: not even one image fits."""
    size: int | None = None
    largest = max((share.images for share in ensemble.placement.shares[context.rank]), default=1)
    alone = ProcessContext(context.rank, context.world_size, context.device)
    while size != 0:
        runtime = replace(plan.recipe.runtime, micro_batch=size)
        try:
            inversion = build_inversion(replace(plan, recipe=replace(plan.recipe, runtime=runtime)), ensemble, alone, 0)
            with torch.no_grad():
                view = inversion.parameterization()
            for weights in _acting_together(inversion):
                inversion.loss_and_gradient(view, weights)
            return size
        except torch.OutOfMemoryError:
            size = (size or largest) // 2
        finally:
            if context.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(context.device)
        torch.cuda.empty_cache()  # not above, where the error still holds the graph
    return 0


def _acting_together(inversion: Inversion) -> list[dict[int, float]]:
    """Weights under which each teacher acts in the company that takes most memory."""
    everyone = range(len(inversion.members))
    if inversion.acting == "turn" or (inversion.acting == "random" and inversion.acting_count == 1):
        return [{t: 1.0} for t in everyone]
    return [{t: 1.0 / len(everyone) for t in everyone}]


def _collect(context: ProcessContext, here: _Run) -> _Finished:
    """All replicas' trials, on rank 0 of all."""
    replica = here.context
    if replica.replicas == 1:
        return here.done
    context.limit(_UNLIMITED)
    nothing = _Finished()
    try:
        parts = context.collect(here.done if replica.is_main else nothing)
    except RankLostError:
        if here.stop.asked:  # another replica stopped, and this one's trials are saved
            raise Interrupted("stopped; to go on, run the same command with --resume") from None
        raise
    images = {trial: part.images[trial] for part in parts for trial in part.images}
    values = {trial: part.values[trial] for part in parts for trial in part.values}
    return _Finished(dict(sorted(images.items())), dict(sorted(values.items())))


def _images_and_targets(plan: Plan, done: _Finished) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.cat(list(done.images.values())), torch.cat([plan.targets(trial) for trial in done.images])


def _write_images(output: Path, plan: Plan, done: _Finished) -> None:
    images, targets = _images_and_targets(plan, done)
    save_images(output, images, targets, plan.class_names)
    save_grid(output / "grid.png", images, targets, plan.class_names)


def _summary(plan: Plan, context: ProcessContext, done: _Finished, clock: _Clock) -> dict[str, Any]:
    def mean(key: str) -> float:
        return sum(values[key] for values in done.values.values()) / len(done.values)

    teachers: dict[str, dict[str, float]] = {}
    first = next(iter(done.values.values()), {})
    for key in first:
        name, _, term = key.rpartition("/")
        if name:
            teachers.setdefault(name, {})[term] = mean(key)
    return {
        "teachers": teachers,
        "loss": mean("loss") if first else None,
        "images": sum(len(plan.targets(trial)) for trial in done.values),
        "verifier_accuracy": None,
        "steps_per_second": clock.steps / clock.steady_seconds if clock.steady_seconds else None,
        "startup_seconds": clock.startup or 0.0,
        "wall_seconds": time.perf_counter() - clock.began,
        "peak_memory_bytes": max(int(m) for m in context.gather(hardware.peak_memory(context.device))),  # type: ignore[call-overload]
        "ranks": context.world_size,
        "replicas": plan.recipe.runtime.replicas,
        "device": ", ".join(dict.fromkeys(str(d) for d in context.gather(str(context.device)))),
        "precision": plan.recipe.runtime.precision,
        "compiled": plan.recipe.runtime.compile == "on",
        "versions": versions(context.device),
        "seed": plan.recipe.seed,
    }


def _verify(
    verifiers: Mapping[str, tuple[nn.Module, ModelCard]], plan: Plan, done: _Finished, device: torch.device
) -> dict[str, Any]:
    """Each verifier's accuracy on all images, with its 95 % interval; `verifier_accuracy` is the first's."""
    images, targets = _images_and_targets(plan, done)
    read = {}
    for name, (net, card) in verifiers.items():
        try:
            result = accuracy(net.to(device), card, images, targets)
        except torch.OutOfMemoryError:
            result = accuracy(net.cpu(), card, images, targets)
        read[name] = {"accuracy": result.top1, "interval": list(result.interval), "images": result.n}
    first = next(iter(read.values()))["accuracy"] if read else None
    return {"verifier_accuracy": first, "verifiers": read}
