"""The points of a study as rows, and which is best."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean
from typing import Any

from ensemble.search.settings import Settings
from ensemble.search.tasks import Task

PointRow = dict[str, Any]
"""`point`, `state` (complete, pruned, failed, running, waiting), `values` by path, `seeds`, the metric of each seed,
their `mean`, `seconds`, and `reason`, why it failed."""


def rows_of(tasks: Sequence[Task], total: int) -> list[PointRow]:
    """A row a point, in their order."""
    return [_row(task) for task in tasks if task.number < total]


def best_of(rows: Sequence[PointRow], settings: Settings) -> PointRow | None:
    """The best of those that saw all seeds, the first of equals; None where there is none."""
    complete = [row for row in rows if row["state"] == "complete"]
    sign = 1 if settings.metric.minimised else -1
    return min(complete, key=lambda row: sign * row["mean"], default=None)


def _row(task: Task) -> PointRow:
    attributes = task.trial.user_attrs
    seeds = attributes.get("seeds", [])
    return {
        "point": task.number,
        "state": "failed" if task.failed is not None else _state(task),
        "values": attributes.get("values", {}),
        "seeds": seeds,
        "mean": mean(seeds) if seeds else None,
        "seconds": attributes.get("seconds"),
        "reason": task.failed,
    }


def _state(task: Task) -> str:
    return "waiting" if task.trial.state.name == "FAIL" else task.trial.state.name.lower()
