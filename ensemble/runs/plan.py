"""What follows from a recipe before weights are loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ensemble.engine.placement import place
from ensemble.machine.files import user_path
from ensemble.machine.hardware import resolve_compile, resolve_precision
from ensemble.machine.words import numbered
from ensemble.objectives.terms import Formulation, Objective
from ensemble.recipe import Recipe, TeacherEntry
from ensemble.runs.networks import Networks
from ensemble.runs.targets import batch_targets, drawn_targets, parse_shares, parse_targets, spread
from ensemble.teachers.measured import Measurement, read_measurement
from models import ModelCard, wordnet_numbers

STUDENT = "student"
"""What the student is called beside the teachers."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What follows from a recipe before any weights are loaded."""

    recipe: Recipe
    """With precision and compile resolved for the devices, and the image's size."""
    cards: tuple[ModelCard, ...]
    names: tuple[str, ...]
    """The display names, unique, of the teachers and the student, which comes last."""
    verifier_names: tuple[str, ...]
    """The verifiers', which no teacher has."""
    size: int
    classes: tuple[int, ...] | None
    """Target classes; None draws them."""
    turns: tuple[int, ...]
    """The order in which target classes follow each other, over all batches; empty where they are drawn."""
    formulation: Formulation
    measurements: tuple[Measurement | None, ...]
    """What the teachers' `statistics` files hold."""
    networks: Networks = field(default_factory=Networks)
    live_terms: tuple[Objective, ...] = ()
    """Terms from Python, beside the recipe's objectives."""
    notes: tuple[str, ...] = ()
    """What the user should know before the run."""

    @property
    def teachers(self) -> tuple[str, ...]:
        """The names of those that teach."""
        return tuple(name for name, entry in zip(self.names, self.recipe.teachers, strict=True) if not entry.student)

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.cards[0].class_names

    @property
    def batch_size(self) -> int:
        """How many images a batch has."""
        return _batch_size(self.recipe, self.cards[0].num_classes if self.classes is None else len(self.classes))

    def targets(self, trial: int) -> torch.Tensor:
        """The targets of one trial's batch, int64 (N,)."""
        if self.classes is None:
            return drawn_targets(self.cards[0].num_classes, self.batch_size, self.recipe.seed + trial)
        return batch_targets(self.turns, self.batch_size, trial)

    @property
    def in_memory(self) -> tuple[str, ...]:
        """A line for each thing that the recipe cannot hold."""
        modules = [f"{name} was a module in memory, {digest}" for name, digest in self.networks.digests.items()]
        return (*modules, *(f"the term {term.name} was given in memory" for term in self.live_terms))

    @property
    def files(self) -> list[str]:
        """Those beside the networks' that decide the images."""
        image = self.recipe.image
        kinds = (image.parameterization, image.start, *self.formulation.terms)
        return [file for kind in kinds for file in kind.files_read()]

    @property
    def all_files(self) -> list[str]:
        """Those, and the networks': where all are as they were, so is a finished run."""
        return [*self.files, *self.files_of_networks]

    @property
    def files_of_networks(self) -> list[str]:
        """What teachers and verifiers are read from."""
        names = [*(entry.model for entry in self.recipe.teachers), *self.recipe.verifiers]
        statistics = [entry.statistics for entry in self.recipe.teachers if entry.statistics is not None]
        return [*(file for name in names for file in self.networks.files(name)), *statistics]

    def with_runtime(self, **changes: Any) -> Plan:
        """The same plan where what is resolved while the run begins is changed."""
        runtime = replace(self.recipe.runtime, **changes)
        return replace(self, recipe=replace(self.recipe, runtime=runtime))


def make_plan(
    recipe: Recipe,
    devices: Sequence[torch.device],
    networks: Networks | None = None,
    live_terms: Sequence[Objective] = (),
) -> Plan:
    """Check the recipe against the models' cards, and resolve what is `auto` for this machine's devices.

    Raises ValueError for unknown models, label spaces that differ (of teachers and verifiers), targets that
    are none of the classes or lack a mapping, an initial image, a file of statistics or a generator's weights that are
    not there, and a size that the parameterization cannot have.
    """
    networks = networks or Networks()
    cards = tuple(networks.card(entry.model) for entry in recipe.teachers)
    _check_label_spaces(recipe, cards)
    _check_verifiers(recipe.verifiers, cards[0], networks)
    classes, turns = _classes(recipe, cards[0])
    for entry in recipe.teachers:
        own_targets(torch.tensor(classes or range(cards[0].num_classes)), entry, cards[0])
    size = recipe.image.size or max(card.input_size for card in cards)
    students = len(cards) - recipe.teaching
    passes = recipe.iterations * recipe.trials * (recipe.acting + students)
    precision = resolve_precision(recipe.runtime.precision, devices)
    compiled = resolve_compile(recipe.runtime.compile, devices, passes)
    runtime = replace(
        recipe.runtime,
        precision=precision,  # type: ignore[arg-type]
        compile="on" if compiled else "off",
    )
    resolved = replace(recipe, image=replace(recipe.image, size=size), runtime=runtime)
    for stage in resolved.stages:
        if stage.jitter >= (stage.size or size):
            raise ValueError(
                f"stages: jitter {stage.jitter} must be smaller than the view's {stage.size or size} pixels"
            )
    recipe.image.parameterization.check(size)
    recipe.image.start.check(size)
    files = [entry.statistics for entry in recipe.teachers]
    measurements = tuple(None if file is None else read_measurement(user_path(file)) for file in files)
    space = (cards[0].mean, cards[0].std) if recipe.prior_space == "normalised" else (None, None)
    formulation = Formulation((*recipe.objectives, *live_terms), *space)
    _check_layers(recipe, formulation)
    denied = recipe.runtime.compile == "on" and not compiled
    models = [entry.model for entry in recipe.teachers]
    names = unique_names([STUDENT if entry.student else entry.model for entry in recipe.teachers])
    taught = [name.strip("<>") for name in recipe.verifiers if networks.taught(name, models)]
    notes = [f"warning: verifiers: {name} is a teacher, so it proves nothing" for name in taught]
    if formulation.memory and (wrong := [*recipe.looking_back("a term's memory")]):
        raise ValueError("; ".join(wrong))
    notes += _idle_statistics(files, measurements, formulation)
    if denied:
        notes.append("compile: there is no compiler here, or no header of Python; the teachers run uncompiled")
    judges = tuple(name if name not in names else f"{name}#verifier" for name in unique_names(recipe.verifiers))
    return Plan(
        recipe=resolved,
        cards=cards,
        names=names,
        verifier_names=judges,
        size=size,
        classes=classes,
        turns=turns,
        formulation=formulation,
        measurements=measurements,
        networks=networks,
        live_terms=tuple(live_terms),
        notes=tuple(notes),
    )


def _classes(recipe: Recipe, card: ModelCard) -> tuple[tuple[int, ...] | None, tuple[int, ...]]:
    """The target classes, None where they are drawn, and the turns that they take."""
    numbers = wordnet_numbers(card, str(recipe.targets))
    if not isinstance(recipe.targets, Mapping):
        classes = parse_targets(recipe.targets, card.num_classes, card.class_names, numbers)
        return classes, classes or ()
    shares = parse_shares(recipe.targets, card.num_classes, card.class_names, numbers)
    return tuple(shares), spread(shares, _batch_size(recipe, len(shares)) * recipe.trials)


def _batch_size(recipe: Recipe, classes: int) -> int:
    return recipe.image.batch_size or classes * recipe.images_per_class


def _idle_statistics(
    files: Sequence[str | None], measurements: Sequence[Measurement | None], formulation: Formulation
) -> list[str]:
    """A line for each file of statistics of which nothing would be used."""
    matched = any(term.matches_layers for term in formulation.teacher_terms)
    levels = any(term.uses_levels for term in formulation.teacher_terms)
    notes = []
    for file, found in zip(files, measurements, strict=True):
        if found is None:
            continue
        if not matched:
            notes.append(f"warning: {file} holds statistics, which only bn_matching uses")
        elif not found.layers and not levels:
            notes.append(
                f"warning: {file} holds levels alone, which only bn_matching with convention: calibrated, or drawn: "
                "true, uses"
            )
    return notes


def _check_layers(recipe: Recipe, formulation: Formulation) -> None:
    """ValueError for factors of layers that no term would use."""
    if any(term.matches_layers for term in formulation.teacher_terms):
        return
    for i, entry in enumerate(recipe.teachers):
        if entry.layers:
            raise ValueError(f"teachers[{i}].layers: no objective weighs layers; leave it out, or add bn_matching")


def _check_verifiers(verifiers: Sequence[str], first: ModelCard, networks: Networks) -> None:
    for name in verifiers:
        card = networks.card(name)
        if not card.shares_classes(first):
            raise ValueError(
                f"verifiers: {name} judges other classes ({_named(card)}) than the first teacher's ({_named(first)}); "
                "give a network of the same classes, or put another teacher first"
            )


def _check_label_spaces(recipe: Recipe, cards: Sequence[ModelCard]) -> None:
    first = cards[0]
    if recipe.teachers[0].classes is not None:
        raise ValueError("teachers[0].classes: the first teacher defines the classes; map the others onto it")
    for i, (entry, card) in enumerate(zip(recipe.teachers, cards, strict=True)):
        if entry.classes is not None:
            unknown = [name for name in entry.classes if name not in first.class_names]
            outside = [index for index in entry.classes.values() if not 0 <= index < card.num_classes]
            if unknown or outside:
                what = f"no class {unknown[0]!r} in {first.name}" if unknown else f"index {outside[0]} is out of range"
                raise ValueError(f"teachers[{i}].classes: {what}")
            continue
        if not card.shares_classes(first):
            raise ValueError(
                f"teachers: {first.name} and {card.name} have different classes ({_named(first)} and {_named(card)}); "
                "map the name of each target to its index of the other, as the override (--set) "
                f"'teachers[{i}].classes={{{(name := (*first.class_names, 'cat')[0])}: 0}}' for the target {name}"
            )


def _named(card: ModelCard) -> str:
    names = f", {card.class_names[0]} to {card.class_names[-1]}" if card.class_names else ""
    return f"{card.num_classes} of {card.label_space}" if card.label_space else f"{card.num_classes}{names}"


def unique_names(models: Sequence[str]) -> tuple[str, ...]:
    """NAME of each NAME@WEIGHTS, numbered (`NAME#1`, `NAME#2`) where it comes more than once."""
    return numbered([model.partition("@")[0].strip("<>") for model in models])


def own_columns(entry: TeacherEntry, first: ModelCard) -> tuple[int, ...] | None:
    """Where the first teacher's classes are among another's, -1 for those that are not mapped; None: as they are."""
    if entry.classes is None:
        return None
    columns = [-1] * first.num_classes
    for name, index in entry.classes.items():
        columns[first.class_names.index(name)] = index
    return tuple(columns)


def own_targets(targets: torch.Tensor, entry: TeacherEntry, first: ModelCard) -> torch.Tensor:
    """The targets, indices of the first teacher's classes, as indices of another's own."""
    columns = own_columns(entry, first)
    if columns is None:
        return targets
    mapped = torch.tensor(columns)[targets]
    if (mapped < 0).any():
        missing = first.class_names[int(targets[mapped < 0][0])]
        raise ValueError(
            f"teachers: the mapping of {entry.model} lacks the target class {missing!r}; map it, or leave "
            "it out of the targets"
        )
    return mapped


def left_out(plan: Plan) -> list[str]:
    """A line where a run is too short for all of its target classes."""
    classes = set(plan.classes or ())
    missing = classes - set(plan.turns[: plan.batch_size * plan.recipe.trials])
    if not missing:
        return []
    return [f"targets: {len(missing)} of {len(classes)} classes have no image; more trials have them (--trials)"]


def check_placement(plan: Plan, ranks: int) -> None:
    """Raises ValueError where replicas and teachers cannot be placed on so many ranks; needs no weights."""
    each = ranks_per_replica(plan.recipe, ranks)
    if plan.recipe.runtime.reproducible == "placement":
        fixed = [entry.ranks for entry in plan.recipe.teachers]
        place([1.0] * len(plan.cards), len(plan.targets(0)), each, fixed, alternate=plan.recipe.alternates)


def ranks_per_replica(recipe: Recipe, ranks: int) -> int:
    """How many ranks work on one batch; ValueError where they do not come out even."""
    replicas = recipe.runtime.replicas
    if ranks % replicas:
        raise ValueError(f"replicas: {ranks} ranks cannot be divided into {replicas} equal replicas")
    return ranks // replicas
