"""The space of a search: fields of a recipe and the values that each takes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ensemble.config.mistakes import ConfigError, show
from ensemble.config.overrides import value_at
from ensemble.config.parsing import parse, to_plain
from ensemble.config.yaml_files import load_yaml
from ensemble.machine.files import user_path
from ensemble.recipe import Recipe
from ensemble.runs.job import job
from ensemble.runs.recipes import assembled
from ensemble.search.ranges import Asks, Choice, Range, canonical

Values = Mapping[str, Any]
"""Paths of fields and their values: what makes a point of the recipe."""


@dataclass(frozen=True)
class Space:
    """Fields by their paths, as `objectives[0].weight`, and the values of each."""

    fields: Mapping[str, Range | Choice]

    def suggest(self, trial: Asks) -> dict[str, Any]:
        """A point's values."""
        return {path: values.suggest(path, trial) for path, values in self.fields.items()}

    def encoded(self, values: Values) -> dict[str, Any]:
        """A point's values as a study holds them."""
        return {path: self.fields[path].encoded(value) for path, value in values.items()}

    def values_of(self, recipe: Recipe) -> dict[str, Any]:
        """What the fields are in a recipe."""
        plain = to_plain(recipe)
        return {path: value_at(plain, path) for path in self.fields}

    def plain(self) -> dict[str, Any]:
        """As the file has it."""
        return {
            path: to_plain(values) if isinstance(values, Range) else list(values.values)
            for path, values in self.fields.items()
        }


def read_space(file: str | Path) -> Space:
    """The space in a YAML file; ConfigError with a line for each mistake."""
    data = load_yaml(user_path(file))
    if not data:
        raise ConfigError([f"{file}: it names no field; write one as objectives[0].weight: {{low: 0.1, high: 10}}"])
    fields: dict[str, Range | Choice] = {}
    problems: list[str] = []
    for path, written in data.items():
        try:
            fields[str(path)] = _field(str(path), written)
        except ConfigError as error:
            problems += [f"{file}: {problem}" for problem in error.problems]
    for path in fields:
        if outer := next((other for other in fields if path.startswith((f"{other}.", f"{other}["))), None):
            problems.append(f"{file}: {path} is a part of {outer}, which is searched as a whole; leave one of them out")
    if problems:
        raise ConfigError(problems)
    return Space(fields)


def point_of(recipe: Recipe, values: Values) -> Recipe:
    """The recipe with these values in their places; ConfigError where it refuses them.

    Kinds come first: another kind has fields of its own, and takes the others' values away.
    """
    ordered = sorted(values.items(), key=lambda item: (_depth(item[0]), not item[0].endswith(".kind")))
    return assembled(to_plain(recipe), {}, [f"{path}={json.dumps(value)}" for path, value in ordered])


def _depth(path: str) -> int:
    return path.count(".") + path.count("[")


def check_space(space: Space, recipe: Recipe, file: str | Path) -> list[Recipe]:
    """The recipes of the values that were tried: each field's ends, or choices, alone.

    Raises ConfigError with a line for each field that is none of the recipe's, and for each value that it refuses.
    """
    found: list[Recipe] = []
    problems: list[str] = []
    for values in _probes(space):
        try:
            point = point_of(recipe, values)
            check_device(point)
            job(point, None).check(ranks=1)  # what cards, files and sizes do not allow
            found.append(point)
        except ConfigError as error:
            problems += [f"{file}: {_without_value(problem, values)}" for problem in error.problems]
        except ValueError as error:
            ((path, value),) = values.items()
            problems.append(f"{file}: {path}={json.dumps(value)}: {error}")
    if problems:
        raise ConfigError(dict.fromkeys(problems))
    return found


def check_device(recipe: Recipe) -> None:
    """ConfigError where the recipe is for several ranks."""
    if not isinstance(recipe.runtime.device, str):
        raise ConfigError(["runtime.device: a list is for ranks, and a search is one process; name one (--device)"])


def _probes(space: Space) -> Iterator[Values]:
    for path, values in space.fields.items():
        for value in values.probes:
            yield {path: value}


def _without_value(problem: str, values: Values) -> str:
    """A mistake of an override, as that of its path: both ends of a range make the same one."""
    ((path, value),) = values.items()
    return problem.replace(f"override {f'{path}={json.dumps(value)}'!r}", path)


def _field(path: str, written: Any) -> Range | Choice:
    """What is written of a field; ConfigError with its path."""
    value_at({}, path)  # whether it is a path
    if path == "seed":
        raise ConfigError(["seed: all points are made from the same seeds; leave it out"])
    if path == "verifiers" or path.startswith("verifiers["):
        raise ConfigError(["verifiers: a search has a judge and no verifiers; leave it out"])
    if isinstance(written, dict):
        return parse(Range, written, path)
    if not isinstance(written, list):
        raise ConfigError([f"{path}: expected {{low: .., high: ..}} or a list of values, got {show(written)}"])
    texts = [_canonical(path, value) for value in written]
    if len(set(texts)) < 2 or len(set(texts)) < len(texts):
        raise ConfigError([f"{path}: a choice is a list of at least two values, all different"])
    return Choice(tuple(written))


def _canonical(path: str, value: Any) -> str:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):  # a date, which YAML knows, or infinity
        raise ConfigError([f"{path}: {show(value)} is no value of a recipe's"]) from None
    return canonical(value)
