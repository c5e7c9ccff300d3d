"""What a term of the loss is, of teachers or of the image alone, and all terms of one inversion."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F

from ensemble.config.kinds import Kind
from ensemble.machine.errors import is_out_of_memory
from ensemble.machine.words import numbered
from ensemble.teachers.statistics import BNStatistics
from ensemble.teachers.taps import Tap
from ensemble.teachers.teacher import Observation, Profile


class Objective(Kind):
    """A term that a recipe names by its `kind`: a TeacherTerm or an ImageTerm. `weight` multiplies it in the loss."""

    weight: float

    @property
    def name(self) -> str:
        """What records call it."""
        return getattr(self, "kind", type(self).__name__)

    def describe(self) -> str:
        """The term in a printed formula, without its weight."""
        return self.name


class Features(NamedTuple):
    """What a teacher makes of images: `features` (M, D), and their `targets` (M,) as its own classes."""

    features: torch.Tensor
    targets: torch.Tensor


@dataclass(frozen=True)
class Slice:
    """Images [start, stop) of the batch as one teacher sees them."""

    start: int
    stop: int
    images: int
    """N, of the whole batch."""
    targets: torch.Tensor
    """(n,) indices of this teacher's own classes."""
    teacher: Profile
    view_size: int
    seed: int = 0
    """Of this batch of images: what a term draws, it draws from `generator(seed, ...)`, alike on every rank."""
    earlier: Features | None = None
    """Of earlier batches of the run, the oldest first, where a term's `memory` asks for them."""
    constants: dict[object, torch.Tensor] = field(default_factory=dict, repr=False, compare=False)
    """What `once` keeps, of all slices of this batch."""

    def once(self, key: object, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        """What `make` returned when it was first asked for under this key, for this batch: what a term draws."""
        key = self.seed, key
        if key not in self.constants:
            self.constants[key] = make()
        return self.constants[key]

    def placed(self, rows: torch.Tensor) -> torch.Tensor:
        """The slice's `rows` (n, D) at their place among the batch's, (N, D), which are 0 elsewhere: slices add."""
        return F.pad(rows, (0, 0, self.start, self.images - self.stop))

    @property
    def statistics(self) -> BNStatistics:
        """The teacher's BN statistics, at the size of this view."""
        assert self.teacher.statistics is not None, "a term that needs BN layers refuses teachers without"
        return self.teacher.statistics.at(self.view_size)


class Totals(Mapping[int, torch.Tensor]):
    """One term's sums over the whole batch: `totals[t]` for each teacher t that acts, float64, differentiable."""

    def __init__(self, sums: Mapping[int, torch.Tensor], batches: Sequence[Slice]) -> None:
        self._sums = sums
        self._batches = batches

    def __getitem__(self, t: int) -> torch.Tensor:
        return self._sums[t]

    def __iter__(self) -> Iterator[int]:
        return iter(self._sums)

    def __len__(self) -> int:
        return len(self._sums)

    def batch(self, t: int) -> Slice:
        """The whole batch as teacher t sees it."""
        return self._batches[t]


class TeacherTerm(Objective):
    """A term of what teachers say, as two functions:

        loss_t = loss(sum over slices of sums(what teacher t sees of a slice, the slice), t)

    `sums` adds over slices of the batch, and so over micro-batches and ranks; `loss` is a function of the whole
    batch's sums, also of other teachers' than t. Rows that every slice writes at its place of a tensor of zeros are
    sums too: so a term can have all logits. Both are differentiated. What enters the loss is w_t * weight * loss_t.
    """

    aims: ClassVar[bool] = False
    """Whether it draws the images to their targets."""
    reads_features: ClassVar[bool] = False
    """Whether `sums` reads `seen.features`."""
    reads_taps_alone: ClassVar[bool] = False
    """Whether `sums` reads `seen.taps` and nothing else: where all terms do, a pass need not go on to the logits."""
    matches_layers: ClassVar[bool] = False
    """Whether `sums` reads `seen.moments`, of all layers that have statistics."""
    compares: ClassVar[bool] = False
    """Whether it reads the student, too; others read teachers alone."""
    signed: ClassVar[bool] = False
    """Whether its loss may be below 0, so that no share of what it was at first says that it is small."""
    memory: int = 0
    """How many of the run's earlier images `loss` reads the features of (`Slice.earlier`)."""

    @property
    def uses_levels(self) -> bool:
        """Whether it asks how far batches of real images are from a layer's statistics."""
        return False

    @property
    def falls(self) -> bool:
        """Whether its loss at the end, beside that of the first step, says how well it went."""
        return True

    def reads(self, teacher: Profile) -> bool:
        """Whether it is asked about that one: about a student only where it compares."""
        return self.compares or not teacher.student

    def needs(self, teacher: Profile) -> Sequence[Tap]:
        """What to tap, for `seen.taps`; ValueError where the teacher lacks what the term reads."""
        return ()

    def check(self, teachers: Sequence[Profile]) -> None:
        """ValueError where the term cannot be had of these, whom it reads, together."""
        for teacher in teachers:
            self.needs(teacher)

    @abstractmethod
    def sums(self, seen: Observation, batch: Slice) -> torch.Tensor:
        """What a slice adds: a tensor of fixed shape with values of order 1, which fixed-point sums need."""

    def loss(self, total: Totals, t: int) -> torch.Tensor:
        """The unweighted loss for teacher t, a scalar; where `sums` is a scalar, that is the default."""
        return total[t]

    def per_image(self, total: Totals, t: int) -> torch.Tensor | None:
        """Each image's part of `loss`, (N,), which is their sum and depends on that image alone; None where none is."""
        return None


class ImageTerm(Objective):
    """A prior: a term of the view alone."""

    @abstractmethod
    def __call__(self, view: torch.Tensor) -> torch.Tensor:
        """The unweighted loss, a scalar, of the view (N, 3, H, W), RGB in [0, 1] (or as `prior_space` says)."""


@dataclass(frozen=True)
class FunctionTerm(ImageTerm):
    """A prior that is a plain function of the view."""

    function: Callable[[torch.Tensor], torch.Tensor]
    weight: float = 1.0

    @property
    def name(self) -> str:
        return getattr(self.function, "__name__", type(self.function).__name__).replace("<lambda>", "lambda")

    def __call__(self, view: torch.Tensor) -> torch.Tensor:
        return self.function(view)


@contextmanager
def naming(term: Objective, what: str = "") -> Iterator[None]:
    """What fails inside is told with the term's name, and `what` it is of: it may be anybody's."""
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise ValueError(f"{term.name}{what}: {type(error).__name__}: {error}") from error


def check_scalar(term: Objective, value: object) -> None:
    """ValueError where a term's loss is not one number."""
    if not isinstance(value, torch.Tensor) or value.ndim:
        seen = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
        raise ValueError(f"{term.name}: it gives {seen}; a term gives one number, a tensor without dimensions")


@dataclass(frozen=True)
class Formulation:
    """L = sum_t w_t [sum of teacher terms] + sum of priors, each term times its own weight.

    Priors act on the view in RGB, or, where `prior_mean` and `prior_std` are given, in (rgb - mean) / std.
    Raises ValueError where nothing ties the images to a teacher.
    """

    terms: tuple[Objective, ...]
    prior_mean: tuple[float, ...] | None = None
    prior_std: tuple[float, ...] | None = None
    teacher_terms: tuple[TeacherTerm, ...] = field(init=False)
    priors: tuple[ImageTerm, ...] = field(init=False)
    names: tuple[str, ...] = field(init=False)
    """Of the teacher terms, unique: numbered where a name comes more than once."""

    def __post_init__(self) -> None:
        teacher_terms = tuple(term for term in self.terms if isinstance(term, TeacherTerm))
        if not teacher_terms:
            raise ValueError("objectives: nothing ties the images to a teacher; add cross_entropy or bn_matching")
        object.__setattr__(self, "teacher_terms", teacher_terms)
        object.__setattr__(self, "priors", tuple(term for term in self.terms if isinstance(term, ImageTerm)))
        object.__setattr__(self, "names", numbered([term.name for term in teacher_terms]))

    @property
    def memory(self) -> int:
        """How many of a run's earlier images terms remember."""
        return max(term.memory for term in self.teacher_terms)

    def prior_loss(self, view: torch.Tensor) -> torch.Tensor:
        """The weighted sum of the priors, a scalar."""
        view = self._for_priors(view)
        return sum((prior.weight * prior(view) for prior in self.priors), start=view.new_zeros(()))

    def _for_priors(self, view: torch.Tensor) -> torch.Tensor:
        if self.prior_mean is None or self.prior_std is None:
            return view
        mean, std = (view.new_tensor(v)[:, None, None] for v in (self.prior_mean, self.prior_std))
        return (view - mean) / std

    def try_priors(self, view: torch.Tensor) -> None:
        """ValueError that names the prior which fails on `view` (N, 3, H, W), gives something else than a number, or
        has no gradient there, or none that is finite."""
        begun = "for the images that the run begins with"
        for prior in self.priors:
            leaf = view.detach().requires_grad_()
            with naming(prior), torch.enable_grad():
                value = prior(self._for_priors(leaf))
            check_scalar(prior, value)
            if not torch.isfinite(value):
                raise ValueError(f"{prior.name}: it is {value.item():g} {begun}")
            gradient = None
            if value.requires_grad:
                with naming(prior):
                    (gradient,) = torch.autograd.grad(value, leaf, allow_unused=True)
            if gradient is None:
                raise ValueError(
                    f"{prior.name}: no gradient reaches the images, so it does nothing; compute it from the view by "
                    "torch operations alone (no detach, no_grad, item or numpy)"
                )
            if not bool(torch.isfinite(gradient).all()):
                raise ValueError(f"{prior.name}: its gradient is not finite {begun}")

    def describe(self, teachers: Sequence[tuple[str, float]]) -> str:
        """The formula as text, e.g. for a dry run; `teachers` are (name, normalised weight)."""
        inner = [f"{term.weight:g} {term.describe()}" for term in self.teacher_terms]
        lines = ["L = sum_t w_t [ " + " + ".join(inner) + " ]"]
        lines += [f"    + {prior.weight:g} {prior.describe()}" for prior in self.priors]
        lines += [f"    w({name}) = {weight:.4g}" for name, weight in teachers]
        return "\n".join(lines)
