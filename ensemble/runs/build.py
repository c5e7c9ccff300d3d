"""A plan becomes live objects: teachers, placement, and the inversion of one batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch

from ensemble.engine.gradient import EnsembleLoss, EnsembleMember
from ensemble.engine.inversion import Inversion, StagePlan
from ensemble.engine.placement import Cell, Placement, place, place_cells, slices
from ensemble.engine.reduction import FixedPointSum, FloatSum
from ensemble.image.parameterization import ImageParameterization
from ensemble.image.transforms import Compose, Flip, Jitter, Resize
from ensemble.machine.hardware import PRECISIONS
from ensemble.machine.ranks import ProcessContext
from ensemble.machine.rng import generator
from ensemble.recipe import Recipe, Stage
from ensemble.runs.plan import Plan, own_targets
from ensemble.teachers.cost import count_cost
from ensemble.teachers.observing import shown
from ensemble.teachers.teacher import Profile, Teacher


@dataclass(frozen=True)
class PlacedTeacher:
    """A teacher of a run; `teacher` is there where this rank owns a cell of it."""

    profile: Profile
    weight: float
    cost: float
    """FLOPs of one image, forward and gradient."""
    memory: int
    """Bytes kept for the gradient per image."""
    teacher: Teacher | None
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Layers with running statistics that are not matched, and why."""
    notes: tuple[str, ...] = ()
    """What a user should know of the network."""

    @property
    def matched(self) -> int:
        """How many layers with running statistics emit moments."""
        layers = () if self.profile.statistics is None else self.profile.statistics.layers
        return len({layer.name for layer in layers})

    def describe_layers(self) -> str:
        """How many of how many layers are matched, and which are not."""
        total = self.matched + len(self.left_out)
        text = f"{self.profile.name}: {self.matched} of {total} layers with running statistics are matched"
        text += "".join(f", {pattern} x {factor:g}" for pattern, factor in self.profile.layers.items())
        return f"{text}; not: {shown(self.left_out)}" if self.left_out else text


@dataclass(frozen=True)
class PlacedEnsemble:
    """The teachers of a run on this rank, and who computes what."""

    teachers: tuple[PlacedTeacher, ...]
    placement: Placement

    @property
    def weights(self) -> dict[str, str | None]:
        """SHA-256 of the teachers' weights, where it is known, by name."""
        cards = {teacher.profile.name: teacher.profile.card for teacher in self.teachers}
        return {
            name: card.weights[card.default_weights].sha256 if card.default_weights else None
            for name, card in cards.items()
        }

    @property
    def costs(self) -> tuple[float, ...]:
        return tuple(teacher.cost for teacher in self.teachers)


def build_ensemble(plan: Plan, context: ProcessContext, world_size: int | None = None) -> PlacedEnsemble:
    """Load the teachers, place them, and keep on this rank those that it owns a cell of.

    `world_size` overrides the context's, for a dry run. Raises ValueError where weights cannot be had or do not
    fit, a term lacks what it needs of the teachers, or the placement does not work out.
    """
    recipe = plan.recipe
    dtype = PRECISIONS[recipe.runtime.precision]
    teachers, costs = [], []
    for name, entry in zip(plan.names, recipe.teachers, strict=True):
        net, card = plan.networks.create(entry.model)
        teacher = Teacher(name, net, card, dtype=dtype, device=context.device)
        for stage in recipe.stages:
            teacher.admit(stage.size or plan.size, plan.size)
        teachers.append(teacher)
        costs.append(count_cost(teacher))
    profiles = [teacher.profile(entry.layers) for teacher, entry in zip(teachers, recipe.teachers, strict=True)]
    for term in plan.formulation.teacher_terms:
        term.check(profiles)
        for profile in profiles:
            if tapped := ", ".join(term.needs(profile)):
                raise ValueError(f"{term.name} asks to tap {tapped}; only logits and BN moments are observed")
    images = len(plan.targets(0))
    flops = [cost.flops for cost in costs]
    world = world_size or context.world_size
    if recipe.runtime.reproducible == "ranks":
        placement = place_cells(flops, images, world, recipe.runtime.cell_size)
    else:
        placement = place(flops, images, world, [entry.ranks for entry in recipe.teachers])
    owned = placement.teachers_of(context.rank)
    for t in owned:
        teachers[t].rewrite()  # after its cost was counted: placements must not depend on the device
        if recipe.runtime.compile == "on":
            teachers[t].compile()
    placed = [
        PlacedTeacher(
            profile,
            entry.weight,
            cost.flops,
            cost.memory,
            teacher if t in owned else None,
            teacher.left_out,
            tuple(teacher.notes),
        )
        for t, (profile, entry, cost, teacher) in enumerate(
            zip(profiles, recipe.teachers, costs, teachers, strict=True)
        )
    ]
    return PlacedEnsemble(tuple(placed), placement)


def build_inversion(plan: Plan, ensemble: PlacedEnsemble, context: ProcessContext, trial: int) -> Inversion:
    """The inversion of one trial's batch, at its start."""
    recipe, device = plan.recipe, context.device
    micro_batch = recipe.runtime.micro_batch
    assert micro_batch != "auto", "resolved before"
    targets = plan.targets(trial)
    seed = recipe.seed + trial
    members = [
        EnsembleMember(
            placed.profile, placed.weight, own_targets(targets, entry, plan.cards[0]).to(device), placed.teacher
        )
        for placed, entry in zip(ensemble.teachers, recipe.teachers, strict=True)
    ]
    invariant = recipe.runtime.reproducible == "ranks"
    cells: list[Cell] = []
    for cell in ensemble.placement.cells[context.rank]:
        cells += slices(cell, None if invariant else micro_batch)
    loss = EnsembleLoss(
        members,
        plan.formulation,
        cells,
        recompute=micro_batch is not None,
        threshold=recipe.ensemble.threshold if recipe.ensemble.aggregation == "agree" else None,
        reduction=FixedPointSum() if invariant else FloatSum(),
        reduce=context.sum_,
    )
    image = _image(plan, len(targets), device, seed)
    if trial == 0:  # a term may be anybody's: what fails in it is told before the run
        with torch.no_grad():
            plan.formulation.try_priors(image())
            loss.try_terms()
    return Inversion(
        image,
        loss,
        [_stage(recipe, stage, plan.size) for stage in recipe.stages],
        seed=seed,
        acting=recipe.ensemble.acting,
        acting_count=recipe.ensemble.count,
        acting_per=recipe.ensemble.per,
        best_every=recipe.best_every,
        save_every=recipe.checkpoint.every,
        poll_every=recipe.record_every if device.type == "cuda" and context.backend != "gloo" else 1,
        from_owner=context.from_owner_,
    )


def _image(plan: Plan, images: int, device: torch.device, seed: int) -> ImageParameterization:
    rule = plan.recipe.image
    dtype = torch.promote_types(PRECISIONS[plan.recipe.runtime.precision], torch.float32)
    image = rule.parameterization.make(images, plan.size, card=plan.cards[0], dtype=dtype, device=device)
    rule.start.set(image, generator(seed, "start"))
    return image


def _stage(recipe: Recipe, stage: Stage, size: int) -> StagePlan:
    transform = Compose(
        (
            Resize(stage.size or size),
            Jitter(stage.jitter, stage.jitter_mode, stage.jitter_per_image),
            Flip(stage.flip, stage.flip_per_image),
        )
    )
    optimizer = recipe.optimizer if stage.lr is None else replace(recipe.optimizer, lr=stage.lr)
    return StagePlan(stage.iterations, transform, optimizer)
