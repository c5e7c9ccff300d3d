"""One batch of images, from its start or its checkpoint to what came out."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from ensemble.engine.agreement import agreement_of
from ensemble.engine.guard import NotFiniteError
from ensemble.engine.inversion import Inversion, Step
from ensemble.machine.errors import EVERYONE, Failure, MachineFailure
from ensemble.machine.files import JsonLines
from ensemble.machine.launch import StopRequest
from ensemble.machine.progress import ProgressReporter
from ensemble.machine.ranks import ProcessContext, RankLostError
from ensemble.runs.build import Earlier, PlacedEnsemble, build_inversion, looks_back
from ensemble.runs.checkpoints import Checkpoints, Restored
from ensemble.runs.folder import ResultsFolder
from ensemble.runs.history import History
from ensemble.runs.plan import Plan
from ensemble.runs.tensorboard import Board
from ensemble.runs.trial_results import TrialResults

_UNLIMITED = 7 * 24 * 3600.0
"""Seconds that a replica may wait for the others at the end; the launcher notices those that die."""


class Interrupted(MachineFailure):
    """The run was asked to stop; it is saved and can be resumed."""


@dataclass
class Clock:
    """Start-up apart from the steady state."""

    began: float
    startup: float | None = None
    steady_from: float | None = None
    steps: int = 0
    steady_seconds: float = 0.0

    def count(self, warm_up: bool) -> bool:
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


@dataclass(kw_only=True)
class Replica:
    """What the trials of one replica share."""

    plan: Plan
    folder: ResultsFolder | None
    """None: nothing is written."""
    context: ProcessContext
    """This process within its replica."""
    ensemble: PlacedEnsemble
    restored: Restored
    progress: ProgressReporter
    metrics: JsonLines | None
    clock: Clock
    history: History
    """Before this process."""
    keeps_partial: bool
    """A stop that is asked for ends the trial with what there is, instead of Interrupted."""
    board: Board | None = None
    stop: StopRequest = field(default_factory=StopRequest)
    done: dict[int, TrialResults] = field(default_factory=dict)
    """By trial."""
    partial: bool = False
    """A stop, on which all ranks agreed, ended the trials before their end."""
    steps_done: int = 0
    """Over all trials of this replica, those before a resume too."""
    first_losses: dict[int, dict[str, float]] = field(default_factory=dict)
    """The losses at a trial's first step."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """Of all of the plan's files when this process began, on rank 0 of all."""
    pace: dict[str, float] = field(default_factory=dict)
    """What is shown beside the losses."""

    def told(self) -> History:
        """With what this process did so far."""
        clock = self.clock
        wall = time.perf_counter() - clock.began
        return self.history.plus(wall=wall, startup=clock.startup, steps=clock.steps, steady=clock.steady_seconds)

    def tells(self, error: Failure) -> None:
        """What all of this replica met, and no other, its first rank tells."""
        if self.context.replicas > 1 and error.teller == EVERYONE and not isinstance(error, Interrupted):
            error.teller = self.context.first

    @contextmanager
    def waiting(self, context: ProcessContext) -> Iterator[None]:
        """Collectives of all ranks after the last trial: a replica waits for the others as long as they take."""
        context.limit(_UNLIMITED)
        try:
            yield
        except RankLostError:
            if self.stop.asked:  # another replica stopped, and this one's trials are saved
                raise Interrupted("stopped; to go on, run the same again with resume (--resume)") from None
            raise


def run_trial(here: Replica, trial: int) -> bool:
    """Makes the trial's images; what came out goes into `here.done`. Whether a stop ended it before its last step.

    Raises Interrupted after a stop that was asked for, and NotFiniteError, with the last good images in `here.done`.
    """
    plan, context = here.plan, here.context
    inversion = build_inversion(plan, here.ensemble, context, trial, _earlier(here))
    here.restored.restore(trial, inversion, context.device)
    folder = None if here.folder is None else here.folder.checkpoints
    weights, first_losses = here.ensemble.weights, here.first_losses
    checkpoints = Checkpoints(plan, folder, context, trial, weights, here.told, first_losses)
    inversion.ask(stop=here.stop.asked)
    partial = False
    try:
        for step in inversion:
            count(here, step)
            show(here, trial, step)
            if here.board is not None:
                here.board.images(trial, inversion, step.last)
            stopped = step.stop and not step.last
            if step.save or stopped:
                checkpoints.save(inversion)
            partial = stopped and here.keeps_partial
            if partial:
                inversion.settle()
                break
            if stopped:
                raise Interrupted(
                    f"stopped at step {inversion.step} of trial {trial}; to go on, run the same command with --resume"
                )
            inversion.ask(save=checkpoints.due, stop=here.stop.asked)
    except NotFiniteError:
        here.done[trial] = TrialResults(inversion.result().float().cpu(), {}, {}, {})
        raise
    done = _read(inversion, plan.recipe.agreement)
    if not partial:
        checkpoints.save(inversion, done)
    here.done[trial] = done
    return partial


def _earlier(here: Replica) -> Earlier | None:
    """The last images before, on every rank; of those from before a resume only the main one has them."""
    most = looks_back(here.plan)
    if not most or not here.done:
        return None
    images = torch.cat([result.images for result in here.done.values()]) if here.context.is_main else torch.empty(0)
    targets = torch.cat([here.plan.targets(trial) for trial in here.done])
    return here.context.broadcast(images[-most:]), targets[-most:]


def count(here: Replica, step: Step) -> None:
    """Counts a step, and from the third on limits how long ranks wait for each other."""
    if step.number < 2 and here.context.device.type == "cuda":
        torch.cuda.synchronize(here.context.device)  # what is timed and limited from here on is steps, not compilation
    if here.clock.count(warm_up=step.number < 2):
        here.context.limit(here.plan.recipe.runtime.timeout)


def show(here: Replica, trial: int, step: Step) -> None:
    """Metrics and progress."""
    recipe = here.plan.recipe
    each = recipe.teaching if recipe.ensemble.acting == "turn" else 1  # or an even interval would leave teachers out
    recorded = step.number % recipe.record_every < each or step.last
    values: dict[str, float] = {}
    if recorded:
        losses = step.record.values()
        here.first_losses.setdefault(trial, losses if step.number == 0 else {})
        values = {**losses, "lr": step.lr}
        if len(recipe.stages) > 1:
            values["stage"] = step.stage + 1
    if here.board is not None and values:
        here.board.scalars(trial, step.number, {**values, "stage": step.stage + 1})
    if here.metrics is not None and (recorded or step.event):
        about = {"trial": trial, "step": step.number, "stage": step.stage + 1, "lr": step.lr}
        here.metrics.write({**values, **about, **({"event": step.event} if step.event else {})})
    if step.event:
        here.progress.message(f"step {step.number}: {step.event}")
    students = set(here.plan.names) - set(here.plan.teachers)  # a line shows means over those that teach
    shown = {key: value for key, value in values.items() if key.rpartition("/")[0] not in students}
    if not any(term.aims for term in here.plan.formulation.teacher_terms):  # targets mean nothing
        shown = {key: value for key, value in shown.items() if not key.endswith("/accuracy")}
    here.progress.step(here.steps_done, {**shown, **here.pace} if shown else None)
    here.steps_done += 1


def _read(inversion: Inversion, compare: bool) -> TrialResults:
    images = inversion.result()
    readings = inversion.loss.read(images)
    logits = {name: tensor.float().cpu() for name, tensor in readings.logits.items()}
    moments = {name: tensor.cpu() for name, tensor in readings.moments.items()}
    names = [inversion.loss.members[t].name for t in inversion.loss.teachers]
    agreement = agreement_of(names, inversion.loss.parts(images)) if compare else None
    return TrialResults(
        images.float().cpu(),
        readings.record.values(),
        logits,
        moments,
        agreement,
        inversion.attribution,
        inversion.step,
    )
