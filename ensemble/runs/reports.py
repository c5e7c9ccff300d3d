"""What the command line prints: known models, a dry run, a finished run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from ensemble.machine.ranks import ProcessContext
from ensemble.runs.build import build_ensemble, build_formulation
from ensemble.runs.plan import Plan, members_of
from models import list_models


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=140)


def print_models(pattern: str) -> None:
    """A table of the models whose names match the shell pattern; ValueError where none does."""
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


def print_dry_run(plan: Plan, devices: Sequence[torch.device], ranks: int) -> None:
    """The formulation, the stages, the placement with its balance, and estimates of work and memory."""
    ensemble = build_ensemble(plan, ProcessContext(0, 1, devices[0]), world_size=members_of(plan.recipe, ranks))
    recipe, console = plan.recipe, _console()
    total = sum(weight for _, weight, _, _ in ensemble.members)
    weights = [(name, weight / total) for name, weight, _, _ in ensemble.members]
    console.print(build_formulation(plan).describe(weights), highlight=False, markup=False)
    for text in plan.notes:
        console.print(text, highlight=False)
    console.print(f"    acting: {recipe.ensemble.acting}", highlight=False)
    images = ensemble.placement.images
    console.print(
        f"\nimages: {recipe.trials} x {images} of {plan.size} x {plan.size}, seed {recipe.seed}",
        highlight=False,
    )
    for i, stage in enumerate(recipe.stages):
        size = stage.size or plan.size
        console.print(
            f"stage {i + 1}: {stage.iterations} steps at {size} x {size}, jitter {stage.jitter} "
            f"({stage.jitter_mode}), flip {stage.flip:g}, "
            f"lr {stage.lr or recipe.optimizer.lr:g} {recipe.optimizer.schedule}",
            highlight=False,
        )
    loads = ensemble.placement.load(ensemble.costs)
    table = Table(
        "rank",
        "shares (images)",
        "GFLOP a step",
        "activations, MiB",
        box=None,
        title="placement",
        title_justify="left",
    )
    for rank, shares in enumerate(ensemble.placement.shares):
        what = ", ".join(f"{plan.names[s.teacher]} [{s.start}:{s.stop}]" for s in shares) or "nothing"
        kept = [ensemble.memory[s.teacher] * _at_once(recipe.runtime.micro_batch, s.images) for s in shares]
        held = max(kept, default=0) if recipe.runtime.micro_batch else sum(kept)
        table.add_row(str(rank), what, f"{loads[rank] / 1e9:.1f}", f"{held / 2**20:.0f}")
    console.print(table)
    balance = sum(loads) / len(loads) / max(loads)
    names = ", ".join(map(str, devices))
    if recipe.runtime.replicas > 1:
        console.print(f"{recipe.runtime.replicas} replicas of these ranks make their trials side by side")
    flops = sum(loads) * recipe.iterations * recipe.trials
    console.print(
        f"balance {balance:.2f} (mean load / largest), {flops / 1e12:.1f} TFLOP in all, {names}, "
        f"{recipe.runtime.precision}, compile {recipe.runtime.compile}",
        highlight=False,
    )


def _at_once(micro_batch: int | str | None, images: int) -> int:
    return min(images, micro_batch) if isinstance(micro_batch, int) else images


def print_summary(summary: dict[str, Any], output: Path) -> None:
    """Teachers and verifiers with what they read, and where the results are."""
    console = _console()
    table = Table("network", "role", "reads the target", "losses", box=None, pad_edge=False)
    for name, values in summary["teachers"].items():
        losses = ", ".join(f"{key} {value:.4g}" for key, value in values.items() if key != "accuracy")
        table.add_row(name, "teacher", f"{values['accuracy']:.1%}", losses)
    for name, result in summary.get("verifiers", {}).items():
        low, high = result["interval"]
        table.add_row(name, "verifier", f"{result['accuracy']:.1%}", f"95 % interval {low:.1%} to {high:.1%}")
    console.print(table)
    rate = summary["steps_per_second"]
    pace = f"{rate:.2f} steps/s" if rate else "too short for a rate"
    console.print(
        f"{summary['images']} images in {summary['wall_seconds']:.0f} s "
        f"({pace}, start-up {summary['startup_seconds']:.0f} s): {output}",
        highlight=False,
    )
