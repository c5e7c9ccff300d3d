"""Conditions under which an audit ends with exit code 1: FIGURE OPERATOR VALUE, as `tpr_1pct>0.05`."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ensemble.config.mistakes import did_you_mean
from ensemble.privacy.findings import RANGES, words_of

_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "!=": operator.ne,
    "==": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
}
_FORM = re.compile(r"\s*([a-z][a-z0-9_]*)\s*(<=|>=|!=|==|<|>)\s*(\S(?:.*\S)?)\s*")


@dataclass(frozen=True)
class Condition:
    """`figure` is a key of FIGURES in `ensemble.privacy.findings`; `value` a number, or a word with == and !=."""

    figure: str
    operator: str
    value: float | str

    def met(self, figures: Mapping[str, float | str | None]) -> str:
        """Why the audit fails, empty where it does not. A figure that could not be measured fails, too."""
        found = figures.get(self.figure)
        if found is None:
            return f"{self.figure} was not measured, so {self} cannot be ruled out"
        shown = found if isinstance(found, str) else f"{found:.4g}"
        return (
            f"{self.figure} is {shown}, and {self} was to fail" if _OPERATORS[self.operator](found, self.value) else ""
        )

    def __str__(self) -> str:
        value = self.value if isinstance(self.value, str) else f"{self.value:g}"
        return f"{self.figure}{self.operator}{value}"


def parse_condition(text: str, figures: Mapping[str, str]) -> Condition:
    """The condition of a text; ValueError for another form, an unknown name or an impossible value."""
    form = _FORM.fullmatch(text)
    if form is None:
        raise ValueError(
            f"--fail-if {text!r}: expected FIGURE OPERATOR VALUE, as 'tpr_1pct>0.05' or 'claim==not consistent'"
        )
    name, sign, written = form.groups()
    if name not in figures:
        hint = did_you_mean(name, figures, f"there are {', '.join(figures)}")
        raise ValueError(f"--fail-if {text!r}: {name} is no figure; {hint}")
    if known := words_of(name):
        if sign not in ("==", "!="):
            raise ValueError(f"--fail-if {text!r}: words are compared by == and != alone")
        if written not in known:
            raise ValueError(f"--fail-if {text!r}: {name} is one of {'; '.join(known)}")
        return Condition(name, sign, written)
    try:
        value = float(written)
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise ValueError(f"--fail-if {text!r}: {name} is a number; compare it with one")
    low, high = RANGES.get(name, (-math.inf, math.inf))
    if not low <= value <= high:
        raise ValueError(f"--fail-if {text!r}: {name} lies between {low:g} and {high:g}; 5 % is 0.05")
    return Condition(name, sign, value)
