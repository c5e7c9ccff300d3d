"""What a run left on the disk, and how it goes on from there."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ensemble.config.overrides import differences
from ensemble.config.parsing import to_plain
from ensemble.config.yaml_files import load_yaml
from ensemble.machine.checkpoint import Checkpoint, load_checkpoint
from ensemble.machine.ranks import ProcessContext
from ensemble.runs.plan import Plan

_NOT_THE_IMAGES = ("runtime", "checkpoint", "record_every", "verifiers")
"""Parts of a recipe that do not decide which images come out."""
_BEGUN = {"recipe.yaml", "metrics.jsonl", "checkpoints"}
"""All that a run leaves that ends before its first checkpoint."""


def checkpoint_prefix(trial: int) -> str:
    """Each trial has checkpoints of its own, so any replica can go on with it."""
    return f"trial{trial:04d}"


@dataclass(frozen=True)
class Restored:
    """The newest whole checkpoint of each trial that has one."""

    trials: Mapping[int, Checkpoint]
    warnings: tuple[str, ...] = ()

    def finished(self, trial: int) -> bool:
        return trial in self.trials and bool(self.trials[trial].meta["finished"])

    def steps(self, trial: int) -> int:
        """Steps done; all of them where the trial is finished, also where it stopped early."""
        return self.trials[trial].step if trial in self.trials else 0

    def notes(self, world_size: int, reproducible: str, here: Mapping[str, str]) -> list[str]:
        """What the user should know before the run goes on."""
        found = list(self.warnings)
        if not self.trials:
            return found
        meta = next(iter(self.trials.values())).meta
        changed = [
            f"{key} {meta['versions'].get(key)} -> {value}"
            for key, value in here.items()
            if meta["versions"].get(key) != value
        ]
        if changed:
            found.append(f"the run began with other versions, its images may differ in bits: {', '.join(changed)}")
        if reproducible == "placement" and world_size != meta["ranks"]:
            found.append(
                f"the run began on {meta['ranks']} ranks a batch and goes on on {world_size}: its images are "
                "those of an uninterrupted run up to rounding (to the bit under --reproducible ranks)"
            )
        return found


def is_finished(plan: Plan, output: Path) -> bool:
    """Whether `output` holds the results of this very recipe, all written."""
    if not (output / "summary.json").exists() or not (output / "recipe.yaml").exists():
        return False
    saved, planned = load_yaml(output / "recipe.yaml"), to_plain(plan.recipe)
    same_images = not differences(_fingerprint(saved), _fingerprint(planned))
    return same_images and saved.get("verifiers") == planned["verifiers"]


def read_checkpoints(plan: Plan, output: Path, trials: Sequence[int]) -> Restored:
    """The state of these trials; ValueError where a checkpoint is of another recipe.

    A trial whose checkpoints are all damaged is one that begins anew, and a warning.
    """
    found: dict[int, Checkpoint] = {}
    warnings: list[str] = []
    for trial in trials:
        checkpoint, damaged = load_checkpoint(output / "checkpoints", checkpoint_prefix(trial))
        warnings += damaged
        if checkpoint is None:
            continue
        changed = differences(_fingerprint(checkpoint.meta["recipe"]), _fingerprint(to_plain(plan.recipe)))
        if changed:
            raise ValueError(
                "resume: the checkpoint was made by another recipe; these fields differ: " + ", ".join(changed)
            )
        found[trial] = checkpoint
    return Restored(found, tuple(warnings))


def share_restored(restored: Restored, context: ProcessContext) -> Restored:
    """Rank 0's, on every rank of the replica; finished images stay where they were read."""
    light = {
        trial: replace(checkpoint, tensors={}) if checkpoint.meta["finished"] else checkpoint
        for trial, checkpoint in restored.trials.items()
    }
    shared = context.broadcast(replace(restored, trials=light))
    return restored if context.is_main else shared


def check_left_over(output: Path) -> None:
    """Raises ValueError where there is no checkpoint to resume and the folder holds another run's results."""
    if output.is_dir() and not {file.name for file in output.iterdir()} <= _BEGUN:
        raise ValueError(
            f"resume: {output} holds no checkpoint but other files; pass --overwrite instead to "
            "replace its results, or give another folder"
        )


def saved_runtime(plan: Plan, saved: Mapping[str, Any]) -> Plan:
    """The plan with what the checkpoint resolved for `auto`: a resumed run computes as it began."""
    keep = ["precision", "compile", "reproducible", "cell_size"]
    if plan.recipe.runtime.micro_batch == "auto":
        keep.append("micro_batch")
    runtime = replace(plan.recipe.runtime, **{key: saved[key] for key in keep})
    return replace(plan, recipe=replace(plan.recipe, runtime=runtime))


def rewind_metrics(path: Path, until: Mapping[int, int]) -> None:
    """Drop each trial's lines from step `until[trial]` on: the resumed run writes them again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            values = json.loads(line)
            known = values["step"] < until.get(values["trial"], 0)
        except (json.JSONDecodeError, TypeError, KeyError):  # a crash cut it short
            continue
        if known:
            kept.append(line + "\n")
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text("".join(kept), encoding="utf-8")
    os.replace(temporary, path)


def load_into(checkpoint: Checkpoint, device: torch.device) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """What `Inversion.load_state` takes."""
    return {k: v.to(device) for k, v in checkpoint.tensors.items()}, checkpoint.meta["numbers"]


def _fingerprint(plain: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in plain.items() if key not in _NOT_THE_IMAGES}
