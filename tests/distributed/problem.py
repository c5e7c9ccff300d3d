"""The small inversion that every rank of the tests runs: teachers, cells and what is reported."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from ensemble.engine.agreement import agreement_of
from ensemble.engine.gradient import EnsembleLoss, EnsembleMember
from ensemble.engine.guard import NotFiniteError
from ensemble.engine.inversion import Inversion, LiveStage
from ensemble.engine.optimizers import Adam
from ensemble.engine.placement import Cell, place, slices
from ensemble.engine.reduction import FixedPointSum
from ensemble.image.fourier import FourierImage
from ensemble.image.parameterization import ImageParameterization
from ensemble.image.transforms import Compose, Flip, Jitter
from ensemble.machine.ranks import ProcessContext
from ensemble.machine.rng import generator
from ensemble.objectives.bn_matching import BNMatching
from ensemble.objectives.classification import CrossEntropy, Saturating, SoftTargets
from ensemble.objectives.image_priors import L2Prior, TotalVariation
from ensemble.objectives.repulsion import Repulsion
from ensemble.objectives.terms import Formulation, Slice, TeacherTerm, Totals
from ensemble.teachers.teacher import Observation, Teacher
from models import ModelCard

IMAGES = 7
TARGETS = torch.tensor([0, 1, 2, 3, 4, 0, 1])
COSTS = (1.0, 2.0, 1.5)
TEACHERS = (1, 2, 3)
MICRO_BATCHES = (None, 3)
STEPS = 50
FIXED_STEPS = 20
CARD = ModelCard("tiny", "test", 8, 5, mean=(0.5, 0.4, 0.45), std=(0.2, 0.25, 0.3))
FORMULATION = Formulation(
    (
        CrossEntropy(weight=0.5, temperature=1.0),
        BNMatching(weight=1.0, convention="relative", first=3.0),
        TotalVariation(weight=0.01),
        L2Prior(weight=0.01),
    )
)


@dataclass(frozen=True)
class Disagreement(TeacherTerm):
    """mean_i |log p_t(i) - log p_u(i)|^2 over the other teachers u: a term that reads several teachers' logits."""

    weight: float = 1.0

    def sums(self, seen: Observation, batch: Slice) -> torch.Tensor:
        rows = seen.logits.new_zeros(batch.images, seen.logits.shape[1])
        rows[batch.start : batch.stop] = seen.logits
        return rows

    def loss(self, total: Totals, t: int) -> torch.Tensor:
        own = total[t].log_softmax(1)
        gaps = [(own - total[u].log_softmax(1)).square().sum(1).mean() for u in total if u != t]
        return torch.stack(gaps).sum() if gaps else total[t].sum() * 0


VARIED = Formulation(
    (
        Saturating(weight=0.5, until=0.6),
        SoftTargets(weight=0.5),
        BNMatching(convention="calibrated", slack=0.2, drawn=True),
        Repulsion(weight=2.0, limit=-0.5),
    )
)
"""Terms that draw, that have corners, and that read features."""
COUPLED = Formulation((Disagreement(weight=0.3),))
"""The only term is one that no recipe knows."""


class Block(nn.Module):
    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.silu(self.norm(self.conv(x)))


class Net(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.block1 = Block(3, width)
        self.block2 = Block(width, 6)
        self.head = nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.block2(F.avg_pool2d(self.block1(x), 2)).mean((2, 3)))


def network(index: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(index)
        net = Net(4 + index)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None and module.running_var is not None
                module.running_mean.normal_(0, 0.5)
                module.running_var.uniform_(0.3, 2)
                nn.init.normal_(module.weight, 1, 0.3)
                nn.init.normal_(module.bias, 0, 0.3)
    return net


@functools.cache
def teacher(index: int, dtype: torch.dtype) -> Teacher:
    made = Teacher(f"t{index}", network(index), CARD, dtype=dtype)
    made.emit_features()
    return made


def placed(context: ProcessContext, teachers: int, micro_batch: int | None) -> list[Cell]:
    whole = place(COSTS[:teachers], IMAGES, context.world_size).cells[context.rank]
    return [part for cell in whole for part in slices(cell, micro_batch)]


def scattered(context: ProcessContext, teachers: int) -> list[Cell]:
    """Cells of at most two images, the same on any number of ranks, dealt out with no respect for balance."""
    cells = [Cell(t, a, min(a + 2, IMAGES)) for t in range(teachers) for a in range(0, IMAGES, 2)]
    return [cell for i, cell in enumerate(cells) if (i * i + 1) % context.world_size == context.rank]


def inversion(
    context: ProcessContext,
    teachers: int,
    cells: list[Cell],
    dtype: torch.dtype,
    steps: int,
    *,
    recompute: bool = False,
    reduction: FixedPointSum | None = None,
    formulation: Formulation = FORMULATION,
    image: ImageParameterization | None = None,
    threshold: float | None = None,
    **options: Any,
) -> Inversion:
    """From a random start, under jitter and flips; a rank holds only the teachers whose cells it owns.

    What is optimised is `image`, or Fourier coefficients.
    """
    owned = {cell.teacher for cell in cells}
    members = []
    for t in range(teachers):
        full = teacher(t, dtype)
        members.append(EnsembleMember(full.profile(), 1.0 + t, TARGETS, full if t in owned else None))
    image = image or FourierImage(IMAGES, 8, decay=1.0, decorrelate=False, dtype=dtype)
    image.randomize(0.5, generator(1))
    stage = LiveStage(steps, Compose((Jitter(1, "wrap", False), Flip(0.5, False))), Adam(lr=0.05))
    loss = EnsembleLoss(
        members,
        formulation,
        cells,
        recompute=recompute,
        threshold=threshold,
        reduction=reduction,
        reduce=context.sum_,
    )
    return Inversion(image, loss, [stage], seed=5, **options)


def finished(run: Inversion) -> Inversion:
    """All steps taken."""
    for _ in run:
        pass
    return run


def gradient(run: Inversion, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """L and its gradient at a fixed view."""
    view = torch.rand(IMAGES, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    record, slope, _ = run.loss.gradient(view, run.weights_at(0))
    return record.total, slope


@contextmanager
def counted() -> Iterator[list[int]]:
    """While open, the list grows by the size of each tensor that is summed over the ranks."""
    sizes: list[int] = []
    original = dist.all_reduce

    def all_reduce(tensor: torch.Tensor, *args: Any, **options: Any) -> Any:
        sizes.append(tensor.numel())
        return original(tensor, *args, **options)

    dist.all_reduce = all_reduce
    try:
        yield sizes
    finally:
        dist.all_reduce = original


def work(context: ProcessContext) -> dict[str, Any]:
    """Everything the tests compare between ranks and world sizes."""
    results: dict[str, Any] = {"gathered": context.gather(f"rank {context.rank}")}
    for teachers in TEACHERS:
        for micro_batch in MICRO_BATCHES:
            case = f"{teachers}/{micro_batch}"
            cells = placed(context, teachers, micro_batch)
            recompute = micro_batch is not None
            run = inversion(context, teachers, cells, torch.float64, STEPS, recompute=recompute)
            results[f"loss/{case}"], results[f"gradient/{case}"] = gradient(run, torch.float64)
            with counted() as sizes:
                finished(run)
            results[f"images/{case}"], results[f"sums/{case}"] = run.result(), sizes
            single = inversion(context, teachers, cells, torch.float32, STEPS, recompute=recompute)
            results[f"gradient32/{case}"] = gradient(single, torch.float32)[1]
            coupled = inversion(context, teachers, cells, torch.float64, 3, recompute=recompute, formulation=COUPLED)
            results[f"coupled/{case}"] = gradient(coupled, torch.float64)[1]
            varied = inversion(context, teachers, cells, torch.float64, 3, recompute=recompute, formulation=VARIED)
            results[f"varied/{case}"] = gradient(varied, torch.float64)[1]
        cells = scattered(context, teachers)
        fixed = inversion(context, teachers, cells, torch.float32, FIXED_STEPS, reduction=FixedPointSum(), best_every=7)
        finished(fixed)
        results[f"fixed/{teachers}"], results[f"fixed_best/{teachers}"] = (
            fixed.image().detach(),
            fixed.result(),
        )
    results |= stopped_by_one(context) | broken_on_one(context) | rounded_by_one(context)
    return results


def rounded_by_one(context: ProcessContext) -> dict[str, Any]:
    """The last rank stands for another device: its optimiser's steps come out a little different."""
    results = {}
    for mixed in (True, False):
        context = replace(context, mixed=mixed)
        run = inversion(context, 2, placed(context, 2, None), torch.float64, 5, from_owner=context.from_owner_)
        if context.rank == context.world_size - 1 > 0:
            project = run.image.project

            def perturbed(project: Callable[[], None] = project, run: Inversion = run) -> None:
                project()
                with torch.no_grad():
                    for parameter in run.image.parameters():
                        parameter.mul_(1 + 1e-6)

            run.image.project = perturbed  # type: ignore[method-assign]
        finished(run)
        results[f"rounded/{mixed}"] = context.gather(run.result().sum().item())
    return results


def stopped_by_one(context: ProcessContext) -> dict[str, Any]:
    """The last rank alone asks to save after step 2 and to stop during step 4."""
    run = inversion(context, 2, placed(context, 2, None), torch.float64, STEPS)
    last = context.rank == context.world_size - 1
    saved: list[int] = []
    stopped = False
    for step in run:
        if step.save or step.stop:
            saved.append(run.step)
        stopped = step.stop
        if stopped:
            break
        run.ask(save=last and run.step == 1, stop=last and run.step == 3)
    return {"stop/stopped": stopped, "stop/step": run.step, "stop/saved": saved}


def broken_on_one(context: ProcessContext) -> dict[str, Any]:
    """The rank that computes the first image for teacher 1 computes NaN."""
    cells = placed(context, 2, None)
    run = inversion(context, 2, cells, torch.float64, STEPS)
    if Cell(1, 0, 0) in [Cell(c.teacher, c.start, c.start) for c in cells]:
        net = network(1)
        nn.init.constant_(net.block1.conv.weight, float("nan"))
        broken = Teacher("t1", net, CARD, dtype=torch.float64)
        members = [m if m.name != "t1" else EnsembleMember(m.profile, 2.0, TARGETS, broken) for m in run.loss.members]
        run.loss.members = tuple(members)
    start = run.image().detach().clone()
    try:
        finished(run)
    except NotFiniteError as error:
        untouched = torch.equal(run.image(), start)
        return {"broken/message": str(error), "broken/untouched": untouched}
    return {"broken/message": "", "broken/untouched": False}


CONFLICT_CASES = ("2/None", "3/None", "3/3")
CONFLICT_STEPS = 8


def conflicts(context: ProcessContext) -> dict[str, Any]:
    """Gradients that are masked where teachers conflict, and their agreement, as they are compared between ranks."""
    results: dict[str, Any] = {}
    view = torch.rand(IMAGES, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for case in CONFLICT_CASES:
        teachers, micro_batch = int(case[0]), MICRO_BATCHES[1] if case.endswith("3") else None
        cells = placed(context, teachers, micro_batch)
        run = inversion(
            context, teachers, cells, torch.float64, CONFLICT_STEPS, recompute=micro_batch is not None, threshold=0.5
        )
        results[f"gradient/{case}"] = gradient(run, torch.float64)[1]
        results[f"parts/{case}"] = torch.stack([*run.loss.parts(view)])
        for name, tensor in agreement_of([f"t{t}" for t in range(teachers)], run.loss.parts(view)).tensors().items():
            results[f"{name}/{case}"] = tensor
        with counted() as sizes:
            finished(run)
        results[f"images/{case}"], results[f"sums/{case}"] = run.result(), sizes
    fixed = inversion(
        context,
        3,
        scattered(context, 3),
        torch.float32,
        CONFLICT_STEPS,
        reduction=FixedPointSum(),
        threshold=0.5,
        best_every=3,
    )
    finished(fixed)
    results["fixed"] = fixed.result()
    parts = fixed.loss.parts(view.float())
    results |= {f"fixed/{name}": tensor for name, tensor in agreement_of("abc", parts).tensors().items()}
    return results
