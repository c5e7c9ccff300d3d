"""L-BFGS-B, one problem an image."""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from pydantic import PositiveFloat, PositiveInt

from ensemble.engine.optimizers import ImageOptimizer, Optimizer, StageFields, rows_of_images
from ensemble.machine.blas import one_blas_thread
from ensemble.objectives.terms import Objective, TeacherTerm

_UNBOUNDED = 10**9
"""Iterations and evaluations: the stage says how many there are."""


@dataclass(frozen=True)
class LBFGSB(Optimizer, kind="lbfgsb"):
    """SciPy's L-BFGS-B (Byrd, Lu, Nocedal & Zhu 1995), for each image a problem of its own, in float64, within bounds.

    A step is one evaluation of the whole batch, each image at the point that its search asks for next; an image whose
    search has ended waits at its solution. So a stage's iterations are evaluations, a little more than iterations of
    the method. What comes out is the best point of each image. Bounds are the parameterization's: RGB in [0, 1] of
    pixels, a generator's bounds of its codes. It needs a loss that is a sum over images (`activation`), and views that
    do not change. A resumed run takes its steps again up to where it was, as SciPy keeps its memory to itself.
    """

    lr: PositiveFloat = 1.0
    schedule: Literal["cosine", "constant", "plateau"] = "constant"
    history: PositiveInt = 10
    """Corrections kept."""
    ftol: PositiveFloat = 2.2e-9
    """Ends where a step lowers the loss by less than this, times max(|loss|, 1)."""
    gtol: PositiveFloat = 1e-5
    """Ends where no component of the projected gradient is above it."""
    max_line_search: PositiveInt = 20

    def rules(self) -> Iterator[str]:
        for name in ("lr", "schedule", "warmup", "early_stopping", "enough"):
            if getattr(self, name) != getattr(type(self), name):
                yield f"{name}: lbfgsb finds its own steps and its own end; leave it out"

    def conflicts(
        self, stages: Sequence[StageFields], terms: Sequence[Objective], one_loss: bool, pixels: bool
    ) -> Iterator[str]:
        for i, stage in enumerate(stages):
            if stage.jitter or stage.flip or stage.zoom < 1 or stage.noise or stage.moving < 1:
                yield f"stages[{i}]: lbfgsb needs views that do not change; leave jitter, flip, zoom, noise, moving out"
        if len(stages) > 1:
            yield "stages: lbfgsb has one stage"
        if not one_loss:
            yield "ensemble: lbfgsb needs the gradient of one loss; use `acting: all` and `aggregation: sum`"
        for i, term in enumerate(terms):
            if not isinstance(term, TeacherTerm) or type(term).per_image is TeacherTerm.per_image:
                yield (
                    f"objectives[{i}]: lbfgsb takes each image as a problem of its own, and {term.name} ties images "
                    "together; leave it out, or use another optimizer"
                )

    def make(self, parameters: list[torch.nn.Parameter], steps: int) -> torch.optim.Optimizer:
        return _Searches(rows_of_images(parameters, "lbfgsb"), self)


class _Stop(Exception):
    """The searches are wanted no more."""


class _Search:
    """One image's search, in a thread of its own that waits for each value and gradient."""

    def __init__(self, start: np.ndarray, bounds: list[tuple[float | None, float | None]] | None, rule: LBFGSB) -> None:
        self.best, self.best_loss = start, np.inf
        self.ended = False
        self._asked: queue.SimpleQueue[np.ndarray | None] = queue.SimpleQueue()
        self._told: queue.SimpleQueue[tuple[float, np.ndarray] | None] = queue.SimpleQueue()
        arguments = start, bounds, rule, self._asked, self._told
        threading.Thread(target=_run, args=arguments, daemon=True).start()
        self.point = self._next()
        weakref.finalize(self, self._told.put, None)

    def tell(self, loss: float, gradient: np.ndarray) -> None:
        """The value and gradient at `point`, which then is the next one, or the best where the search has ended."""
        if loss < self.best_loss:
            self.best, self.best_loss = self.point, loss
        self._told.put((loss, gradient))
        self.point = self._next()

    def _next(self) -> np.ndarray:
        asked = self._asked.get()
        self.ended = asked is None
        return self.best if asked is None else asked


def _run(start: np.ndarray, bounds: Any, rule: LBFGSB, asked: Any, told: Any) -> None:
    from scipy.optimize import minimize  # a second, which all other runs are spared

    def evaluate(x: np.ndarray) -> tuple[float, np.ndarray]:
        asked.put(x.copy())
        answer = told.get()
        if answer is None:
            raise _Stop
        return answer

    options = {"maxcor": rule.history, "ftol": rule.ftol, "gtol": rule.gtol, "maxls": rule.max_line_search}
    options |= {"maxiter": _UNBOUNDED, "maxfun": _UNBOUNDED}
    try:
        minimize(evaluate, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    except _Stop:
        return
    asked.put(None)


class _Searches(ImageOptimizer):
    """All images' searches; `state` of the parameter: where they began, and `bounds` that the loop may set."""

    replays = True

    def __init__(self, parameter: torch.nn.Parameter, rule: LBFGSB) -> None:
        super().__init__([parameter], {"lr": 1.0})
        self.rule = rule
        self._losses: torch.Tensor | None = None
        self._searches: list[_Search] = []

    @property
    def _parameter(self) -> torch.nn.Parameter:
        parameter: torch.nn.Parameter = self.param_groups[0]["params"][0]
        return parameter

    def tell(self, shifts: torch.Tensor | None, losses: torch.Tensor | None) -> None:
        self._losses = losses

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        parameter = self._parameter
        if self._losses is None:
            raise ValueError(
                "optimizer: lbfgsb takes each image as a problem of its own, and a term of the loss ties images "
                "together; use objectives of kind 'activation' alone, without priors, or another optimizer"
            )
        assert parameter.grad is not None
        if not self._searches:
            self.state[parameter]["start"] = parameter.detach().clone()
            bounds = self._bounds()
            starts = parameter.detach().double().cpu().flatten(1).numpy()
            with one_blas_thread():
                self._searches = [_Search(start, bounds, self.rule) for start in starts]
        gradients = parameter.grad.double().cpu().flatten(1).numpy()
        with one_blas_thread():  # searches compute while they are waited for, and at no other time
            for search, loss, gradient in zip(self._searches, self._losses.tolist(), gradients, strict=True):
                if not search.ended:
                    search.tell(loss, gradient)
        self._show([search.point for search in self._searches])

    @property
    def done(self) -> bool:  # type: ignore[override]
        return bool(self._searches) and all(search.ended for search in self._searches)

    def settle(self) -> None:
        if self._searches:
            self._show([search.best for search in self._searches])

    @torch.no_grad()
    def _show(self, points: list[np.ndarray]) -> None:
        parameter = self._parameter
        parameter.copy_(torch.from_numpy(np.stack(points)).view(parameter.shape))

    def _bounds(self) -> list[tuple[float | None, float | None]] | None:
        if self.bounds is None:
            return None
        one = self._parameter[:1]
        low, high = (bound.expand_as(one).double().cpu().flatten().tolist() for bound in self.bounds)
        return list(zip(low, high, strict=True))
