"""The loss at a view and its gradient there, over all cells and ranks."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from ensemble.engine.exchange import Exchange, Exchanged
from ensemble.engine.image_operators import unit_mean
from ensemble.engine.placement import Cell
from ensemble.engine.reduction import FloatSum, Reduction, SumAcrossRanks
from ensemble.engine.votes import Votes
from ensemble.objectives.terms import Features, Formulation, Slice, TeacherTerm, Totals, check_scalar, naming
from ensemble.teachers.teacher import Observation, Profile, Teacher


@dataclass(frozen=True)
class EnsembleMember:
    """A teacher, or the student, as every rank knows it; `teacher` is loaded on the ranks that own cells of it."""

    profile: Profile
    weight: float
    """0 for a student: what parts it from a teacher enters L with the teacher's weight."""
    targets: torch.Tensor
    """(N,) the batch's targets as indices of this teacher's own classes."""
    teacher: Teacher | None = None

    @property
    def name(self) -> str:
        return self.profile.name


@dataclass(frozen=True)
class Record:
    """A step's losses as device tensors; `values` reads them."""

    total: torch.Tensor
    prior: torch.Tensor
    names: tuple[str, ...]
    terms: tuple[str, ...]
    per_image: torch.Tensor | None
    """(N,) each image's own part of the loss; None where a term or a prior ties images together."""
    per_teacher: torch.Tensor
    """(acting teachers, terms + 1): each term unweighted, then the accuracy."""
    students: frozenset[str] = frozenset()
    """Networks that do not teach: no term is a loss of theirs."""
    unread: frozenset[str] = frozenset()
    """Networks whose passes stopped before they said anything: they have no accuracy."""

    def values(self) -> dict[str, float]:
        """`loss`, `prior`, `<teacher>/<term>` (unweighted) and, but of the unread, `<network>/accuracy`."""
        result = {"loss": float(self.total), "prior": float(self.prior)}
        for name, (*losses, accuracy) in zip(self.names, self.per_teacher.tolist(), strict=True):
            if name not in self.students:
                result |= {f"{name}/{term}": value for term, value in zip(self.terms, losses, strict=True)}
            if name not in self.unread:
                result[f"{name}/accuracy"] = accuracy
        return result


@dataclass(frozen=True)
class Readings:
    """What all teachers make of a batch: losses, logits (N, classes), and packed moments (2, C) by teacher's name."""

    record: Record
    logits: dict[str, torch.Tensor]
    moments: dict[str, torch.Tensor]


class EnsembleLoss:
    """L of a view, and its gradient: the same on every rank.

    A rank runs its cells (teacher x slice of the batch) and adds each term's sums to the exchange; one sum over the
    ranks makes them the whole batch's. L and its gradient at the sums follow from these alone; the gradient is pulled
    back through the cells, and one sum over ranks of the view's gradient ends it. Priors are computed by every rank,
    from the same view, to the same bits.

    With `recompute`, cells run twice: without gradients for the sums, then one by one with them. Exact, and memory
    holds one cell at a time.

    With `equal`, each teacher's part of an image's gradient is divided by its mean magnitude and multiplied with the
    teacher's weight, so that none drowns the others. (An image of which a teacher says nothing has a part of zeros.)

    With `threshold`, the teachers' part of the gradient is 0 where they do not agree in sign (`Votes`); that takes one
    more sum over ranks.
    """

    def __init__(
        self,
        members: Sequence[EnsembleMember],
        formulation: Formulation,
        cells: Sequence[Cell],
        *,
        recompute: bool = False,
        equal: bool = False,
        threshold: float | None = None,
        reduction: Reduction | None = None,
        reduce: SumAcrossRanks = lambda tensor: None,
        seed: int = 0,
    ) -> None:
        """`cells` are this rank's; `reduce` sums over ranks; `seed` is that of what terms draw."""
        self.members = tuple(members)
        self.teachers = [t for t, member in enumerate(self.members) if not member.profile.student]
        """The members that teach."""
        self.formulation = formulation
        self.cells = tuple(cells)
        self.recompute = recompute
        self.equal = equal
        self.threshold = threshold
        self.reduction: Reduction = reduction or FloatSum()
        self.reduce = reduce
        self.seed = seed
        self.images = len(self.members[0].targets)
        self._device = self.members[0].targets.device
        self._earlier: dict[int, Features] = {}
        self._constants: dict[object, torch.Tensor] = {}
        self._exchange = Exchange([self._shapes(t) for t in range(len(self.members))], self._device)

    def gradient(
        self, view: torch.Tensor, weights: Mapping[int, float], flags: Mapping[str, bool] | None = None
    ) -> tuple[Record, torch.Tensor, Exchanged]:
        """L under these weights of teachers, its gradient with respect to `view` (N, 3, H, W), what was exchanged."""
        view = view.detach()
        self._exchange.open(self.reduction, flags or {})
        held: list[tuple[Cell, torch.Tensor, list[torch.Tensor]]] = []
        for cell in self.cells:
            if cell.teacher not in weights:
                continue
            leaf = view[cell.start : cell.stop].clone().requires_grad_(not self.recompute)
            with torch.set_grad_enabled(not self.recompute):
                sums, _ = self._run(cell, leaf)
            held.append((cell, leaf, [] if self.recompute else sums))
            del sums
        exchanged = self._exchange.close(self.reduce)
        record, at_sums = self._losses(exchanged, weights, view.shape[2])
        gradient = self.reduction.zeros(view.shape, view.dtype, view.device)
        votes = None if self.threshold is None else Votes(weights, self.threshold, view)
        while held:
            cell, leaf, sums = held.pop(0)
            sums = sums or self._sums(cell, self._observe(cell, leaf.requires_grad_()), leaf.shape[2])
            part = self._pull_back(cell, leaf, sums, at_sums)
            if self.equal:
                part = weights[cell.teacher] * unit_mean(part)
            self.reduction.add(gradient[cell.start : cell.stop], part)
            if votes is not None:
                votes.add(cell, part)
            del sums, leaf, part
        total_gradient = self.reduction.result(gradient, self.reduce, view.dtype)
        if votes is not None:
            total_gradient = votes.masked(total_gradient, self.reduce)
        prior, prior_gradient = self._prior(view)
        return _with_prior(record, prior), total_gradient + prior_gradient, exchanged

    @torch.no_grad()
    def read(self, view: torch.Tensor) -> Readings:
        """What all teachers together make of `view`: no gradient."""
        weights = self._all_act()
        self._exchange.open(self.reduction, {})
        seen: dict[int, list[tuple[Cell, Observation]]] = {t: [] for t in weights}
        for cell in self.cells:
            seen[cell.teacher].append((cell, self._run(cell, view[cell.start : cell.stop], whole=True)[1]))
        record, _ = self._losses(self._exchange.close(self.reduce), weights, view.shape[2])
        record = replace(_with_prior(record, self.formulation.prior_loss(view)), unread=frozenset())
        logits, moments = {}, {}
        for t, member in enumerate(self.members):
            said = [(cell, observation.logits) for cell, observation in seen[t]]
            logits[member.name] = self._gathered(said, self.images, member.profile.card.num_classes, torch.float32)
            moments[member.name] = self._moments(t, seen[t], view.shape[2])
        return Readings(record, logits, moments)

    @torch.no_grad()
    def measure(self, view: torch.Tensor, weights: Mapping[int, float] | None = None) -> Record:
        """The losses at `view`, with all teachers acting or those of `weights`: no gradient, one sum over the ranks."""
        weights = weights or self._all_act()
        record, _ = self._losses(self._exchanged(view, weights), weights, view.shape[2])
        return _with_prior(record, self.formulation.prior_loss(view))

    def parts(self, view: torch.Tensor) -> Iterator[torch.Tensor]:
        """Each of `teachers`' part of the gradient with respect to `view`, (N, 3, H, W), one after the other.

        All act. A part is what comes back through the teacher: w_t times the gradient of its terms where these read
        nothing of the other teachers. Parts and the priors' gradient add to that of L. One sum over ranks for the
        losses, one for each teacher; memory holds one cell and one part.
        """
        view = view.detach()
        weights = self._all_act()
        with torch.no_grad():
            exchanged = self._exchanged(view, weights)
        _, at_sums = self._losses(exchanged, weights, view.shape[2])
        for t in self.teachers:
            part = self.reduction.zeros(view.shape, view.dtype, view.device)
            for cell in self.cells:
                if cell.teacher == t:
                    leaf = view[cell.start : cell.stop].clone().requires_grad_()
                    sums = self._sums(cell, self._observe(cell, leaf), leaf.shape[2])
                    self.reduction.add(part[cell.start : cell.stop], self._pull_back(cell, leaf, sums, at_sums))
            yield self.reduction.result(part, self.reduce, view.dtype)

    def _exchanged(self, view: torch.Tensor, weights: Mapping[int, float]) -> Exchanged:
        """What is exchanged of these teachers, without a gradient."""
        self._exchange.open(self.reduction, {})
        for cell in self.cells:
            if cell.teacher in weights:
                self._run(cell, view[cell.start : cell.stop])
        return self._exchange.close(self.reduce)

    @torch.no_grad()
    def remember(self, batches: Sequence[torch.Tensor], targets: Sequence[torch.Tensor]) -> None:
        """Let terms read the features of earlier `batches` (N, 3, H, W); `targets[t]` (M,) are teacher t's of all.

        All ranks must call it, with the same bits: each runs its own cells of every batch.
        """
        for t, member in enumerate(self.members):
            parts = []
            for batch in batches:
                seen = [
                    (cell, self._observe(cell, batch[cell.start : cell.stop].to(self._device)).features)
                    for cell in self.cells
                    if cell.teacher == t and cell.start < len(batch)  # the oldest batch may be cut
                ]
                parts.append(self._gathered(seen, len(batch), member.profile.features, torch.float64))
            self._earlier[t] = Features(torch.cat(parts), targets[t].to(self._device))

    def weights(self, acting: Collection[int]) -> dict[int, float]:
        """The weights of these teachers, which sum to 1, and of a student, which is always there."""
        present = [t for t in range(len(self.members)) if t in acting or t not in self.teachers]
        total = sum(self.members[t].weight for t in present)
        return {t: self.members[t].weight / total for t in present}

    def _all_act(self) -> dict[int, float]:
        return self.weights(range(len(self.members)))

    # --- a cell -----------------------------------------------------------------------------------------------

    def _run(self, cell: Cell, images: torch.Tensor, whole: bool = False) -> tuple[list[torch.Tensor], Observation]:
        """Observe a cell and add it to the exchange: its terms' sums, and what was seen, `whole` also beyond taps."""
        seen = self._observe(cell, images, whole)
        sums = self._sums(cell, seen, images.shape[2])
        targets = self.members[cell.teacher].targets[cell.start : cell.stop]
        accuracy = (seen.logits.detach().argmax(1) == targets).sum().double() / self.images
        finite = torch.stack([torch.isfinite(part).all() for part in (seen.logits, *sums)]).all()
        self._exchange.add(cell.teacher, sums, accuracy, ~finite)
        return sums, seen

    def _observe(self, cell: Cell, images: torch.Tensor, whole: bool = False) -> Observation:
        teacher = self.members[cell.teacher].teacher
        assert teacher is not None, "a cell was placed on a rank that does not hold its teacher"
        return teacher.observe(images, whole=whole)

    def _sums(self, cell: Cell, seen: Observation, view_size: int) -> list[torch.Tensor]:
        batch = self._slice(cell.teacher, cell.start, cell.stop, view_size)
        sums = [_sums_of(term, seen, batch) for term in self.formulation.teacher_terms]
        for term, found, shape in zip(
            self.formulation.teacher_terms, sums, self._exchange.shapes[cell.teacher], strict=True
        ):
            if found.shape != shape:
                raise ValueError(
                    f"{term.name}: sums of {batch.stop - batch.start} images have shape {tuple(found.shape)}, those of "
                    f"one image {tuple(shape)}; slices add, so they must have one shape"
                )
        return sums

    def _slice(self, t: int, start: int, stop: int, view_size: int) -> Slice:
        member = self.members[t]
        return Slice(
            start,
            stop,
            self.images,
            member.targets[start:stop],
            member.profile,
            view_size,
            self.seed,
            self._earlier.get(t),
            self._constants,
        )

    def _pull_back(
        self, cell: Cell, leaf: torch.Tensor, sums: Sequence[torch.Tensor], at_sums: torch.Tensor
    ) -> torch.Tensor:
        """The gradient at the cell's images, from the loss's gradient `at_sums` (in the exchange's layout)."""
        teacher = self.members[cell.teacher].teacher
        assert teacher is not None
        scale = teacher.gradient_scale
        pairs = [
            (part, (slope * scale).to(part.dtype))
            for part, slope in zip(sums, self._exchange.parts(at_sums, cell.teacher), strict=True)
            if part.requires_grad
        ]
        if not pairs:
            return torch.zeros_like(leaf)
        (pulled,) = torch.autograd.grad([part for part, _ in pairs], leaf, [slope for _, slope in pairs])
        return pulled / scale if scale != 1.0 else pulled

    # --- the whole batch --------------------------------------------------------------------------------------

    @torch.no_grad()
    def _shapes(self, t: int) -> list[torch.Size]:
        """The shapes of the terms' sums of teacher t, known on every rank without running it."""
        member = self.members[t]
        batch = self._slice(t, 0, 1, member.profile.card.input_size)
        seen = member.profile.example(self._device)
        shapes = []
        for term in self.formulation.teacher_terms:
            with naming(term):
                shapes.append(_sums_of(term, seen, batch).shape)
        return shapes

    @torch.no_grad()
    def try_terms(self) -> None:
        """ValueError that names the term whose loss fails, or is not one number, on sums that are zeros."""
        flat = torch.zeros(self._exchange.size, dtype=torch.float64, device=self._device)
        size = self.members[0].profile.card.input_size
        batches = [self._slice(t, 0, self.images, size) for t in range(len(self.members))]
        for k, term in enumerate(self.formulation.teacher_terms):
            totals = Totals({t: self._exchange.parts(flat, t)[k] for t in range(len(self.members))}, batches)
            with naming(term):
                value = term.loss(totals, 0)
            check_scalar(term, value)

    @torch.no_grad()
    def try_views(self, sizes: Collection[int]) -> None:
        """ValueError that names the term which cannot take what is tapped in views of one of these sizes."""
        for cell in {cell.teacher: cell for cell in self.cells}.values():
            profile = self.members[cell.teacher].profile
            terms = [term for term in self.formulation.teacher_terms if term.reads(profile) and term.needs(profile)]
            for size in sizes if terms else ():
                seen = self._observe(cell, torch.full((1, 3, size, size), 0.5, device=self._device))
                for i in range(self.images):  # each image may be for another unit
                    batch = self._slice(cell.teacher, i, i + 1, size)
                    for term in terms:
                        with naming(term, f" of views of {size} x {size}"):
                            _sums_of(term, seen, batch)

    @torch.enable_grad()
    def _losses(
        self, exchanged: Exchanged, weights: Mapping[int, float], view_size: int
    ) -> tuple[Record, torch.Tensor]:
        """The teachers' part of L, and its gradient at the exchanged sums, in the exchange's layout."""
        leaf = exchanged.flat.detach().requires_grad_()
        batches = [self._slice(t, 0, self.images, view_size) for t in range(len(self.members))]
        parts = {t: self._exchange.parts(leaf, t) for t in weights}
        total = leaf.new_zeros(())
        rows: dict[int, list[torch.Tensor]] = {t: [] for t in weights}
        alone: list[torch.Tensor | None] = [None] if self.formulation.priors else []
        for k, term in enumerate(self.formulation.teacher_terms):
            totals = Totals({t: parts[t][k] for t in weights}, batches)
            for t, weight in weights.items():
                silent = not term.reads(self.members[t].profile)
                loss = total.new_zeros(()) if silent else term.loss(totals, t)
                total = total + weight * term.weight * loss
                rows[t].append(loss.detach())
                own = None if silent else term.per_image(totals, t)
                alone.append(own if own is None else (weight * term.weight * own).detach())
        at_sums = torch.autograd.grad(total, leaf)[0] if total.requires_grad else torch.zeros_like(leaf)
        per_teacher = torch.stack([torch.stack([*rows[t], exchanged.accuracy(t)]) for t in weights])
        names = tuple(self.members[t].name for t in weights)
        zero = torch.zeros_like(total)
        parts_alone = [part for part in alone if part is not None]
        per_image = torch.stack(parts_alone).sum(0) if len(parts_alone) == len(alone) else None
        students = frozenset(self.members[t].name for t in weights if self.members[t].profile.student)
        unread = frozenset(self.members[t].name for t in weights if self.members[t].profile.stops)
        terms = self.formulation.names
        record = Record(total.detach(), zero, names, terms, per_image, per_teacher, students, unread)
        return record, at_sums

    def _prior(self, view: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.formulation.priors:
            return view.new_zeros(()), torch.zeros_like(view)
        leaf = view.clone().requires_grad_()
        loss = self.formulation.prior_loss(leaf)
        (gradient,) = torch.autograd.grad(loss, leaf)
        return loss.detach(), gradient

    # --- readings ---------------------------------------------------------------------------------------------

    def _gathered(
        self, seen: Sequence[tuple[Cell, torch.Tensor]], images: int, width: int, dtype: torch.dtype
    ) -> torch.Tensor:
        """What is seen of a batch, (images, width): each cell has rows of its own, so a sum puts them together."""
        rows = torch.zeros(images, width, dtype=dtype, device=self._device)
        for cell, part in seen:
            rows[cell.start : cell.stop] = part
        self.reduce(rows)
        return rows

    def _moments(self, t: int, seen: Sequence[tuple[Cell, Observation]], view_size: int) -> torch.Tensor:
        statistics = self.members[t].profile.statistics
        if statistics is None:
            return torch.zeros(2, 0, dtype=torch.float64, device=self._device)
        units = statistics.at(view_size).units(self.images)
        total = self.reduction.zeros(units.shape, torch.float64, self._device)
        for _, observation in seen:
            self.reduction.add(total, observation.moments.double() / units)
        return self.reduction.result(total, self.reduce, torch.float64) * units


def _sums_of(term: TeacherTerm, seen: Observation, batch: Slice) -> torch.Tensor:
    """The term's sums; none of one that it does not read."""
    return term.sums(seen, batch) if term.reads(batch.teacher) else seen.logits.new_zeros(0)


def _with_prior(record: Record, prior: torch.Tensor) -> Record:
    return replace(record, total=record.total + prior.detach().double(), prior=prior.detach())
