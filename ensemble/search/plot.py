"""A search as one picture."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from ensemble.search.points import PointRow
from ensemble.search.ranges import Choice, Range
from ensemble.search.settings import Settings

_COLUMNS = 3
_COLOURS = {"complete": "C0", "pruned": "C7"}


def plot(settings: Settings, rows: Sequence[PointRow]) -> bytes:
    """A PNG: the metric over the points with the best so far, and a panel a field with its values against the metric.

    Pruned points are grey, at the mean of the seeds that they saw; point 0, the recipe as it is, is a star; a line
    goes from the lowest to the highest of a point's seeds.
    """
    shown = [row for row in rows if row["state"] in _COLOURS and row["mean"] is not None]
    fields = settings.space.fields
    lines = math.ceil(len(fields) / _COLUMNS)
    figure = Figure(figsize=(10, 3 + 2.6 * lines), layout="constrained")
    grid = figure.add_gridspec(1 + lines, _COLUMNS)
    _over_points(figure.add_subplot(grid[0, :]), settings, shown)
    for i, (path, values) in enumerate(fields.items()):
        panel = figure.add_subplot(grid[1 + i // _COLUMNS, i % _COLUMNS])
        _of_field(panel, path, values, shown)
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()


def _over_points(panel: Any, settings: Settings, shown: Sequence[PointRow]) -> None:
    _dots(panel, [row["point"] for row in shown], shown)
    complete = [row for row in shown if row["state"] == "complete"]
    better = min if settings.metric.minimised else max
    best = list(accumulate((row["mean"] for row in complete), better))
    panel.step([row["point"] for row in complete], best, where="post", color="C1", label="best so far")
    panel.scatter([], [], marker="*", s=90, color="C0", label="the recipe as it is")
    panel.scatter([], [], s=20, color="C7", label="broken off")
    panel.plot([], [], color="C0", lw=1, alpha=0.5, label="its seeds")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.set_xlabel("point")
    panel.set_ylabel(settings.metric.kind)
    panel.legend(fontsize=8)


def _of_field(panel: Any, path: str, values: Range | Choice, shown: Sequence[PointRow]) -> None:
    known = [row for row in shown if path in row["values"]]
    if isinstance(values, Choice):
        names = list(dict.fromkeys(json.dumps(v) for v in (*values.values, *(row["values"][path] for row in known))))
        _dots(panel, [names.index(json.dumps(row["values"][path])) for row in known], known)
        panel.set_xticks(range(len(names)), [name.strip('"')[:20] for name in names])
    else:
        known = [row for row in known if isinstance(row["values"][path], int | float)]
        _dots(panel, [row["values"][path] for row in known], known)
        if values.log and all(row["values"][path] > 0 for row in known):
            panel.set_xscale("log")
            few = (1.0, 2.0, 5.0) if values.high / values.low <= 10**1.5 else (1.0,)
            panel.xaxis.set_major_locator(LogLocator(subs=few))
            panel.xaxis.set_major_formatter("{x:g}")
            panel.xaxis.set_minor_formatter(NullFormatter())
    panel.set_title(path, fontsize=9)


def _dots(panel: Any, x: Sequence[float], rows: Sequence[PointRow]) -> None:
    for at, row in zip(x, rows, strict=True):
        marker, size = ("*", 90) if row["point"] == 0 else ("o", 20)
        colour = _COLOURS[row["state"]]
        panel.scatter([at], [row["mean"]], marker=marker, s=size, color=colour)
        panel.plot([at, at], [min(row["seeds"]), max(row["seeds"])], color=colour, lw=1, alpha=0.5)
