"""What a run of units prints."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from ensemble.machine.words import plural
from ensemble.units.matching import Match
from ensemble.units.preferred import Preferred
from ensemble.units.robustness import CHANGES

_SHOWN = 40


def print_matches(matches: Sequence[Match]) -> None:
    """Which units of the other networks were found, and how well they match."""
    table = Table("unit", "matches", "r", box=None, pad_edge=False)
    for match in matches[:_SHOWN]:
        for other, r in zip(match.others, match.correlations, strict=True):
            table.add_row(match.unit, other, f"{r:.2f}")
    _console().print(table)


def print_units(made: Preferred, output: str) -> None:
    """A table of the first units, a line for each network, and a line of all."""
    console = _console()
    networks = sorted({key.rpartition("/")[0] for row in made.rows for key in row if key.endswith("activation")})
    real = any(key.endswith("of_largest") for key in made.rows[0])
    columns = ["activation", *(("z", "of_largest") if real else ()), *CHANGES]
    heads = ["activation", *(("z", "/ largest real") if real else ()), *(f"kept under {change}" for change in CHANGES)]
    table = Table("unit", *(["network"] if networks != [""] else []), *heads, box=None, pad_edge=False)
    for row in made.rows[:_SHOWN]:
        for name in networks:
            values = [row.get(f"{name}/{key}" if name else key) for key in columns]
            if values[0] is None:  # the unit has no part in this network
                continue
            shown = ["" if value is None else f"{value:.3g}" for value in values]
            unit = f"{row['unit']} ({row['class']})" if "class" in row else row["unit"]
            table.add_row(unit, *([name] if name else []), *shown)
    console.print(table)
    if len(made.rows) > _SHOWN:
        console.print(f"and {len(made.rows) - _SHOWN} more, in units.jsonl")
    above = [row[key] for row in made.rows for key in row if key.rpartition("/")[2] == "above"]
    if above:
        console.print(f"{sum(above)} of {len(above)} are above the largest of the real images")
    if all(row["of_class"] for row in made.rows):
        for name, read in made.results.summary.get("verifiers", {}).items():
            console.print(f"{name} reads {read['accuracy']:.1%} of {read['images']} images as their class")
    for text in made.warnings:
        console.print(f"warning: {text}")
    if not real:
        console.print("--real DATA says what real images reach")
    console.print(
        f"{plural(len(made.images), 'image')}: {output}/units.png; {made.results.summary['wall_seconds']:.0f} s"
    )


def _console() -> Console:
    return Console(width=None if Console().is_terminal else 140, markup=False, emoji=False)
