"""What is settled between ranks before the first step: precision, teachers, micro-batches that fit, what is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from ensemble.engine.inversion import Inversion
from ensemble.machine.errors import Mistake
from ensemble.machine.hardware import set_up
from ensemble.machine.ranks import ProcessContext
from ensemble.runs.build import PlacedEnsemble, build_ensemble, build_inversion
from ensemble.runs.plan import Plan
from ensemble.runs.summary import Verifiers, load_verifiers


def agree_on_auto(plan: Plan, context: ProcessContext) -> None:
    """Machines of different kinds would resolve `auto` differently."""
    mine = (plan.recipe.runtime.precision, plan.recipe.runtime.compile)
    chosen = sorted({str(value) for value in context.gather(mine)})
    if len(chosen) > 1:
        raise Mistake(
            f"runtime: the ranks' devices suggest different precision and compile ({' and '.join(chosen)}); "
            "name both (--precision, --compile)"
        )


def ready(
    plan: Plan,
    context: ProcessContext,
    replica: ProcessContext,
    trial: int,
    tell: Callable[[str], None],
    check: Callable[[Mapping[str, str]], None] | None = None,
) -> tuple[Plan, PlacedEnsemble, Verifiers]:
    """The plan with what `auto` became, its teachers, and on rank 0 of all its verifiers.

    All that a run may refuse is refused here, before anything is written: what `check` says of the digests of the
    teachers' weights; and a batch is built, that of `trial`, the first one of this replica.
    """
    set_up(plan.recipe.runtime.precision, context.device)
    with context.agree():
        ensemble = build_ensemble(plan, replica)
        if check is not None:
            check(ensemble.weights)
    with context.agree():
        verifiers = load_verifiers(plan) if context.is_main else {}
    plan = plan.with_runtime(micro_batch=micro_batch_of(plan, ensemble, context, replica, tell))
    with context.agree():
        build_inversion(plan, ensemble, replica, trial)
    return plan, ensemble, verifiers


def notes_of(plan: Plan, ensemble: PlacedEnsemble) -> list[str]:
    """What the user should know before the first step, a line each."""
    found = list(plan.notes)
    matching = [term for term in plan.formulation.teacher_terms if term.matches_layers]
    for placed in ensemble.teachers:
        found += [f"warning: {text}" for text in placed.notes]
        if placed.left_out and any(term.reads(placed.profile) for term in matching):
            found.append(f"warning: {placed.describe_layers()}")
    return found


def micro_batch_of(
    plan: Plan, ensemble: PlacedEnsemble, context: ProcessContext, replica: ProcessContext, tell: Callable[[str], None]
) -> int | None:
    """The recipe's micro-batch; `auto` takes the smallest of what fits on each rank, None where all does."""
    wanted = plan.recipe.runtime.micro_batch
    if wanted != "auto":
        return wanted
    sizes = [size for size in context.gather(_largest_that_fits(plan, ensemble, replica)) if size is not None]
    if 0 in sizes:
        raise Mistake("memory: not even one image fits through the teachers on this device")
    if sizes:
        tell(f"out of memory with the whole batch: micro-batches of {min(sizes)} images")
    return min(sizes, default=None)


def _largest_that_fits(plan: Plan, ensemble: PlacedEnsemble, context: ProcessContext) -> int | None:
    """Tries a step's cells alone and halves while the device is out of memory; 0: not even one image fits."""
    size: int | None = None
    largest = max((cell.images for cell in ensemble.placement.cells[context.rank]), default=1)
    alone = ProcessContext(context.rank, context.world_size, context.device)
    while size != 0:
        try:
            inversion = build_inversion(plan.with_runtime(micro_batch=size), ensemble, alone, 0)
            with torch.no_grad():
                view = inversion.image()
            for weights in _acting_together(inversion):
                inversion.loss.gradient(view, weights)
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
    loss = inversion.loss
    if inversion.acting == "turn" or (inversion.acting == "random" and inversion.acting_count == 1):
        return [loss.weights([t]) for t in loss.teachers]
    return [loss.weights(loss.teachers)]
