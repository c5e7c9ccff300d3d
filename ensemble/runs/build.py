"""Turns a recipe into live objects: teachers, placement, formulation, and the inversion of one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ensemble import recipe as spec
from ensemble.engine.inversion import EnsembleMember, Inversion, StagePlan
from ensemble.engine.optimizers import Adam
from ensemble.engine.placement import Placement, Share, place, place_cells, slices
from ensemble.engine.reduction import FixedPointSum, FloatSum
from ensemble.engine.schedules import EarlyStopping
from ensemble.image.parameterization import FourierImage, ImageParameterization, PixelImage
from ensemble.image.start import initialise, list_images, read_image
from ensemble.image.transforms import Compose, Flip, Jitter, Resize
from ensemble.machine.hardware import PRECISIONS, resolve_compile, resolve_precision
from ensemble.machine.ranks import ProcessContext
from ensemble.machine.rng import generator
from ensemble.objectives import (
    BNMatching,
    ClassScore,
    CrossEntropy,
    Formulation,
    ImagePrior,
    L2Prior,
    TotalVariation,
)
from ensemble.runs.targets import batch_targets, parse_targets
from ensemble.teachers.teacher import Teacher
from models import ModelCard, create_model, model_card


@dataclass(frozen=True)
class Plan:
    """What follows from a recipe before any weights are loaded."""

    recipe: spec.Recipe
    """With every `auto` resolved."""
    cards: tuple[ModelCard, ...]
    names: tuple[str, ...]
    """The teachers' display names, unique."""
    size: int
    classes: tuple[int, ...] | None
    """Target classes; None draws them."""
    notes: tuple[str, ...] = ()
    """What the user should know before the run."""

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.cards[0].class_names

    def targets(self, trial: int) -> torch.Tensor:
        """The targets of one trial's batch, int64 (N,)."""
        r = self.recipe
        return batch_targets(
            self.classes, self.cards[0].num_classes, r.images_per_class, r.image.batch_size, r.seed + trial
        )


def plan(recipe: spec.Recipe, devices: Sequence[torch.device]) -> Plan:
    """Check the recipe against the models' cards, and resolve what is `auto` for this machine's devices.

    Raises ValueError for unknown models, label spaces that differ (of teachers and verifiers), targets that
    are none of the classes or lack a mapping, and an initial image that is not there.
    """
    cards = tuple(model_card(entry.model) for entry in recipe.teachers)
    _check_label_spaces(recipe, cards)
    _check_verifiers(recipe.verifiers, cards[0])
    classes = parse_targets(recipe.targets, cards[0].num_classes, cards[0].class_names)
    for entry in recipe.teachers:
        _own_targets(torch.tensor(classes or range(cards[0].num_classes)), entry, cards[0])
    size = recipe.image.size or max(card.input_size for card in cards)
    passes = recipe.iterations * recipe.trials * len(cards)
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
    _check_start(recipe.image.start, size)
    names = unique_names([entry.model for entry in recipe.teachers])
    denied = recipe.runtime.compile == "on" and not compiled
    judged = [name for name in recipe.verifiers if name in {entry.model for entry in recipe.teachers}]
    notes = [f"verifiers: {name} is a teacher, so it proves nothing" for name in judged]
    if denied:
        notes.append("compile: there is no compiler here, or no header of Python; the teachers run uncompiled")
    return Plan(resolved, cards, names, size, classes, tuple(notes))


def _check_verifiers(verifiers: Sequence[str], first: ModelCard) -> None:
    for name in verifiers:
        card = model_card(name)
        if not card.shares_classes(first):
            raise ValueError(
                f"verifiers: {name} judges other classes ({_named(card)}) than the first teacher's ({_named(first)}); "
                "give a network of the same classes, or put another teacher first"
            )


def _check_start(start: spec.Start, size: int) -> None:
    """What `initialise` would refuse, before anything is loaded or written."""
    if start.kind == "image" and start.path is not None:
        read_image(start.path, size)
    elif start.kind == "folder" and start.path is not None:
        list_images(start.path)
    elif start.path is not None or start.kind in ("image", "folder"):
        wrong = "takes no path" if start.path is not None else "needs a path"
        raise ValueError(f"image.start: kind {start.kind!r} {wrong}")


def _check_label_spaces(recipe: spec.Recipe, cards: Sequence[ModelCard]) -> None:
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
                f"map the names of the first to the indices of the other, as --set 'teachers[{i}].classes={{cat: 0}}'"
            )


def _named(card: ModelCard) -> str:
    names = f", {card.class_names[0]} to {card.class_names[-1]}" if card.class_names else ""
    return f"{card.num_classes} of {card.label_space}" if card.label_space else f"{card.num_classes}{names}"


def unique_names(models: Sequence[str]) -> tuple[str, ...]:
    """NAME of each NAME@WEIGHTS, numbered (`NAME#1`, `NAME#2`) where it comes more than once."""
    short = [model.partition("@")[0] for model in models]
    return tuple(
        name if short.count(name) == 1 else f"{name}#{short[:i].count(name) + 1}" for i, name in enumerate(short)
    )


def _own_targets(targets: torch.Tensor, entry: spec.TeacherEntry, first: ModelCard) -> torch.Tensor:
    if entry.classes is None:
        return targets
    table = torch.full((first.num_classes,), -1)
    for name, index in entry.classes.items():
        table[first.class_names.index(name)] = index
    mapped = table[targets]
    if (mapped < 0).any():
        missing = first.class_names[int(targets[mapped < 0][0])]
        raise ValueError(
            f"teachers: the mapping of {entry.model} lacks the target class {missing!r}; map it, or leave "
            "it out of the targets"
        )
    return mapped


@dataclass(frozen=True)
class Ensemble:
    """The teachers of a run on this rank, and who computes what."""

    members: tuple[tuple[str, float, Any, Teacher | None], ...]
    """(name, weight, BN statistics, the teacher where this rank owns a share of it)."""
    placement: Placement
    costs: tuple[float, ...]
    """FLOPs of one image, forward and gradient, by teacher."""
    memory: tuple[int, ...]
    """Bytes kept for the gradient per image, by teacher."""


def count_cost(teacher: Teacher) -> tuple[float, int]:
    """(FLOPs of one image forward and back to the input, bytes of activations kept for it)."""
    size = teacher.card.input_size
    view = torch.full((1, 3, size, size), 0.5, dtype=teacher.wide, device=teacher.device, requires_grad=True)
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.ndim == 4 and tensor.shape[0] == 1 and not isinstance(tensor, torch.nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t),
        FlopCounterMode(display=False) as counter,
        sdpa_kernel(SDPBackend.MATH),  # attention as products, counted alike on every device
    ):
        logits, moments = teacher.observe(view)
        torch.autograd.grad(logits.sum() + moments.sum(), view)
    return float(counter.get_total_flops()), sum(kept.values())


def build_ensemble(plan: Plan, context: ProcessContext, world_size: int | None = None) -> Ensemble:
    """Load the teachers, place them, and keep on this rank those that it owns a share of.

    `world_size` overrides the context's, for a dry run. Raises ValueError where weights cannot be had or do not
    fit, BN matching finds no BN layer, or the placement does not work out.
    """
    recipe = plan.recipe
    dtype = PRECISIONS[recipe.runtime.precision]
    matches = any(isinstance(o, spec.BNMatchingSpec) for o in recipe.objectives)
    teachers, costs, memory = [], [], []
    for name, entry in zip(plan.names, recipe.teachers, strict=True):
        net, card = create_model(entry.model)
        teacher = Teacher(name, net, card, dtype=dtype, device=context.device)
        if matches and teacher.statistics is None:
            raise ValueError(
                f"teachers: {entry.model} has no BatchNorm layers that run, but bn_matching needs them; "
                "drop the teacher or the objective"
            )
        for stage in recipe.stages:
            teacher.admit(stage.size or plan.size, plan.size)
        flops, kept = count_cost(teacher)
        teachers.append(teacher)
        costs.append(flops)
        memory.append(kept)
    images = len(plan.targets(0))
    world = world_size or context.world_size
    if recipe.runtime.reproducible == "ranks":
        placement = place_cells(costs, images, world, recipe.runtime.cell_size)
    else:
        placement = place(costs, images, world, [entry.ranks for entry in recipe.teachers])
    owned = placement.teachers_of(context.rank)
    members = []
    for t, (teacher, entry) in enumerate(zip(teachers, recipe.teachers, strict=True)):
        if t in owned:
            teacher.rewrite()  # after its cost was counted: placements must not depend on the device
            if recipe.runtime.compile == "on":
                teacher.compile()
        members.append((teacher.name, entry.weight, teacher.statistics, teacher if t in owned else None))
    return Ensemble(tuple(members), placement, tuple(costs), tuple(memory))


def check_placement(plan: Plan, ranks: int) -> None:
    """Raises ValueError where replicas and teachers cannot be placed on so many ranks; needs no weights."""
    members = members_of(plan.recipe, ranks)
    if plan.recipe.runtime.reproducible == "placement":
        fixed = [entry.ranks for entry in plan.recipe.teachers]
        place([1.0] * len(plan.cards), len(plan.targets(0)), members, fixed)


def members_of(recipe: spec.Recipe, ranks: int) -> int:
    """Ranks per replica; ValueError where they do not come out even."""
    replicas = recipe.runtime.replicas
    if ranks % replicas:
        raise ValueError(f"replicas: {ranks} ranks cannot be divided into {replicas} equal replicas")
    return ranks // replicas


def build_formulation(plan: Plan) -> Formulation:
    """The recipe's objectives as live terms."""
    logits_terms: list[Any] = []
    bn_terms: list[BNMatching] = []
    priors: list[ImagePrior] = []
    for o in plan.recipe.objectives:
        match o:
            case spec.CrossEntropySpec():
                logits_terms.append(CrossEntropy(o.weight, o.temperature))
            case spec.ClassScoreSpec():
                logits_terms.append(ClassScore(o.weight))
            case spec.BNMatchingSpec():
                bn_terms.append(BNMatching(o.weight, o.convention, o.first, dict(o.layers)))
            case spec.TotalVariationSpec():
                priors.append(TotalVariation(o.weight, o.order, o.over))
            case spec.L2Spec():
                priors.append(L2Prior(o.weight, o.over))
    card = plan.cards[0]
    space = (card.mean, card.std) if plan.recipe.prior_space == "normalised" else (None, None)
    return Formulation(tuple(logits_terms), tuple(bn_terms), tuple(priors), *space)


def build_inversion(plan: Plan, ensemble: Ensemble, context: ProcessContext, trial: int) -> Inversion:
    """The inversion of one trial's batch, at its start; ValueError for layers that a teacher does not have."""
    recipe, device = plan.recipe, context.device
    micro_batch = recipe.runtime.micro_batch
    assert micro_batch != "auto", "resolved before"
    targets = plan.targets(trial).to(device)
    seed = recipe.seed + trial
    members = [
        EnsembleMember(name, weight, statistics, _own_targets(targets.cpu(), entry, plan.cards[0]).to(device), teacher)
        for (name, weight, statistics, teacher), entry in zip(ensemble.members, recipe.teachers, strict=True)
    ]
    formulation = build_formulation(plan)
    for term in formulation.bn_terms:
        for _, _, statistics, _ in ensemble.members:
            if statistics is not None:
                term.layer_weights(statistics)  # what it refuses is refused now, not at the first step
    invariant = recipe.runtime.reproducible == "ranks"
    cells: list[Share] = []
    for share in ensemble.placement.shares[context.rank]:
        cells += slices(share, None if invariant else micro_batch)
    return Inversion(
        _parameterization(plan, len(targets), device, seed),
        members,
        formulation,
        [_stage(recipe, stage, plan.size) for stage in recipe.stages],
        cells=cells,
        seed=seed,
        acting=recipe.ensemble.acting,
        acting_count=recipe.ensemble.count,
        best_every=recipe.best_every,
        early_stopping=EarlyStopping(recipe.optimizer.early_stopping) if recipe.optimizer.early_stopping else None,
        recompute=micro_batch is not None,
        reduction=FixedPointSum() if invariant else FloatSum(),
        reduce=context.sum_,
        share=context.share_,
        poll_every=recipe.record_every if device.type == "cuda" and context.backend != "gloo" else 1,
    )


def _parameterization(plan: Plan, images: int, device: torch.device, seed: int) -> ImageParameterization:
    recipe, card = plan.recipe, plan.cards[0]
    dtype = torch.promote_types(PRECISIONS[recipe.runtime.precision], torch.float32)
    image: ImageParameterization
    match recipe.image.parameterization:
        case spec.FourierSpec(decay=decay, decorrelate=decorrelate):
            image = FourierImage(images, plan.size, decay=decay, decorrelate=decorrelate, dtype=dtype, device=device)
        case spec.PixelSpec(space=space, clip=clip):
            mean, std = (card.mean, card.std) if space == "normalised" else (None, None)
            image = PixelImage(
                images, plan.size, space=space, mean=mean, std=std, clip=clip, dtype=dtype, device=device
            )
    start = recipe.image.start
    initialise(image, start.kind, scale=start.scale, path=start.path, rng=generator(seed, "start"))
    return image


def _stage(recipe: spec.Recipe, stage: spec.StageSpec, size: int) -> StagePlan:
    optimizer = recipe.optimizer
    transform = Compose(
        (
            Resize(stage.size or size),
            Jitter(stage.jitter, stage.jitter_mode, stage.jitter_per_image),
            Flip(stage.flip, stage.flip_per_image),
        )
    )
    return StagePlan(
        stage.iterations,
        transform,
        Adam(stage.lr or optimizer.lr, optimizer.betas, optimizer.eps),
        min(optimizer.warmup, stage.iterations),
        optimizer.schedule,
        (optimizer.plateau_factor, optimizer.plateau_patience),
    )
