"""Tables of the page: settings and facts of runs side by side, with what differs."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ensemble.config.mistakes import join
from ensemble.config.overrides import differences
from ensemble.report.reading import Run

_NONE = "–"


@dataclass(frozen=True)
class Row:
    """One line: a cell for each run, and whether the runs differ there."""

    name: str
    cells: tuple[str, ...]
    differs: bool


def settings(runs: Sequence[Run]) -> list[Row]:
    """Every field of the recipes; marked where `differences` finds one run unlike the first.

    Of lists of unlike lengths it names the list; entries are compared by their number here.
    """
    fields = [dict(_leaves(run.recipe, "")) for run in runs]
    marked = {path for run in runs[1:] for path in differences(runs[0].recipe, run.recipe)}
    rows = []
    for path in sorted({path for leaves in fields for path in leaves}, key=_place(fields)):
        cells = tuple(leaves.get(path, _NONE) for leaves in fields)
        rows.append(Row(path, cells, len(set(cells)) > 1 and any(_is_within(path, other) for other in marked)))
    return rows


def _place(fields: Sequence[Mapping[str, str]]) -> Any:
    """Sorts paths as the first run that has them does, and those of one top-level field together."""
    order: dict[str, int] = {}
    for leaves in fields:
        for path in leaves:
            order.setdefault(path, len(order))
    top: dict[str, int] = {}
    for path in order:
        top.setdefault(_top(path), len(top))
    return lambda path: (top[_top(path)], order[path])


def _top(path: str) -> str:
    return path.partition(".")[0]


def _is_within(path: str, other: str) -> bool:
    """Whether `differences` means `path` where it names `other`: itself, a field below it, or one beside a kind."""
    beside = other.removesuffix("kind") if other.endswith(".kind") else f"{other}."
    return path == other or path.startswith((beside, f"{other}.", f"{other}["))


def _leaves(node: Any, path: str) -> list[tuple[str, str]]:
    if isinstance(node, Mapping) and node:
        return [leaf for key, value in node.items() for leaf in _leaves(value, join(path, str(key)))]
    if isinstance(node, list) and node and not all(isinstance(entry, int | float | str) for entry in node):
        return [leaf for i, value in enumerate(node) for leaf in _leaves(value, f"{path}[{i}]")]
    return [(path, _text(node))]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def facts(runs: Sequence[Run]) -> list[Row]:
    """Time, memory, versions: what is known of each run beside its recipe."""
    told = [_facts(run) for run in runs]
    rows = []
    for name in dict.fromkeys(name for facts in told for name in facts):
        cells = tuple(facts.get(name, _NONE) for facts in told)
        rows.append(Row(name, cells, len(set(cells)) > 1))
    return rows


def _facts(run: Run) -> dict[str, str]:
    summary = run.summary
    height, width = run.images.shape[-2:]
    found = {
        "images": f"{len(run.images)} of {width} × {height} pixels",
        "classes": str(len({picture.target for picture in run.pictures})),
        "steps": _steps(run),
        "ended": _ended(run),
        "time": _seconds(summary.get("wall_seconds")),
        "start-up": _seconds(summary.get("startup_seconds")),
        "steps per second": _figure(summary.get("steps_per_second")),
        "peak memory": _memory(summary.get("peak_memory_bytes")),
    }
    for key in ("device", "precision", "compiled", "ranks", "replicas"):
        if key in summary:
            found[key] = _text(summary[key])
    for library, version in dict(summary.get("versions") or {}).items():
        found[f"version of {library}"] = _text(version)
    return found


def _asked(run: Run) -> int:
    return sum(int(stage["iterations"]) for stage in run.recipe["stages"])


def _steps(run: Run) -> str:
    """How many were taken, and of how many where these are fewer in some batch."""
    asked, taken = _asked(run), run.summary.get("steps") or ()
    fewest, most = min(taken, default=asked), max(taken, default=asked)
    if fewest == asked:
        return str(asked)
    return f"{fewest} of {asked}" if fewest == most else f"{fewest} to {most} of {asked}"


def _ended(run: Run) -> str:
    if run.summary.get("stopped"):
        return "stopped before its last step"
    fewer = any(steps < _asked(run) for steps in run.summary.get("steps") or ())
    return "before its last step, where the recipe ends it" if fewer else "at its last step"


def command(run: Run) -> str:
    """The command that makes the images again: the one that was kept, else the recipe's."""
    kept = run.summary.get("command")
    if isinstance(kept, list):
        return " ".join(map(str, kept))
    recipe = shlex.quote(f"{run.label}/recipe.yaml")
    return str(kept) if kept else f"python invert.py --recipe {recipe} --output NEW_FOLDER"


def notes(run: Run) -> list[tuple[str, str]]:
    """Kind and text: warnings of the run, and what its recipe cannot hold."""
    summary = run.summary
    found = [("warning", str(text)) for text in summary.get("warnings") or ()]
    beside = [*(summary.get("in_memory") or ()), *(summary.get("continued") or ())]
    return found + [("not in the recipe", str(text)) for text in beside]


def _figure(value: float | None) -> str:
    return _NONE if value is None else f"{value:.4g}"


def _seconds(value: float | None) -> str:
    if value is None:
        return _NONE
    return f"{value:.1f} s" if value < 120 else f"{value / 60:.1f} min" if value < 7200 else f"{value / 3600:.1f} h"


def _memory(value: float | None) -> str:
    return _NONE if not value else f"{value / 2**20:,.0f} MiB"
