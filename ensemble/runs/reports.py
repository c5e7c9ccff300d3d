"""What the command line prints: known models, a model's layers, a dry run, a finished run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from ensemble.engine.inversion import Inversion
from ensemble.machine.hardware import set_up
from ensemble.machine.ranks import ProcessContext
from ensemble.machine.words import plural
from ensemble.runs.build import PlacedEnsemble, build_ensemble, build_inversion
from ensemble.runs.plan import STUDENT, Plan, ranks_per_replica
from ensemble.runs.summary import load_verifiers
from ensemble.teachers.layers import layers_of
from models import create_model, list_models

_TIMED_STEPS = 3


def _console() -> Console:
    """Names are printed as they are: a bracket in a folder's name is no markup."""
    width = None if Console().is_terminal else 140
    return Console(width=width, markup=False, emoji=False)


def print_models(pattern: str) -> None:
    """A table of the models whose names match; ValueError where none does."""
    cards = list_models(pattern)
    if not cards:
        if pattern.startswith("popup/"):
            raise ValueError("popup/NAME:k=30@FILE is the subnet of any other NAME; list those instead")
        raise ValueError(f"no model matches {pattern!r}; try --list-models alone")
    table = Table("model", "input", "classes", "weights", box=None, pad_edge=False)
    for card in cards:
        tags = [f"{tag} (bundled)" if w.source == "bundled" else tag for tag, w in card.weights.items()]
        shown = ", ".join(tags) if tags else "random or a file"
        table.add_row(card.name, str(card.input_size), str(card.num_classes), shown)
    _console().print(table)


def print_layers(model: str) -> None:
    """A table of the layers that run, in their order, with the functions between them, and the layers that never do."""
    net, card = create_model(model)
    layers = layers_of(net, card)
    table = Table("layer", "type", "calls", "input", "output", "BN", box=None, pad_edge=False)
    ran = [layer for layer in layers if layer.calls]
    for layer in ran:
        calls, mark = str(layer.calls) if layer.calls > 1 else "", "BN" if layer.has_statistics else ""
        table.add_row(layer.name, layer.kind, calls, _shape(layer.input), _shape(layer.output), mark)
    console = _console()
    console.print(table)
    matched = sum(layer.has_statistics for layer in ran)
    console.print(f"{card.name}: {matched} of the layers keep running statistics", highlight=False)
    if idle := [layer.name for layer in layers if not layer.calls]:
        console.print(f"never run in eval mode: {', '.join(idle)}", highlight=False)


def _shape(shape: Sequence[int] | None) -> str:
    return "" if shape is None else " x ".join(map(str, shape))


def print_dry_run(plan: Plan, devices: Sequence[torch.device], ranks: int, timed: bool = False) -> None:
    """The formulation, the stages, the placement with its balance, and estimates of work, memory, and if asked time.

    Everything is loaded: weights, layer names and verifiers are checked as a run checks them.
    """
    ensemble = build_ensemble(plan, ProcessContext(0, 1, devices[0]), world_size=ranks_per_replica(plan.recipe, ranks))
    load_verifiers(plan)
    build_inversion(plan.with_runtime(micro_batch=None), ensemble, ProcessContext(0, 1, devices[0]), 0)
    console = _console()

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False)

    total = sum(teacher.weight for teacher in ensemble.teachers)
    say(plan.formulation.describe([(t.profile.name, t.weight / total) for t in ensemble.teachers]))
    for text in (*plan.notes, *(note for teacher in ensemble.teachers for note in teacher.notes)):
        say(text)
    for teacher in ensemble.teachers:
        say(teacher.describe_layers())
    _print_steps(plan, ensemble, say)
    console.print(_placement_table(plan, ensemble))
    loads = ensemble.placement.load(ensemble.costs)
    runtime = plan.recipe.runtime
    if runtime.replicas > 1:
        say(f"{runtime.replicas} replicas of these ranks make their trials side by side")
    teaching = [teacher.cost for teacher in ensemble.teachers if not teacher.profile.student]
    a_step = sum(teaching) * plan.recipe.acting / len(teaching)
    a_step += sum(ensemble.costs) - sum(teaching)  # the student sees every step
    flops = a_step * len(plan.targets(0)) * plan.recipe.iterations * plan.recipe.trials
    say(
        f"balance {sum(loads) / len(loads) / max(loads):.2f} (mean load / largest), {flops / 1e12:.1f} TFLOP in all, "
        f"{', '.join(map(str, devices))}, {runtime.precision}, compile {runtime.compile}"
    )
    if timed:
        seconds = _seconds_of_a_step(plan, devices[0])
        whole = seconds * plan.recipe.iterations * plan.recipe.trials
        say(f"a step of the last stage takes {seconds:.3g} s in one process: {_clock(whole)} for all steps there")
    else:
        say("--timed takes some steps and says how long the run takes")


def _print_steps(plan: Plan, ensemble: PlacedEnsemble, say: Any) -> None:
    recipe = plan.recipe
    say(f"    acting: {recipe.ensemble.describe()}")
    say(f"\nimages: {recipe.trials} x {ensemble.placement.images} of {plan.size} x {plan.size}, seed {recipe.seed}")
    for i, stage in enumerate(recipe.stages):
        size = stage.size or plan.size
        zoom = f"zoom {stage.zoom:g} to 1, " if stage.zoom < 1 else ""
        noise = f"noise {stage.noise:g}, " if stage.noise else ""
        moving = f", moves {stage.moving:.0%} of the batch" if stage.moving < 1 else ""
        say(
            f"stage {i + 1}: {stage.iterations} steps at {size} x {size}, jitter {stage.jitter} "
            f"({stage.jitter_mode}), flip {stage.flip:g}, {zoom}{noise}"
            f"lr {stage.lr or recipe.optimizer.lr:g} {recipe.optimizer.schedule}{moving}"
        )


def _placement_table(plan: Plan, ensemble: PlacedEnsemble) -> Table:
    columns = ("rank", "cells (images)", "GFLOP a step", "activations, MiB")
    table = Table(*columns, box=None, title="placement", title_justify="left")
    micro_batch = plan.recipe.runtime.micro_batch
    loads = ensemble.placement.load(ensemble.costs)
    for rank, cells in enumerate(ensemble.placement.cells):
        what = ", ".join(f"{plan.names[c.teacher]} [{c.start}:{c.stop}]" for c in cells) or "nothing"
        at_once = [min(c.images, micro_batch) if isinstance(micro_batch, int) else c.images for c in cells]
        kept = [ensemble.teachers[c.teacher].memory * n for c, n in zip(cells, at_once, strict=True)]
        held = max(kept, default=0) if micro_batch else sum(kept)
        table.add_row(str(rank), what, f"{loads[rank] / 1e9:.1f}", f"{held / 2**20:.0f}")
    return table


def _seconds_of_a_step(plan: Plan, device: torch.device) -> float:
    """The median of some steps of the last stage, after one that does not count, in this process alone."""
    set_up(plan.recipe.runtime.precision, device)
    alone = ProcessContext(0, 1, device)
    plan = plan.with_runtime(micro_batch=None, reproducible="placement")
    ensemble = build_ensemble(plan, alone)
    inversion: Inversion = build_inversion(plan, ensemble, alone, 0)
    inversion.step = max(0, inversion.iterations - _TIMED_STEPS - 1)
    seconds, began = [], time.perf_counter()
    for _ in inversion:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
        began = time.perf_counter()
        if len(seconds) > _TIMED_STEPS:
            break
    return statistics.median(seconds[1:] or seconds)


def _clock(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )


def print_summary(summary: Mapping[str, Any], output: str | Path) -> None:
    """Teachers and verifiers with what they read, and where the results are."""
    console = _console()
    table = Table("network", "role", "reads the target", "losses", box=None, pad_edge=False)
    for name, values in summary["teachers"].items():
        losses = ", ".join(f"{key} {value:.4g}" for key, value in values.items() if key != "accuracy")
        table.add_row(name, "student" if name == STUDENT else "teacher", f"{values['accuracy']:.1%}", losses)
    for name, result in summary.get("verifiers", {}).items():
        low, high = result["interval"]
        table.add_row(name, "verifier", f"{result['accuracy']:.1%}", f"95 % interval {low:.1%} to {high:.1%}")
    console.print(table)
    rate = summary["steps_per_second"]
    pace = f"{rate:.2f} steps/s" if rate else "too short for a rate"
    console.print(
        f"{plural(summary['images'], 'image')} in {summary['wall_seconds']:.0f} s "
        f"({pace}, start-up {summary['startup_seconds']:.0f} s): {output}",
        highlight=False,
    )


def print_dataset(manifest: Mapping[str, Any], cost: Mapping[str, Any], output: str | Path) -> None:
    """Teachers and verifiers with what they read, what the images cost, and where they are."""
    console = _console()
    table = Table("network", "role", "reads the target", box=None, pad_edge=False)
    for name, values in manifest["teachers"].items():
        table.add_row(name, "teacher", f"{values['accuracy']:.1%}")
    for name, values in manifest.get("verifiers", {}).items():
        low, high = values["interval"]
        table.add_row(name, "verifier", f"{values['accuracy']:.1%}, 95 % interval {low:.1%} to {high:.1%}")
    console.print(table)
    console.print(
        f"{plural(manifest['images'], 'image')} in {plural(len(manifest['shards']), 'shard')}; "
        f"{cost['passes_per_image']:.4g} passes, "
        f"{cost['gflop_per_image']:.4g} GFLOP and {cost['seconds_per_image']:.3g} s an image: {output}",
        highlight=False,
    )
