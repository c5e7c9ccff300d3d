"""When a trial is saved and by whom, and how it goes on from what was saved."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ensemble.config.overrides import differences
from ensemble.config.parsing import to_plain
from ensemble.engine.inversion import Inversion
from ensemble.machine.checkpoint import KEPT, Checkpoint, checksum, load_checkpoint, save_checkpoint
from ensemble.machine.errors import MachineFailure
from ensemble.machine.ranks import ProcessContext
from ensemble.runs.folder import ResultsFolder
from ensemble.runs.history import History
from ensemble.runs.origin import NOT_THE_IMAGES, Origin, changed, file_digests, versions
from ensemble.runs.plan import Plan
from ensemble.runs.trial_results import TrialResults


class ReplicaError(MachineFailure):
    """The ranks hold different images."""


# --- save -----------------------------------------------------------------------------------------------------


@dataclass
class Checkpoints:
    """Saves one trial: every T seconds of rank 0's clock, where the loop says so, and at its end."""

    plan: Plan
    folder: Path | None
    """None saves nothing."""
    context: ProcessContext
    trial: int
    weights: Mapping[str, str]
    """Digests of the teachers' weights and statistics, and of further files, by name."""
    told: Callable[[], History]
    """What the run did so far."""
    first_losses: Mapping[int, Mapping[str, float]]
    """The losses at trials' first steps, where they are known."""
    saved_at: float = field(default_factory=time.monotonic)

    @property
    def due(self) -> bool:
        """Whether rank 0 wants the next step saved."""
        seconds = self.plan.recipe.checkpoint.seconds
        wanted = self.folder is not None and self.context.is_main and bool(seconds)
        return wanted and time.monotonic() - self.saved_at >= seconds

    def save(self, inversion: Inversion, done: TrialResults | None = None) -> None:
        """The state of the loop, and at its end what came out.

        Raises ReplicaError where the ranks disagree, CheckpointError (on every rank) where the disk refuses.
        """
        self.saved_at = time.monotonic()
        if self.folder is None:
            return
        tensors, numbers = inversion.state()
        compare_ranks(self.context, tensors, inversion.step)
        with self.context.agree():
            if self.context.is_main:
                results = {} if done is None else done.tensors()
                meta = {
                    "finished": done is not None,
                    "values": None if done is None else done.values,
                    "numbers": numbers,
                    "recipe": to_plain(self.plan.recipe),
                    "in_memory": list(self.plan.in_memory),
                    "weights": self.weights,
                    "ranks": self.context.world_size,
                    "versions": versions(self.context.device),
                    "history": self.told().plain(),
                    "first_losses": dict(self.first_losses.get(self.trial, {})),
                }
                keep = KEPT if done is None else 1
                save_checkpoint(self.folder, _prefix(self.trial), inversion.step, tensors | results, meta, keep)


def compare_ranks(context: ProcessContext, tensors: Mapping[str, torch.Tensor], step: int) -> None:
    """ReplicaError unless all ranks hold the same image to the bit, and where each steps itself one optimiser state."""
    if context.world_size == 1:
        return
    held = {k: v for k, v in tensors.items() if not context.mixed or k.startswith("image.")}
    sums = context.gather(checksum(held))
    if len(set(sums)) > 1:
        raise ReplicaError(
            f"step {step}: the ranks hold different images (checksums {', '.join(map(str, sums))}); "
            "the run is stopped, its last checkpoint is good"
        )


def _prefix(trial: int) -> str:
    """Each trial has checkpoints of its own, so any replica can go on with it."""
    return f"trial{trial:04d}"


# --- go on ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Restored:
    """The newest whole checkpoint of each trial that has one."""

    trials: Mapping[int, Checkpoint]
    warnings: tuple[str, ...] = ()

    def finished(self, trial: int, iterations: int) -> bool:
        """Whether the trial is done; one that ended at fewer steps than are wanted now goes on."""
        if trial not in self.trials:
            return False
        meta = self.trials[trial].meta
        return bool(meta["finished"]) and _iterations(meta["recipe"]) >= iterations

    def steps(self, trial: int) -> int:
        """Steps done."""
        return self.trials[trial].step if trial in self.trials else 0

    def results(self, trial: int) -> TrialResults:
        """What came out of a finished trial."""
        checkpoint = self.trials[trial]
        return TrialResults.from_tensors(checkpoint.tensors, checkpoint.meta["values"], checkpoint.step)

    @property
    def first_losses(self) -> dict[int, dict[str, float]]:
        """The losses at each trial's first step, with which those at its end are compared."""
        return {trial: checkpoint.meta.get("first_losses", {}) for trial, checkpoint in self.trials.items()}

    @property
    def told(self) -> list[tuple[Mapping[str, Any], int]]:
        """What each trial tells of the run's history, and how many steps it was to have."""
        metas = [checkpoint.meta for checkpoint in self.trials.values()]
        return [(meta.get("history", {}), _iterations(meta["recipe"])) for meta in metas]

    def check_weights(self, weights: Mapping[str, str]) -> None:
        """ValueError where a teacher is not as it was when the run began."""
        for checkpoint in self.trials.values():
            _origin(checkpoint).check_weights(weights, "run")

    def restore(self, trial: int, inversion: Inversion, device: torch.device) -> None:
        """Put the inversion where the trial was left, if it was."""
        if trial in self.trials:
            checkpoint = self.trials[trial]
            tensors = {key: value.to(device) for key, value in checkpoint.tensors.items()}
            inversion.load_state(tensors, checkpoint.meta["numbers"], goes_on=bool(checkpoint.meta["finished"]))

    def notes(self, plan: Plan, now: Origin) -> list[str]:
        """What the user should know before the run goes on."""
        found = list(self.warnings)
        if not self.trials:
            return found
        found += _origin(next(iter(self.trials.values()))).notes(now, "run", plan.recipe.runtime)
        began_with = {_iterations(checkpoint.meta["recipe"]) for checkpoint in self.trials.values()}
        if shorter := sorted(n for n in began_with if n < plan.recipe.iterations):
            found.append(
                f"the run began with {' and '.join(map(str, shorter))} steps in all and goes on to "
                f"{plan.recipe.iterations}: from where each trial was, learning rates are those of the longer run"
            )
        return found


def _origin(checkpoint: Checkpoint) -> Origin:
    return Origin(*(checkpoint.meta[key] for key in ("weights", "versions", "ranks")))


def is_finished(plan: Plan, folder: ResultsFolder) -> bool:
    """Whether the folder holds the results of this very recipe, all written, and of files as they are now."""
    if not folder.finished:
        return False
    saved, planned = folder.read_recipe(), to_plain(plan.recipe)
    same = not _differences(saved, planned) and _iterations(saved) == _iterations(planned)
    summary = folder.read_summary()
    same = same and summary.get("in_memory") == list(plan.in_memory)
    same = same and not changed(summary.get("files", {}), file_digests(plan.all_files))
    return same and saved.get("verifiers") == planned["verifiers"]


def read_checkpoints(plan: Plan, folder: Path, trials: Sequence[int]) -> Restored:
    """The state of these trials; ValueError where a checkpoint is of another recipe.

    A longer last stage is the same recipe. A trial whose checkpoints are all damaged is one that begins anew, and a
    warning.
    """
    found: dict[int, Checkpoint] = {}
    warnings: list[str] = []
    for trial in trials:
        checkpoint, damaged = load_checkpoint(folder, _prefix(trial))
        warnings += damaged
        if checkpoint is None:
            continue
        saved, planned = checkpoint.meta["recipe"], to_plain(plan.recipe)
        others = _differences(saved, planned)
        if not others and _iterations(planned) < _iterations(saved):
            others = [f"stages[{len(planned['stages']) - 1}].iterations (it may only grow)"]
        if checkpoint.meta["in_memory"] != list(plan.in_memory):
            others.append(f"what was given in memory ({'; '.join(checkpoint.meta['in_memory']) or 'nothing'})")
        if others:
            raise ValueError(
                "resume: the checkpoint was made by another recipe; these fields differ: " + ", ".join(others)
            )
        found[trial] = checkpoint
    return Restored(found, tuple(warnings))


def from_main(restored: Restored, context: ProcessContext, iterations: int) -> Restored:
    """Rank 0's, on every rank of the replica; what came out of finished trials stays where it was read."""
    light = {
        trial: replace(checkpoint, tensors={}) if restored.finished(trial, iterations) else checkpoint
        for trial, checkpoint in restored.trials.items()
    }
    shared = context.broadcast(replace(restored, trials=light))
    return restored if context.is_main else shared


def saved_runtime(plan: Plan, saved: Mapping[str, Any]) -> Plan:
    """The plan with what the checkpoint resolved for `auto`: a resumed run computes as it began, and says so."""
    keep = ["precision", "compile", "reproducible", "cell_size"]
    if plan.recipe.runtime.micro_batch == "auto":
        keep.append("micro_batch")
    asked = to_plain(plan.recipe.runtime)
    changed = [f"{key} {saved[key]}, not {asked[key]}" for key in keep[:4] if saved[key] != asked[key]]
    note = f"warning: the run goes on as it began: {', '.join(changed)}"
    plan = plan.with_runtime(**{key: saved[key] for key in keep})
    return replace(plan, notes=(*plan.notes, note)) if changed else plan


def _differences(saved: Mapping[str, Any], planned: Mapping[str, Any]) -> list[str]:
    """Where two recipes make different images, the length of the last stage aside."""
    return differences(*(_fingerprint(plain) for plain in (saved, planned)))


def _fingerprint(plain: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in plain.items() if key not in NOT_THE_IMAGES}
    *earlier, last = kept["stages"]
    return kept | {"stages": [*earlier, {key: value for key, value in last.items() if key != "iterations"}]}


def _iterations(plain: Mapping[str, Any]) -> int:
    return sum(stage["iterations"] for stage in plain["stages"])
