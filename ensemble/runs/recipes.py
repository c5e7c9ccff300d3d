"""Recipes by name or path, with what the caller lays over them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ensemble.config.mistakes import ConfigError, did_you_mean
from ensemble.config.overrides import apply_override
from ensemble.config.parsing import to_plain
from ensemble.config.yaml_files import load_yaml
from ensemble.plugins import load_entry_points
from ensemble.recipe import Recipe, parse_recipe
from models import model_card

RUNTIME = ("device", "replicas", "precision", "compile", "micro_batch", "reproducible")
"""Fields of `runtime` that callers name directly."""


def load_recipe(name: str | Path, *overrides: str) -> Recipe:
    """The recipe in a file, or the shipped one of that name, with overrides such as "optimizer.lr=0.2".

    Raises ValueError for an unknown name, and with every mistake in the recipe.
    """
    load_entry_points()
    return assembled(load_yaml(recipe_file(name)), {}, overrides)


def recipe_file(name: str | Path) -> Path:
    """The file, or that of the shipped recipe `name` (`quickstart`, `training/resnet20_cifar`)."""
    path = Path(name).expanduser()
    if path.is_file() or path.suffix in (".yaml", ".yml"):
        return path
    shipped = {file.relative_to(folder).with_suffix("").as_posix(): file for folder, file in _shipped()}
    if str(name) in shipped:
        return shipped[str(name)]
    if is_known_model(str(name)):
        raise ValueError(f"{str(name)!r} is a network, no recipe; name teachers as a list, or with --models")
    hint = did_you_mean(str(name), shipped, f"shipped recipes: {', '.join(sorted(shipped))}")
    raise ValueError(f"recipe {str(name)!r} is neither a file nor a shipped recipe; {hint}")


def assembled(data: Mapping[str, Any], fields: Mapping[str, Any], overrides: Sequence[str]) -> Recipe:
    """The recipe `data` with `fields` of it replaced, then `overrides` applied.

    `fields` may also hold `iterations` (steps in all; the stages keep their proportions) and fields of `runtime`.
    Raises ConfigError with every mistake, and one line for a file that is another command's.
    """
    if other := _command_of(data):
        raise ConfigError([f"recipe: this file is one of {other}; a recipe of images names teachers"])
    given = {key: value for key, value in fields.items() if value is not None}
    total = given.pop("iterations", None)
    runtime = {key: given.pop(key) for key in RUNTIME if key in given}
    plain: dict[str, Any] = {**data, **given}
    if runtime:
        plain["runtime"] = {**(plain.get("runtime") or {}), **runtime}
    for override in overrides:
        with suppress(ConfigError):  # mistakes are told below; an override may mend them
            plain = to_plain(parse_recipe(plain))  # all fields are there to be overridden
        plain = apply_override(plain, override)
    recipe = parse_recipe(plain)
    if total is None:
        return recipe
    if isinstance(total, bool) or not isinstance(total, int):
        raise ValueError(f"iterations: expected an integer, got {total!r}")
    return recipe.with_iterations(total)


def _command_of(data: Mapping[str, Any]) -> str:
    """Which other command takes such a file; "" for what may be a recipe of images."""
    if "teachers" in data:
        return ""
    if {"student", "dataset"} <= data.keys():
        return "invert.py distill --recipe"
    if {"model", "data"} <= data.keys():
        return "invert.py train --recipe"
    return "invert.py search --space" if any(set(".[") & set(str(key)) for key in data) else ""


def is_known_model(name: str) -> bool:
    """Whether a network has this name."""
    try:
        model_card(name)
    except ValueError:
        return False
    return True


def _shipped() -> Iterable[tuple[Path, Path]]:
    """(folder, file) of each recipe that comes with the project, from a checkout or an installation."""
    for folder in (Path(__file__).parents[2] / "recipes", Path(sys.prefix) / "share/ensemble-inversion/recipes"):
        yield from ((folder, file) for file in sorted(folder.rglob("*.yaml")))
