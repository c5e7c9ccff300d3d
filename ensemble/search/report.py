"""A search in words: a table of its points, and the best recipe with where it comes from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ensemble.config.parsing import to_plain
from ensemble.config.yaml_files import dump_yaml
from ensemble.search.confirmation import Confirmation
from ensemble.search.points import PointRow
from ensemble.search.settings import Settings
from ensemble.search.space import point_of


def table(settings: Settings, rows: Sequence[PointRow], best: PointRow | None, said: Confirmation | str | None) -> str:
    """A page in Markdown: what was searched, what is confirmed, and a line a point, the best first."""
    metric = settings.metric
    paths = list(settings.space.fields)
    lines = [
        f"# Search by `{metric.kind}`",
        "",
        f"Judge: {settings.judge}. {'Less' if metric.minimised else 'More'} is better. Each point is the mean of "
        f"{settings.seeds} seed(s). Point 0 is the recipe as it is. Sampler: {settings.sampler}, pruner: "
        f"{settings.pruner}.",
        "",
        *confirmed(best, said),
        "",
        _line(["point", metric.kind, "seeds", "state", "seconds", *(f"`{path}`" for path in paths)]),
        _line(["---"] * (5 + len(paths))),
    ]
    sign = 1 if metric.minimised else -1
    order = sorted(rows, key=lambda row: (row["state"] != "complete", row["mean"] is None, sign * (row["mean"] or 0)))
    return "\n".join([*lines, *(_line(_cells(row, paths)) for row in order)]) + "\n"


def confirmed(best: PointRow | None, said: Confirmation | str | None) -> list[str]:
    """What the confirmation says, in lines."""
    if best is None:
        return ["No point is complete."]
    if best["point"] == 0:
        return ["The recipe as it is (point 0) is the best of them."]
    if said is None:
        return [f"Best: point {best['point']}. It is not confirmed on seeds that the search did not see."]
    if isinstance(said, str):
        return [f"Best: point {best['point']}. It could not be confirmed: {said}"]
    return [
        f"Best: point {best['point']}. On {len(said.best)} seeds that the search did not see: {said.best_mean}, "
        f"the recipe as it is {said.baseline_mean}; difference {said.difference} (95 % intervals): {said.verdict}."
    ]


def best_recipe(settings: Settings, best: PointRow, said: Confirmation | str | None) -> str:
    """The recipe of the best point as YAML, under a comment that says where it comes from."""
    about = [
        f"Point {best['point']} of a search by {settings.metric.kind}, {best['mean']:.6g}, judged by {settings.judge}.",
        *(f"  {path}: {json.dumps(value)}" for path, value in best["values"].items() if best["point"]),
        *confirmed(best, said),
    ]
    recipe = point_of(settings.recipe, best["values"]) if best["point"] else settings.recipe
    return "".join(f"# {line}\n" for line in about) + dump_yaml(to_plain(recipe))


def summary_of(
    settings: Settings, rows: Sequence[PointRow], best: PointRow | None, said: Confirmation | str | None
) -> Mapping[str, Any]:
    """For summary.json."""
    states = [row["state"] for row in rows]
    return {
        "metric": settings.metric.kind,
        "minimised": settings.metric.minimised,
        "judge": settings.judge,
        "points": len(rows),
        "states": {state: states.count(state) for state in dict.fromkeys(states)},
        "best": best,
        "baseline": rows[0] if rows else None,
        "said": confirmed(best, said),
        "confirmation": said if not isinstance(said, str) else {"failed": said},
        "seconds": sum(row["seconds"] or 0.0 for row in rows),
        "settings": settings.plain(),
    }


def _cells(row: PointRow, paths: Sequence[str]) -> list[str]:
    shown = "" if row["mean"] is None else f"{row['mean']:.4g}"
    seeds = " ".join(f"{value:.4g}" for value in row["seeds"])
    state = f"{row['state']}: {row['reason']}" if row["reason"] else row["state"]
    seconds = "" if row["seconds"] is None else f"{row['seconds']:.0f}"
    return [str(row["point"]), shown, seeds, state, seconds, *(_value(row["values"].get(path)) for path in paths)]


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"
