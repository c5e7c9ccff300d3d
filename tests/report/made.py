"""Results folders as runs leave them, without a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ensemble.engine.agreement import Agreement
from ensemble.recipe import Recipe, Stage, TeacherEntry
from ensemble.runs.folder import ResultsFolder
from ensemble.runs.results import image_rows, recipe_text

NAMES = ("ant", "bee", "cat", "dog")


def recipe(teachers: Sequence[str] = ("net_a", "net_b"), **fields: Any) -> Recipe:
    """Two stages of ten steps."""
    entries = tuple(TeacherEntry(name) for name in teachers)
    return replace(Recipe(entries, stages=(Stage(10, size=8), Stage(10, lr=0.02))), **fields)


def make(
    folder: Path,
    n: int = 12,
    size: int = 8,
    names: Sequence[str] = NAMES,
    made_by: Recipe | None = None,
    verifiers: Sequence[str] = ("judge",),
    seed: int = 0,
    compared: bool = False,
    **summary: Any,
) -> Path:
    """A finished run of n images of the classes in turn.

    Where gradients were `compared`, the first image's agree to -1, the last one's to 1; on all maps the upper half
    conflicts.

    The first teacher reads all as their target; the second reads image 1 as class 0, the verifiers images 1 and 2.
    """
    made_by = made_by or recipe()
    draws = torch.Generator().manual_seed(seed)
    images = torch.rand(n, 3, size, size, generator=draws)
    targets = torch.arange(n) % len(names)
    teachers = [entry.model for entry in made_by.teachers]
    logits = {}
    for place, name in enumerate([*teachers, *verifiers]):
        read = targets.clone()
        read[1 : 1 + min(place, 2)] = 0
        logits[name] = 6 * torch.nn.functional.one_hot(read, len(names)) + torch.rand(n, len(names), generator=draws)
    halves = torch.cat([-torch.ones(n, size // 2, size), torch.ones(n, size - size // 2, size)], 1).half()
    agreement = Agreement({"~".join(teachers[:2]): torch.linspace(-1, 1, n)}, halves) if compared else None
    rows = image_rows(logits, targets, dict.fromkeys(logits, targets), [0] * n, names, agreement)
    layers = [
        {
            "teacher": name,
            "layer": f"layer{i}.bn",
            "order": i,
            "mean_distance": 0.1 * i,
            "variance_distance": 1 / (1 + i),
            "mean_level": 0.05,
            "variance_level": 0.1 * i,
            "level": "measured",
        }
        for name in teachers
        for i in range(5)
    ]
    there = ResultsFolder(folder)
    there.begin()
    there.write_recipe(recipe_text(made_by))
    with there.open_metrics() as metrics:
        for step in range(0, 20, 2):
            losses = {f"{name}/cross_entropy": 2 / (1 + step) + place for place, name in enumerate(teachers)}
            about = {"lr": 0.1, "trial": 0, "step": step, "stage": 1 + step // 10}
            event = {"event": "stage 2 of 2: 10 steps"} if step == 10 else {}
            metrics.write({"loss": 5 / (1 + step), "prior": 0.1, **losses, **about, **event})
    there.write_images(images, targets, names)
    there.write_readings(logits, rows, layers)
    if agreement is not None:
        there.write_agreement(agreement)
    shares = {name: sum(row[f"{name}/right"] for row in rows) / n for name in logits}
    there.write_summary(
        {
            "teachers": {name: {"cross_entropy": 0.1, "accuracy": shares[name]} for name in teachers},
            "verifiers": {name: {"accuracy": shares[name], "interval": [0.5, 0.9], "images": n} for name in verifiers},
            "class_names": list(names),
            "wall_seconds": 12.3,
            "startup_seconds": 1.0,
            "steps_per_second": 2.0,
            "peak_memory_bytes": 2**30,
            "versions": {"torch": "2.11"},
            "warnings": [],
            "in_memory": [],
            "seed": 0,
            **summary,
        }
    )
    return folder
