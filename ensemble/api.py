"""Inversion from Python, in one call."""

from __future__ import annotations

import dataclasses
import inspect
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ensemble.config.mistakes import did_you_mean
from ensemble.config.parsing import to_plain
from ensemble.machine.environment import is_launched, launched_rank, launched_ranks
from ensemble.machine.hardware import settings_kept
from ensemble.machine.progress import progress_reporter
from ensemble.objectives.terms import FunctionTerm, Objective
from ensemble.plugins import load_entry_points
from ensemble.recipe import Recipe, default_recipe
from ensemble.runs.job import Job, job, recipe_for
from ensemble.runs.networks import OWN, Named, Networks, named_networks
from ensemble.runs.recipes import RUNTIME
from ensemble.runs.results import Results
from models import ModelCard

Source = Recipe | str | Path | nn.Module | Sequence[Named | Mapping[str, Any]] | None
Term = Objective | Callable[[torch.Tensor], torch.Tensor]


def invert(
    source: Source = None,
    *overrides: str,
    output: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    tensorboard: str | Path | None = None,
    terms: Sequence[Term] | Term = (),
    verifiers: Sequence[Named] | str | nn.Module | None = None,
    input_size: int | None = None,
    mean: Sequence[float] | float | None = None,
    std: Sequence[float] | float | None = None,
    class_names: Sequence[str] = (),
    **fields: Any,
) -> Results | None:
    """Images on which the teachers agree. Under torchrun every rank calls it; ranks but 0 get None.

    `source` is a list of teachers (names as on the command line, modules, pairs (module, ModelCard), or mappings
    {"model": one of these, "weight": 2.0, ...}), or a recipe (Recipe, file, or the name of a shipped one), or None to
    go on with the run in `output`. A module without a card needs `input_size`, in pixels, and takes `mean`, `std`
    (of RGB in [0, 1]; ImageNet's where they are not given) and `class_names`; its classes are counted by a probe.
    Modules are left as they were.

    `fields` are the recipe's (`targets`, `images_per_class`, `seed`, `optimizer`, ...), `iterations` (steps in all)
    and those of `runtime` (`device`, `precision`, ...); `overrides` reach every field: "optimizer.lr=0.2". `terms`
    are further terms of the loss: TeacherTerms and ImageTerms, or functions of the view (N, 3, H, W), RGB in [0, 1],
    to a scalar.

    Without `output` nothing is written; `tensorboard` is a folder for TensorBoard's files. Ctrl-C ends it with the
    images that there are. Raises ValueError for mistakes, with one line each.
    """
    began = time.perf_counter()
    load_entry_points()
    with settings_kept():
        prepared = prepare(
            source,
            *overrides,
            output=output,
            resume=resume,
            overwrite=overwrite,
            tensorboard=tensorboard,
            terms=terms,
            verifiers=verifiers,
            own=own_of(input_size, mean, std, class_names),
            **fields,
        )
        return carry_out(prepared, began, progress)


def prepare(
    source: Source,
    *overrides: str,
    output: str | Path | None,
    resume: bool,
    overwrite: bool,
    own: Mapping[str, Any],
    tensorboard: str | Path | None = None,
    terms: Sequence[Term] | Term = (),
    verifiers: Sequence[Named] | str | nn.Module | None = None,
    **fields: Any,
) -> Job:
    """What `invert` is to do, checked but for the folder and the ranks; `own` is what is said of bare modules."""
    if source is None and "teachers" in fields:
        source = fields.pop("teachers")
    _check_names(fields)
    base: Any = source
    in_memory: dict[str, tuple[nn.Module, ModelCard]] = {}
    if isinstance(source, Recipe):
        base = to_plain(source)
    elif source is not None and not isinstance(source, str | Path):
        base, in_memory = _from_teachers(source, own)
    if verifiers is not None:
        listed = [verifiers] if isinstance(verifiers, str | nn.Module) else list(verifiers)
        fields["verifiers"], judges = named_networks(listed, in_memory, **own)
        in_memory |= judges
    _check_own(own, in_memory)
    named, live = _terms(terms)
    if "targets" in fields:
        fields["targets"] = _targets(fields["targets"])
    recipe = recipe_for(base, fields, overrides, output, resume)
    if resume and base is None:  # the run's own recipe has them already
        named = [term for term in named if term not in recipe.objectives]
    if named:
        recipe = recipe_for(
            to_plain(recipe) | {"objectives": [*map(to_plain, recipe.objectives), *map(to_plain, named)]},
            {}, (), None, False,
        )  # fmt: skip
    return job(
        recipe,
        output,
        resume=resume,
        overwrite=overwrite,
        networks=Networks(in_memory),
        terms=live,
        tensorboard=tensorboard,
    )


def carry_out(prepared: Job, began: float, progress: bool, *, keeps_partial: bool = True) -> Results | None:
    """What `invert` returns: of a run that has ended before, what is there.

    Raises Interrupted after a stop that was asked for, unless `keeps_partial` is to give what there is.
    """
    device = prepared.plan.recipe.runtime.device
    if not is_launched() and not isinstance(device, str) and len(device) > 1:
        raise ValueError("device: a list is for ranks, as torchrun or invert.py --devices start them; name one")
    rank = launched_rank()
    if prepared.is_finished and prepared.folder is not None:
        return Results.open(prepared.folder.path) if rank == 0 else None
    prepared.check(launched_ranks())
    return prepared.run(began, progress_reporter(rank, quiet=not progress), keeps_partial=keeps_partial)


def _from_teachers(
    source: nn.Module | Sequence[Named | Mapping[str, Any]],
    own: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, tuple[nn.Module, ModelCard]]]:
    """The plain recipe for these teachers, and the modules among them by their names there."""
    if not isinstance(source, nn.Module | Iterable):
        raise ValueError(f"teachers: expected a list of names or modules, or a recipe, got {source!r}")
    listed = [source] if isinstance(source, nn.Module) else list(source)
    if not listed:
        raise ValueError("teachers: name at least one")
    entries = [dict(teacher) if isinstance(teacher, Mapping) else {"model": teacher} for teacher in listed]
    if missing := [entry for entry in entries if "model" not in entry]:
        raise ValueError(f"teachers: {missing[0]} names no model")
    names, modules = named_networks([entry["model"] for entry in entries], {}, **own)
    networks = Networks(modules)
    recipe = default_recipe(names, max(networks.card(name).input_size for name in names))
    recipe["teachers"] = [
        {key: str(value) if isinstance(value, Path) else value for key, value in entry.items()} | {"model": name}
        for entry, name in zip(entries, names, strict=True)
    ]
    return recipe, modules


def own_of(input_size: Any, mean: Any, std: Any, class_names: Any) -> dict[str, Any]:
    """What is said of bare modules, checked: one number for mean or std is that of all channels."""
    whole = isinstance(input_size, Integral) and not isinstance(input_size, bool)
    if input_size is not None and (not whole or input_size < 1):
        raise ValueError(f"input_size: expected a number of pixels, got {input_size!r}")
    said: dict[str, Any] = {"input_size": input_size, "mean": mean, "std": std}
    for name in ("mean", "std"):
        value = said[name].tolist() if hasattr(said[name], "tolist") else said[name]
        if isinstance(value, Real):
            said[name] = [float(value)] * 3
        elif value is not None:
            if not isinstance(value, list | tuple) or not all(isinstance(part, Real) for part in value):
                raise ValueError(f"{name}: expected a number, or one a channel, got {value!r}")
            said[name] = [float(part) for part in value]
    names = () if class_names is None else class_names
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise ValueError(f"class_names: expected a list of names, got {names!r}")
    return said | {"class_names": tuple(names)}


def _check_names(fields: Mapping[str, Any]) -> None:
    """ValueError for a keyword that is none, with the nearest that is."""
    known = [*(field.name for field in dataclasses.fields(Recipe)), "iterations", *RUNTIME]
    known += [name for name in inspect.signature(invert).parameters if name not in ("overrides", "fields")]
    for name in fields:
        if name not in known:
            hint = did_you_mean(name, known, 'deeper fields are overrides, as "optimizer.lr=0.2"')
            if name in ("plugin", "plugins"):
                hint = "call ensemble.load_plugin(FILE) first, or import what it registers"
            raise ValueError(f"{name}: unknown keyword; {hint}")


def _check_own(own: Mapping[str, Any], in_memory: Mapping[str, tuple[nn.Module, ModelCard]]) -> None:
    """ValueError for what is said of bare modules where none is given."""
    said = [name for name, value in own.items() if value not in (None, (), [])]
    if said and not any(card.family == OWN for _, card in in_memory.values()):
        raise ValueError(f"{said[0]}: it is for modules without a ModelCard, and none is given")


def _targets(targets: Any) -> Any:
    """Tensors, arrays and single indices as a recipe has them."""
    if hasattr(targets, "tolist"):
        targets = targets.tolist()
    if isinstance(targets, list | tuple | range | set | frozenset):
        targets = [target.tolist() if hasattr(target, "tolist") else target for target in targets]
    return [targets] if isinstance(targets, int) and not isinstance(targets, bool) else targets


def _terms(terms: Sequence[Term] | Term) -> tuple[list[Objective], list[Objective]]:
    """Those that a recipe can name, and those that it cannot."""
    named: list[Objective] = []
    live: list[Objective] = []
    for term in [terms] if isinstance(terms, Objective) or callable(terms) else terms or ():
        if isinstance(term, type):
            raise ValueError(f"terms: {term.__name__} is a class; give an instance, {term.__name__}()")
        if isinstance(term, Objective):
            (named if type(term) in type(term).kinds.values() else live).append(term)
        elif callable(term):
            live.append(FunctionTerm(term))
        else:
            raise ValueError(f"terms: {term!r} is neither a TeacherTerm, an ImageTerm nor a function of the view")
    return named, live
