"""A plan becomes live objects: teachers, placement, and the inversion of one batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch

from ensemble.engine.gradient import EnsembleLoss, EnsembleMember
from ensemble.engine.inversion import Inversion, LiveStage
from ensemble.engine.placement import Cell, Placement, place, place_cells, slices
from ensemble.engine.reduction import FixedPointSum, FloatSum
from ensemble.image.parameterization import ImageParameterization
from ensemble.image.transforms import Compose, Flip, Jitter, Noise, Resize, Zoom
from ensemble.machine.checkpoint import checksum
from ensemble.machine.hardware import PRECISIONS
from ensemble.machine.ranks import ProcessContext
from ensemble.machine.rng import generator
from ensemble.objectives.terms import Formulation
from ensemble.recipe import Recipe, Stage
from ensemble.runs.origin import file_digests
from ensemble.runs.plan import Plan, own_columns, own_targets
from ensemble.teachers.cost import count_cost
from ensemble.teachers.measured import Measurement
from ensemble.teachers.observing import shown
from ensemble.teachers.teacher import Profile, Teacher

Earlier = tuple[torch.Tensor, torch.Tensor]
"""Images (M, 3, H, W) and targets (M,) of earlier batches of a run, on the CPU."""


@dataclass(frozen=True, kw_only=True)
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
    measurement: Measurement | None = None
    """What its `statistics` file holds."""
    digest: str = ""
    """Of its weights: the SHA-256 of their file, else a checksum of them."""

    @property
    def matched(self) -> int:
        """How many layers with running statistics emit moments."""
        return self._count(measured=False)

    @property
    def measured(self) -> int:
        """How many further layers emit moments, whose statistics were measured."""
        return self._count(measured=True)

    def _count(self, *, measured: bool) -> int:
        layers = () if self.profile.statistics is None else self.profile.statistics.layers
        return len({layer.name for layer in layers if layer.measured == measured})

    def describe_layers(self) -> str:
        """How many of how many layers are matched, and which are not."""
        total = self.matched + len(self.left_out)
        text = f"{self.profile.name}: {self.matched} of {total} layers with running statistics are matched"
        if self.measured:
            text += f", and {self.measured} layers by measured ones"
        text += "".join(f", {pattern} x {factor:g}" for pattern, factor in self.profile.layers.items())
        return f"{text}; not: {shown(self.left_out)}" if self.left_out else text


@dataclass(frozen=True)
class PlacedEnsemble:
    """The teachers of a run on this rank, and who computes what."""

    teachers: tuple[PlacedTeacher, ...]
    placement: Placement
    files: Mapping[str, str]
    """Digests of the plan's."""

    @property
    def weights(self) -> dict[str, str]:
        """By the teachers' names, digests of their weights and measured statistics, and how they see images; and those
        of `files`."""
        found: dict[str, str] = {}
        for teacher in self.teachers:
            digests = [teacher.digest] if teacher.measurement is None else [teacher.digest, teacher.measurement.digest]
            found[teacher.profile.name] = ", ".join([*digests, teacher.profile.card.input_convention])
        return found | dict(self.files)

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
    teachers, costs, digests = [], [], []
    for name, entry, measurement in zip(plan.names, recipe.teachers, plan.measurements, strict=True):
        net, card = plan.networks.create(entry.model)
        teacher = Teacher(name, net, card, dtype=dtype, device=context.device, measured=measurement)
        for stage in recipe.stages:
            teacher.admit(stage.size or plan.size, plan.size)
        _observe_more(teacher, replace(teacher.profile(), student=entry.student), plan.formulation)
        teachers.append(teacher)
        costs.append(count_cost(teacher))
        known = plan.networks.digests.get(entry.model) or (card.loaded and card.loaded.sha256)
        digests.append(known or checksum(net.state_dict()))
    profiles = [
        replace(teacher.profile(entry.layers), student=entry.student, columns=own_columns(entry, plan.cards[0]))
        for teacher, entry in zip(teachers, recipe.teachers, strict=True)
    ]
    for term in plan.formulation.teacher_terms:
        term.check([profile for profile in profiles if term.reads(profile)])
    images = len(plan.targets(0))
    flops = [cost.flops for cost in costs]
    world = world_size or context.world_size
    if recipe.runtime.reproducible == "ranks":
        placement = place_cells(flops, images, world, recipe.runtime.cell_size, alternate=recipe.alternates)
    else:
        fixed = [entry.ranks for entry in recipe.teachers]
        placement = place(flops, images, world, fixed, alternate=recipe.alternates)
    owned = placement.teachers_of(context.rank)
    for t in owned:
        teachers[t].rewrite()  # after its cost was counted: placements must not depend on the device
        if recipe.runtime.compile == "on":
            teachers[t].compile()
    placed = [
        PlacedTeacher(
            profile=profile,
            weight=0.0 if entry.student else entry.weight,
            cost=cost.flops,
            memory=cost.memory,
            teacher=teacher if t in owned else None,
            left_out=teacher.left_out,
            notes=tuple(teacher.notes),
            measurement=measurement,
            digest=digest,
        )
        for t, (profile, entry, cost, teacher, measurement, digest) in enumerate(
            zip(profiles, recipe.teachers, costs, teachers, plan.measurements, digests, strict=True)
        )
    ]
    return PlacedEnsemble(tuple(placed), placement, file_digests(plan.files))


def _observe_more(teacher: Teacher, profile: Profile, formulation: Formulation) -> None:
    """Let the teacher observe what its terms ask for beside logits and moments."""
    terms = [term for term in formulation.teacher_terms if term.reads(profile)]
    if any(term.reads_features for term in terms):
        teacher.emit_features()
    taps = [tap for term in terms for tap in term.needs(profile)]
    if taps:
        teacher.tap(taps, alone=all(term.reads_taps_alone for term in terms))


def build_inversion(
    plan: Plan, ensemble: PlacedEnsemble, context: ProcessContext, trial: int, earlier: Earlier | None = None
) -> Inversion:
    """The inversion of one trial's batch, at its start; `earlier` is what warm starts and memories go back to."""
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
        equal=recipe.ensemble.aggregation == "equal",
        threshold=recipe.ensemble.threshold if recipe.ensemble.aggregation == "agree" else None,
        reduction=FixedPointSum() if invariant else FloatSum(),
        reduce=context.sum_,
        seed=seed,
    )
    memory = plan.formulation.memory
    if memory and earlier is not None:
        images, of = (part[-memory:] for part in earlier)
        own = [own_targets(of, entry, plan.cards[0]) for entry in recipe.teachers]
        loss.remember(images.split(len(targets)), own)
    image = _image(plan, targets, device, seed, earlier)
    stages = [_stage(recipe, stage, plan.size) for stage in recipe.stages]
    if trial == 0:  # a term or an optimiser may be anybody's: what fails in it is told before the run
        with torch.no_grad():
            begun = image()
        plan.formulation.try_priors(begun)
        loss.try_terms()
        loss.try_views({stage.size or plan.size for stage in recipe.stages})
        for stage in stages:
            stage.optimizer.make(list(image.parameters()), stage.iterations)
    return Inversion(
        image,
        loss,
        stages,
        seed=seed,
        acting=recipe.ensemble.acting,
        acting_count=recipe.ensemble.count,
        acting_per=recipe.ensemble.per,
        best_every=recipe.best_every,
        save_every=recipe.checkpoint.every,
        attribute=recipe.attribution,
        poll_every=recipe.record_every if device.type == "cuda" and context.backend != "gloo" else 1,
        from_owner=context.from_owner_,
    )


def looks_back(plan: Plan) -> int:
    """How many of the images before it a batch depends on, the last ones; 0: on none."""
    return max(plan.recipe.image.start.memory, plan.formulation.memory)


def _image(
    plan: Plan, targets: torch.Tensor, device: torch.device, seed: int, earlier: Earlier | None
) -> ImageParameterization:
    rule = plan.recipe.image
    dtype = torch.promote_types(PRECISIONS[plan.recipe.runtime.precision], torch.float32)

    def made(count: int) -> ImageParameterization:
        return rule.parameterization.make(count, plan.size, card=plan.cards[0], dtype=dtype, device=device)

    image = made(len(targets))
    rng = generator(seed, "start")
    if rule.start.memory and earlier is not None:
        images, of = (part[-rule.start.memory :] for part in earlier)
        rule.start.go_on(image, targets, images, of, rng)
    elif rule.alike == 1:
        rule.start.set(image, rng)
    else:  # as many are drawn as a batch of one of the alike would draw
        fewer = made(-(-len(targets) // rule.alike))
        rule.start.set(fewer, rng)
        image.repeat(fewer, rule.alike)
    return image


def _stage(recipe: Recipe, stage: Stage, size: int) -> LiveStage:
    transform = Compose(
        (
            Resize(stage.size or size),
            Jitter(stage.jitter, stage.jitter_mode, stage.jitter_per_image),
            Flip(stage.flip, stage.flip_per_image),
            Zoom(stage.zoom),
            Noise(stage.noise),  # last: it draws for each pixel, and zoom would blur it
        )
    )
    optimizer = recipe.optimizer if stage.lr is None else replace(recipe.optimizer, lr=stage.lr)
    return LiveStage(stage.iterations, transform, optimizer, stage.moving)
