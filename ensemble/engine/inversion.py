"""Inversion: the loop. Mathematics only, no files."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NoReturn

import torch

from ensemble.engine.exchange import Exchange, Totals
from ensemble.engine.optimizers import Adam, load_optimizer_tensors, optimizer_tensors
from ensemble.engine.placement import Share
from ensemble.engine.reduction import FloatSum, Reduction, SumAcrossRanks
from ensemble.engine.schedules import EarlyStopping, Plateau, warmup_cosine
from ensemble.image.parameterization import ImageParameterization
from ensemble.image.transforms import Compose
from ensemble.machine.rng import generator
from ensemble.objectives import Formulation
from ensemble.teachers.statistics import BNStatistics
from ensemble.teachers.teacher import Observation, Teacher

Acting = Literal["all", "turn", "random"]


class NotFiniteError(ValueError):
    """A loss became NaN or infinite; the image parameters are the last ones with a finite loss."""

    collective = True
    """Every rank raises it at the same step."""


@dataclass(frozen=True)
class EnsembleMember:
    """A teacher as every rank knows it; `teacher` is loaded on the ranks that own cells of it."""

    name: str
    weight: float
    statistics: BNStatistics | None
    targets: torch.Tensor
    """(N,) the batch's targets as indices of this teacher's own classes."""
    teacher: Teacher | None = None


@dataclass(frozen=True)
class StagePlan:
    """One stretch of the loop: its transform of the image into the view, and a fresh optimiser."""

    iterations: int
    transform: Compose
    optimizer: Adam
    warmup: int = 0
    schedule: Literal["cosine", "constant", "plateau"] = "cosine"
    plateau: tuple[float, int] = (0.5, 50)
    """(factor, patience in steps) of the plateau schedule."""


@dataclass(frozen=True)
class Record:
    """A step's losses as device tensors; `values` reads them."""

    step: int
    total: torch.Tensor
    prior: torch.Tensor
    names: tuple[str, ...]
    terms: tuple[str, ...]
    per_teacher: torch.Tensor
    """(acting teachers, terms + 1): each term unweighted, then the accuracy."""

    def values(self) -> dict[str, float]:
        """`loss`, `prior`, `<teacher>/<term>` (unweighted) and `<teacher>/accuracy`."""
        result = {"loss": float(self.total), "prior": float(self.prior)}
        for name, row in zip(self.names, self.per_teacher.tolist(), strict=True):
            for term, value in zip((*self.terms, "accuracy"), row, strict=True):
                result[f"{name}/{term}"] = value
        return result


@dataclass
class Observer:
    """What the loop calls back. `every` is the number of steps between two records."""

    every: int = 10
    on_record: Callable[[Record], None] = lambda record: None
    on_step: Callable[[int], None] = lambda step: None
    on_save: Callable[[int], None] = lambda step: None
    """Called on every rank after a step at which some rank asked for it (`wants_save`)."""
    save_every: int = 0
    """Save after every so many steps, whatever `wants_save` says; 0 never."""
    wants_save: Callable[[int], bool] = lambda step: False
    wants_stop: Callable[[], bool] = lambda: False


@dataclass
class _Best:
    loss: float = float("inf")
    step: int = -1
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)


class Inversion:
    """Optimises one batch of images until the teachers agree about it.

    A step: every rank computes the same view; runs its cells (teacher x slice of the batch); one sum of the small
    exchange tensor gives it the whole batch's moments; the gradient of L at logits and moments is pulled back
    through its cells; one sum of the view's gradient; every rank takes the same optimiser step. Priors are computed
    by every rank, from the same view, to the same bits.

    With `recompute`, cells run twice: without gradients for the moments, then one by one with them. Exact, and
    memory holds one cell at a time.
    """

    def __init__(
        self,
        parameterization: ImageParameterization,
        members: Sequence[EnsembleMember],
        formulation: Formulation,
        stages: Sequence[StagePlan],
        *,
        cells: Sequence[Share],
        seed: int,
        acting: Acting = "all",
        acting_count: int = 1,
        best_every: int = 0,
        early_stopping: EarlyStopping | None = None,
        recompute: bool = False,
        reduction: Reduction | None = None,
        reduce: SumAcrossRanks = lambda tensor: None,
        share: Callable[[torch.Tensor], None] = lambda tensor: None,
        poll_every: int = 1,
    ) -> None:
        """`cells` are this rank's; `reduce` sums over ranks; `share` replaces a tensor by the owner's, where ranks
        do not compute the same bits. `best_every` = 0 returns the last image.

        Flags and finiteness are read from the device every `poll_every` steps.
        """
        self.parameterization = parameterization
        self.members = tuple(members)
        self.formulation = formulation
        self.stages = tuple(stages)
        self.cells = tuple(cells)
        self.seed = seed
        self.acting, self.acting_count = acting, acting_count
        self.best_every = best_every
        self.early_stopping = early_stopping
        self.recompute = recompute
        self.reduction: Reduction = reduction or FloatSum()
        self.reduce = reduce
        self.share = share
        self.poll_every = poll_every
        targets = self.members[0].targets
        self.images = len(targets)
        self._device = targets.device
        self._exchanges: dict[int, Exchange] = {}
        self.step = 0
        self.best = _Best()
        self.plateau: Plateau | None = None
        self._bad_step = torch.full((len(members) + 1,), -1, dtype=torch.int64, device=targets.device)
        self._last_good: dict[str, torch.Tensor] = {}
        self._optimizer: torch.optim.Optimizer | None = None
        self._stage_index = -1

    # --- the loss and its gradient ----------------------------------------------------------------------------

    def weights_at(self, step: int) -> dict[int, float]:
        """The acting teachers of a step and their weights, which sum to 1."""
        count = len(self.members)
        if self.acting == "all":
            acting = range(count)
        elif self.acting == "turn":
            acting = range(step % count, step % count + 1)
        else:
            drawn = torch.randperm(count, generator=generator(self.seed, "acting", step))
            acting = sorted(drawn[: self.acting_count].tolist())  # type: ignore[assignment]
        total = sum(self.members[t].weight for t in acting)
        return {t: self.members[t].weight / total for t in acting}

    def loss_and_gradient(
        self, view: torch.Tensor, weights: Mapping[int, float], flags: dict[str, bool] | None = None
    ) -> tuple[Record, torch.Tensor, Totals]:
        """L, its gradient with respect to `view` (N, 3, H, W), and the exchanged totals; the same on every rank."""
        view = view.detach()
        exchange = self._exchange(view.shape[2])
        exchange.open(self.reduction, flags or {})
        held: list[tuple[Share, torch.Tensor, Observation | None]] = []
        for cell in self.cells:
            if cell.teacher not in weights:
                continue
            leaf = view[cell.start : cell.stop].clone().requires_grad_(not self.recompute)
            with torch.set_grad_enabled(not self.recompute):
                observation = self._observe(cell, leaf)
            exchange.add(cell.teacher, observation, self._targets(cell))
            held.append((cell, leaf, None if self.recompute else observation))
        totals = exchange.close(self.reduce)
        record, cotangents = self._teacher_losses(totals, weights, view.shape[2])
        gradient = self.reduction.zeros(view.shape, view.dtype, view.device)
        while held:
            cell, leaf, kept = held.pop(0)
            observation = kept or self._observe(cell, leaf.requires_grad_())
            pulled = self._pull_back(cell, leaf, observation, weights[cell.teacher], cotangents[cell.teacher])
            self.reduction.add(gradient[cell.start : cell.stop], pulled)
            del kept, observation, leaf
        total_gradient = self.reduction.result(gradient, self.reduce, view.dtype)
        prior, prior_gradient = self._prior(view)
        record = self._with_prior(record, prior)
        return record, total_gradient + prior_gradient, totals

    @torch.no_grad()
    def measure(self, view: torch.Tensor) -> Record:
        """The losses at `view` with all teachers acting: no gradient, one sum over the ranks."""
        weights = {t: m.weight / sum(m.weight for m in self.members) for t, m in enumerate(self.members)}
        exchange = self._exchange(view.shape[2])
        exchange.open(self.reduction, {})
        for cell in self.cells:
            observation = self._observe(cell, view[cell.start : cell.stop])
            exchange.add(cell.teacher, observation, self._targets(cell))
        record, _ = self._teacher_losses(exchange.close(self.reduce), weights, view.shape[2])
        return self._with_prior(record, self.formulation.prior_loss(view))

    def _targets(self, cell: Share) -> torch.Tensor:
        return self.members[cell.teacher].targets[cell.start : cell.stop]

    def _observe(self, cell: Share, images: torch.Tensor) -> Observation:
        teacher = self.members[cell.teacher].teacher
        assert teacher is not None, "a cell was placed on a rank that does not hold its teacher"
        return teacher.observe(images)

    def _exchange(self, view_size: int) -> Exchange:
        if view_size not in self._exchanges:
            at = [None if m.statistics is None else m.statistics.at(view_size) for m in self.members]
            units = [None if statistics is None else (statistics.positions, statistics.var) for statistics in at]
            self._exchanges[view_size] = Exchange(units, self.formulation.logits_terms, self.images, self._device)
        return self._exchanges[view_size]

    def _teacher_losses(
        self, totals: Totals, weights: Mapping[int, float], view_size: int
    ) -> tuple[Record, dict[int, torch.Tensor | None]]:
        """The teachers' part of L, and w_t dL_t/d(moments) for each acting teacher."""
        total = torch.zeros((), dtype=torch.float64, device=totals.flat.device)
        cotangents: dict[int, torch.Tensor | None] = {}
        rows = []
        for t, share in weights.items():
            losses = totals.losses(t)
            for term, value in zip(self.formulation.logits_terms, losses, strict=True):
                total = total + share * term.weight * value
            bn_losses, cotangents[t] = self._bn_losses(t, totals, share, view_size)
            for bn_term, value in zip(self.formulation.bn_terms, bn_losses, strict=True):
                total = total + share * bn_term.weight * value
            rows.append(torch.stack([*losses, *bn_losses, totals.accuracy(t)]))
        terms = [term.name for term in self.formulation.logits_terms]
        terms += [term.name for term in self.formulation.bn_terms]
        names = tuple(self.members[t].name for t in weights)
        return Record(self.step, total, torch.zeros_like(total), names, tuple(terms), torch.stack(rows)), cotangents

    @torch.enable_grad()
    def _bn_losses(
        self, t: int, totals: Totals, share: float, view_size: int
    ) -> tuple[list[torch.Tensor], torch.Tensor | None]:
        """The unweighted BN terms of teacher t, and the gradient of their weighted sum at its moments."""
        bn_terms, statistics = self.formulation.bn_terms, self.members[t].statistics
        if not bn_terms:
            return [], None
        assert statistics is not None, "bn_matching needs BN layers; build refuses teachers without"
        moments = totals.moments(t).requires_grad_()
        losses = [term(moments, statistics.at(view_size), self.images) for term in bn_terms]
        weighted = torch.stack([share * b.weight * loss for b, loss in zip(bn_terms, losses, strict=True)])
        (gradient,) = torch.autograd.grad(weighted.sum(), moments)
        return [loss.detach() for loss in losses], gradient

    def _pull_back(
        self,
        cell: Share,
        leaf: torch.Tensor,
        observation: Observation,
        share: float,
        dmoments: torch.Tensor | None,
    ) -> torch.Tensor:
        teacher = self.members[cell.teacher].teacher
        assert teacher is not None
        scale = teacher.gradient_scale
        outputs, cotangents = [], []
        if self.formulation.logits_terms:
            logits = observation.logits.detach().requires_grad_()
            targets = self._targets(cell)
            terms = [
                share * term.weight * term.share(logits, targets, self.images) for term in self.formulation.logits_terms
            ]
            (dlogits,) = torch.autograd.grad(torch.stack(terms).sum(), logits)
            outputs.append(observation.logits)
            cotangents.append(dlogits * scale)
        if dmoments is not None:
            outputs.append(observation.moments)
            cotangents.append((dmoments * scale).to(observation.moments.dtype))
        (pulled,) = torch.autograd.grad(outputs, leaf, cotangents)
        return pulled / scale if scale != 1.0 else pulled

    def _prior(self, view: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.formulation.priors:
            return view.new_zeros(()), torch.zeros_like(view)
        leaf = view.clone().requires_grad_()
        loss = self.formulation.prior_loss(leaf)
        (gradient,) = torch.autograd.grad(loss, leaf)
        return loss.detach(), gradient

    @staticmethod
    def _with_prior(record: Record, prior: torch.Tensor) -> Record:
        total = record.total + prior.double()
        return Record(record.step, total, prior, record.names, record.terms, record.per_teacher)

    # --- the loop ---------------------------------------------------------------------------------------------

    @property
    def iterations(self) -> int:
        return sum(stage.iterations for stage in self.stages)

    def run(self, observer: Observer) -> Literal["finished", "stopped", "converged"]:
        """Step until the last stage ends, a rank asks to stop, or early stopping finds no more progress.

        Raises NotFiniteError with the step and the teacher at fault.
        """
        self._last_good = self._parameters()
        while self.step < self.iterations:
            index, local = self._locate(self.step)
            self._enter_stage(index, local)
            step = self.step
            last = step + 1 == self.iterations
            due = observer.save_every > 0 and (step + 1) % observer.save_every == 0
            polled = due or last or (step + 1) % self.poll_every == 0
            before = self._parameters() if polled else {}
            flags = {"stop": observer.wants_stop(), "save": observer.wants_save(step + 1)}
            record, totals = self._take_step(index, local, flags)
            self.step += 1
            if polled:
                self._check_finite(before)
            if last or step % observer.every == 0:
                observer.on_record(record)
            if self._measure_best(index, local):
                self._keep_best()
            observer.on_step(step)
            final = index == len(self.stages) - 1
            if final and self.early_stopping is not None and self.early_stopping.update(self._shared_total(record)):
                return "converged"
            stop = polled and totals.flag("stop")
            if stop or due or (polled and totals.flag("save")):
                observer.on_save(self.step)
            if stop and not last:
                return "stopped"
        self._check_image()
        return "finished"

    def _take_step(self, index: int, local: int, flags: dict[str, bool]) -> tuple[Record, Totals]:
        stage = self.stages[index]
        assert self._optimizer is not None
        multiplier = self._multiplier(stage, local)
        for group in self._optimizer.param_groups:
            group["lr"] = stage.optimizer.lr * multiplier
        image = self.parameterization()
        view = stage.transform(image, generator(self.seed, "view", self.step))
        weights = self.weights_at(self.step)
        record, gradient, totals = self.loss_and_gradient(view, weights, flags)
        self._note_bad(totals, weights, record)
        self._optimizer.zero_grad(set_to_none=True)
        view.backward(gradient)
        self._optimizer.step()
        self.parameterization.project()
        for parameter in self.parameterization.parameters():
            self.share(parameter.detach())
        if self.plateau is not None:
            self.plateau.update(self._shared_total(record))
        return record, totals

    def _shared_total(self, record: Record) -> float:
        """The loss, as rank 0 has it: devices of different kinds round differently, and all ranks must decide alike."""
        total = record.total.clone()
        self.share(total)
        return float(total)

    def _multiplier(self, stage: StagePlan, local: int) -> float:
        if self.plateau is not None:
            warm = min(1.0, (local + 1) / stage.warmup) if stage.warmup else 1.0
            return warm * self.plateau.multiplier
        if stage.schedule == "cosine":
            return warmup_cosine(local, stage.iterations, stage.warmup)
        return min(1.0, (local + 1) / stage.warmup) if stage.warmup else 1.0

    def _locate(self, step: int) -> tuple[int, int]:
        for index, stage in enumerate(self.stages):
            if step < stage.iterations:
                return index, step
            step -= stage.iterations
        raise AssertionError("step beyond the last stage")

    def _enter_stage(self, index: int, local: int) -> None:
        if index == self._stage_index:
            return
        stage = self.stages[index]
        self._optimizer = stage.optimizer.make(list(self.parameterization.parameters()))
        self.plateau = Plateau(*stage.plateau) if stage.schedule == "plateau" else None
        self._stage_index = index

    # --- what must not be lost --------------------------------------------------------------------------------

    def _note_bad(self, totals: Totals, weights: Mapping[int, float], record: Record) -> None:
        """Remember, on the device, the first step at which a teacher (or the image itself) was not finite."""
        teacher_bad = [
            totals.bad(t) > 0 if t in weights else self._bad_step.new_zeros((), dtype=torch.bool)
            for t in range(len(self.members))
        ]
        bad = torch.stack([*teacher_bad, ~torch.isfinite(record.total)])
        self._bad_step = torch.where(bad & (self._bad_step < 0), self.step, self._bad_step)

    def _parameters(self) -> dict[str, torch.Tensor]:
        return {k: v.detach().clone() for k, v in self.parameterization.state_dict().items()}

    def _check_finite(self, before: dict[str, torch.Tensor]) -> None:
        """`before` the step that was just taken: its loss is known now, that of the new parameters is not."""
        bad = self._bad_step.tolist()
        if max(bad) < 0:
            self._last_good = before
            return
        first = min(step for step in bad if step >= 0)
        self._not_finite([m.name for m, step in zip(self.members, bad, strict=False) if step == first], first)

    def _check_image(self) -> None:
        """No loss has seen the parameters after the last step, where the best images are not measured."""
        if not self.best.tensors and not bool(torch.isfinite(self.parameterization()).all()):
            self._not_finite([], self.step)

    def _not_finite(self, culprits: Sequence[str], step: int) -> NoReturn:
        self.parameterization.load_state_dict(self._last_good)
        who = f"of teacher {', '.join(culprits)} " if culprits else ""
        raise NotFiniteError(f"the loss {who}is not finite at step {step}; lower the learning rate or the weights")

    def _measure_best(self, index: int, local: int) -> bool:
        if not self.best_every or index != len(self.stages) - 1:
            return False
        return (local + 1) % self.best_every == 0 or self.step == self.iterations

    @torch.no_grad()
    def _keep_best(self) -> None:
        record = self.measure(self.parameterization())
        loss = self._shared_total(record)
        if not math.isfinite(loss):
            fine = torch.isfinite(record.per_teacher).all(dim=1).tolist()
            culprits = [name for name, good in zip(record.names, fine, strict=True) if not good]
            self._not_finite(culprits, self.step)
        if loss < self.best.loss:
            self.best = _Best(loss, self.step, self._parameters())

    @torch.no_grad()
    def result(self) -> torch.Tensor:
        """The best images measured, or the last where none was: (N, 3, H, W), RGB clipped to [0, 1]."""
        if self.best.tensors:
            current = self._parameters()
            self.parameterization.load_state_dict(self.best.tensors)
            images = self.parameterization()
            self.parameterization.load_state_dict(current)
        else:
            images = self.parameterization()
        return images.clamp(0, 1)

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
        """All that a resumed run needs: named tensors, and plain numbers."""
        assert self._optimizer is not None
        tensors = {f"image.{k}": v for k, v in self.parameterization.state_dict().items()}
        tensors |= {f"optimizer.{k}": v for k, v in optimizer_tensors(self._optimizer).items()}
        tensors |= {f"best.{k}": v for k, v in self.best.tensors.items()}
        numbers = {
            "step": self.step,
            "stage": self._stage_index,
            "best_loss": self.best.loss,
            "best_step": self.best.step,
        }
        for name, machine in (("plateau", self.plateau), ("early", self.early_stopping)):
            if machine is not None:
                numbers |= {f"{name}.{k}": v for k, v in machine.state().items()}
        return tensors, numbers

    def load_state(self, tensors: Mapping[str, torch.Tensor], numbers: Mapping[str, float]) -> None:
        """The inverse of `state`."""

        def part(prefix: str) -> dict[str, torch.Tensor]:
            return {k.removeprefix(prefix): v.clone() for k, v in tensors.items() if k.startswith(prefix)}

        self.parameterization.load_state_dict(part("image."))
        self.step = int(numbers["step"])
        self._stage_index = -1
        self._enter_stage(int(numbers["stage"]), 0)
        assert self._optimizer is not None
        load_optimizer_tensors(self._optimizer, part("optimizer."))
        self.best = _Best(float(numbers["best_loss"]), int(numbers["best_step"]), part("best."))
        for name, machine in (("plateau", self.plateau), ("early", self.early_stopping)):
            if machine is not None:
                machine.load_state(
                    {k.removeprefix(f"{name}."): v for k, v in numbers.items() if k.startswith(f"{name}.")}
                )
