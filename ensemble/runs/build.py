"""Turns a recipe into live objects: teachers, placement, formulation, and the inversion of one batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ensemble import recipe as spec
from ensemble.engine.inversion import EnsembleMember, Inversion, StagePlan
from ensemble.engine.optimizers import Adam
from ensemble.engine.placement import Placement, Share, place, place_cells, slices
from ensemble.engine.reduction import FixedPointSum, FloatSum
from ensemble.engine.schedules import EarlyStopping
from ensemble.image.fourier import FourierImage
from ensemble.image.parameterization import ImageParameterization
from ensemble.image.pixels import PixelImage
from ensemble.image.start import initialise
from ensemble.image.transforms import Compose, Flip, Jitter, Resize
from ensemble.machine.hardware import PRECISIONS
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
from ensemble.runs.plan import Plan, own_targets
from ensemble.teachers.cost import count_cost
from ensemble.teachers.teacher import Teacher
from models import create_model


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
        EnsembleMember(name, weight, statistics, own_targets(targets.cpu(), entry, plan.cards[0]).to(device), teacher)
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
