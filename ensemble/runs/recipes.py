"""Recipes by name or path, with what the caller lays over them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ensemble.config.explaining import PLUGINS
from ensemble.config.mistakes import ConfigError, did_you_mean
from ensemble.config.overrides import apply_override
from ensemble.config.parsing import to_plain
from ensemble.config.yaml_files import load_yaml
from ensemble.machine.files import user_path
from ensemble.plugins import load_entry_points
from ensemble.recipe import Recipe, parse_recipe
from models import model_card

IMAGES, TRAINING = "invert.py --recipe", "invert.py train --recipe"
STUDENTS, LEAKAGE = "invert.py distill --recipe", "invert.py leakage --recipe"
TAKES = {
    IMAGES: "a recipe of images names teachers",
    TRAINING: "a recipe of a training names model and data",
    STUDENTS: "a recipe of a student names student or dataset",
    LEAKAGE: "a recipe of a study names arms",
}
"""Commands, and what their recipes are known by."""
RUNTIME = ("device", "replicas", "precision", "compile", "micro_batch", "reproducible")
"""Fields of `runtime` that callers name directly."""


def load_recipe(name: str | Path, *overrides: str) -> Recipe:
    """The recipe in a file, or the shipped one of that name, with overrides such as "optimizer.lr=0.2".

    Raises ValueError for an unknown name, and with every mistake in the recipe.
    """
    load_entry_points()
    return assembled(read_recipe(name), {}, overrides)


def read_recipe(name: str | Path, command: str = IMAGES, folder: str = "") -> dict[str, Any]:
    """What is in `recipe_file(name, folder)`; its `extends` may name a shipped one, too.

    Raises ValueError as that does, ConfigError as `load_yaml` does, and in one line where the file is another
    command's than `command`, one of TAKES.
    """
    data = load_yaml(recipe_file(name, folder, command), shipped=recipe_file)
    if (other := _command_of(data)) not in ("", command):
        raise ConfigError([f"recipe {name}: this file is one of {other}; {TAKES[command]}"])
    return data


def recipe_file(name: str | Path, folder: str = "", command: str = IMAGES) -> Path:
    """The file, or that of the shipped recipe FOLDER/NAME or NAME (`quickstart`, `training/resnet20_cifar`).

    ValueError where there is none, with what `command`, one of TAKES, takes.
    """
    path = user_path(name)
    if folder and not path.suffix and not path.is_file():
        with suppress(ValueError):
            return recipe_file(f"{folder}/{name}")
    if path.is_file() or path.suffix in (".yaml", ".yml"):
        return path
    shipped = {file.relative_to(folder).with_suffix("").as_posix(): file for folder, file in _shipped()}
    if str(name) in shipped:
        return shipped[str(name)]
    if is_known_model(str(name)):
        takes = "name teachers as a list, or with --models" if command == IMAGES else TAKES[command]
        raise ValueError(f"{str(name)!r} is a network, no recipe; {takes}")
    hint = did_you_mean(str(name), shipped, f"shipped recipes: {', '.join(sorted(shipped))}")
    raise ValueError(f"recipe {str(name)!r} is neither a file nor a shipped recipe; {hint}")


def assembled(data: Mapping[str, Any], fields: Mapping[str, Any], overrides: Sequence[str]) -> Recipe:
    """The recipe `data` with `fields` of it replaced, then `overrides` applied.

    `fields` may also hold `iterations` (steps in all; the stages keep their proportions, and the optimiser's waits but
    those that are given beside it: an optimiser without stages, or by an override) and fields of `runtime`.
    Raises ConfigError with every mistake.
    """
    given = {key: value for key, value in fields.items() if value is not None}
    total = given.pop("iterations", None)
    if total is not None and (isinstance(total, bool) or not isinstance(total, int)):
        raise ValueError(f"iterations: expected an integer, got {total!r}")
    runtime = {key: given.pop(key) for key in RUNTIME if key in given}
    plain: dict[str, Any] = {**data, **given}
    if runtime and isinstance(plain.get("runtime") or {}, Mapping):  # what else it is is told below
        plain["runtime"] = {**(plain.get("runtime") or {}), **runtime}
    if total is not None and "stages" not in given and not any(text.startswith("stages") for text in overrides):
        with suppress(ValueError):  # told below; waits that are given count in steps of the stages as they will be
            scaled = to_plain(parse_recipe({**plain, "optimizer": data.get("optimizer", {})}).with_iterations(total))
            plain = {**plain, "stages": scaled["stages"], "optimizer": given.get("optimizer", scaled["optimizer"])}
            total = None
    for override in overrides:
        with suppress(ConfigError):  # mistakes are told below; an override may mend them
            plain = to_plain(parse_recipe(plain))  # all fields are there to be overridden
        plain = apply_override(plain, override)
    recipe = parse_recipe(plain)
    if given.get("images_per_class") is not None and recipe.image.batch_size is not None:
        raise ValueError(
            f"images_per_class: image.batch_size says how many images there are, {recipe.image.batch_size}; set that, "
            "or leave it out (--set image.batch_size=null)"
        )
    return recipe if total is None else recipe.with_iterations(total, set_of_optimizer(overrides))


def set_of_optimizer(overrides: Sequence[str]) -> set[str]:
    """The fields of the optimiser that overrides set."""
    found: set[str] = set()
    for text in overrides:
        if text.startswith("optimizer"):
            value = apply_override({}, text).get("optimizer")
            found |= {*value} if isinstance(value, Mapping) else set()
    return found


def _command_of(data: Mapping[str, Any]) -> str:
    """Whose file this looks like; "" where nothing tells."""
    if "teachers" in data:
        return IMAGES
    if "arms" in data:
        return LEAKAGE
    if {"student", "dataset"} & data.keys():
        return STUDENTS
    if {"model", "data"} <= data.keys():
        return TRAINING
    return "invert.py search --space" if any(set(".[") & set(str(key)) for key in data) else ""


def in_one_line(error: ConfigError) -> str:
    """What is wrong with a recipe that a run wrote; where a kind is unknown, a plugin may be what is missing."""
    said = "; ".join(error.problems)
    return f"{said}; {PLUGINS}" if "unknown kind" in said and PLUGINS not in said else said


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
