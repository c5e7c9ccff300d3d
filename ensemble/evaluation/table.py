"""Judgements side by side: a figure a row, so that it fits a terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from rich.table import Table
from rich.text import Text

from ensemble.evaluation.judge import Judgement

_LABELS, _VALUES = 30, 14

_ALONE: dict[str, Callable[[Judgement], str]] = {
    "images": lambda one: str(one.n),
    "accuracy": lambda one: f"{one.accuracy.top1:.1%}",
    "  95 % interval": lambda one: "{:.1%}-{:.1%}".format(*one.accuracy.interval),
    "mean confidence": lambda one: f"{one.accuracy.confidence:.3f}",
    "diversity within a class": lambda one: _number(one.diversity),
    "near-duplicates": lambda one: f"{one.near_duplicates:.1%}",
    "BN distance, real = 1": lambda one: _number(one.bn_distance, 2),
}
_SCORE: dict[str, Callable[[Judgement], str]] = {
    "Inception Score": lambda one: _number(one.inception_score, 2),
}
_BESIDE: dict[str, Callable[[Judgement], str]] = {
    "Frechet distance": lambda one: _number(one.frechet),
    "kernel distance x 1000": lambda one: _number(one.kernel and one.kernel * 1000, 2),
    "precision": lambda one: _number(one.precision),
    "recall": lambda one: _number(one.recall),
    "density": lambda one: _number(one.density),
    "coverage": lambda one: _number(one.coverage),
    "nearer to train than to test": lambda one: _percent(one.closer_to_train),
    "copies of training images": lambda one: _percent(one.train_copies),
}


def table(judgements: Mapping[str, Judgement], compared: bool) -> Table:
    """A column for each set of images, with what was `compared` with real images where that was done."""
    scored = any(one.inception_score is not None for one in judgements.values())
    figures = _ALONE | (_SCORE if scored else {}) | (_BESIDE if compared else {})
    made = Table(box=None, pad_edge=False)
    made.add_column("", no_wrap=True)
    for name in judgements:
        made.add_column(Text(name, overflow="fold"), justify="right", min_width=_VALUES)
    for label, show in figures.items():
        made.add_row(label, *map(show, judgements.values()))
    return made


def width(columns: int) -> int:
    """Characters that a table of so many sets needs, at least."""
    return _LABELS + (_VALUES + 2) * columns


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
