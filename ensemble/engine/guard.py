"""What must not be lost: the best images, the last good ones, and the moment at which a loss is not finite."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

import torch

from ensemble.engine.exchange import Exchanged
from ensemble.engine.gradient import Record
from ensemble.image.parameterization import ImageParameterization
from ensemble.machine.errors import Mistake

State = dict[str, torch.Tensor]


class NotFiniteError(Mistake):
    """A loss became NaN or infinite, on every rank at the same step; the parameters are the last good ones."""

    images: torch.Tensor | None = None
    """The last good images, (N, 3, H, W), after those of trials that ended before."""


@dataclass
class Best:
    """The parameters with the lowest loss measured so far."""

    loss: float = math.inf
    step: int = -1
    tensors: State = field(default_factory=dict)


class Guard:
    """Watches one inversion's losses and parameters."""

    def __init__(self, image: ImageParameterization, names: Sequence[str], device: torch.device) -> None:
        """`names` are the teachers'."""
        self.image = image
        self.names = tuple(names)
        self.best = Best()
        self._bad_step = torch.full((len(self.names) + 1,), -1, dtype=torch.int64, device=device)
        self._last_good: State = {}

    def begin(self) -> None:
        """The parameters as they are now are good."""
        self._last_good = self.parameters()

    def parameters(self) -> State:
        """A copy of the image's parameters."""
        return {key: value.detach().clone() for key, value in self.image.state_dict().items()}

    def note(self, step: int, exchanged: Exchanged, acting: Container[int], total: torch.Tensor) -> None:
        """Remember, on the device, the first step at which a teacher or the loss itself was not finite."""
        quiet = self._bad_step.new_zeros((), dtype=torch.bool)
        of_teachers = [exchanged.bad(t) > 0 if t in acting else quiet for t in range(len(self.names))]
        bad = torch.stack([*of_teachers, ~torch.isfinite(total)])
        self._bad_step = torch.where(bad & (self._bad_step < 0), step, self._bad_step)

    def check(self, before: State) -> None:
        """Raise NotFiniteError if a step was bad. `before` the last one parameters were good: its loss is known."""
        bad = self._bad_step.tolist()
        if max(bad) < 0:
            self._last_good = before
            return
        first = min(step for step in bad if step >= 0)
        self._fail([name for name, step in zip(self.names, bad, strict=False) if step == first], first)

    def check_image(self, step: int) -> None:
        """No loss has seen the parameters after the last step, where the best images are not measured."""
        if not self.best.tensors and not bool(torch.isfinite(self.image()).all()):
            self._fail([], step)

    def keep_best(self, step: int, record: Record, loss: float) -> None:
        """Take over the parameters as they are if their `record` has the lowest `loss` so far."""
        if not math.isfinite(loss):
            fine = torch.isfinite(record.per_teacher).all(dim=1).tolist()
            self._fail([name for name, good in zip(record.names, fine, strict=True) if not good], step)
        if loss < self.best.loss:
            self.best = Best(loss, step, self.parameters())

    @torch.no_grad()
    def result(self) -> torch.Tensor:
        """The best images measured, or those of now where none was: (N, 3, H, W), RGB clipped to [0, 1]."""
        if not self.best.tensors:
            return self.image().clamp(0, 1)
        current = self.parameters()
        self.image.load_state_dict(self.best.tensors)
        images = self.image().clamp(0, 1)
        self.image.load_state_dict(current)
        return images

    def load_best(self, loss: float, step: int, tensors: Mapping[str, torch.Tensor]) -> None:
        """Go on from a checkpoint's best."""
        self.best = Best(loss, step, dict(tensors))

    def _fail(self, culprits: Sequence[str], step: int) -> NoReturn:
        self.image.load_state_dict(self._last_good)
        who = f"of teacher {', '.join(culprits)} " if culprits else ""
        advice = (
            "lower the learning rate or the weights"
            if step
            else "no step was taken yet, so look at the terms, the networks' weights, and their mean and std"
        )
        raise NotFiniteError(f"the loss {who}is not finite at step {step}; {advice}")
