"""Gradient descent with momentum on images, and what cnnpref does to them between its steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from ensemble.engine import image_operators as operators
from ensemble.engine.optimizers import ImageOptimizer, Optimizer, StageFields, rows_of_images
from ensemble.engine.schedules import Plateau
from ensemble.objectives.terms import Objective

Ramp = NonNegativeFloat | tuple[NonNegativeFloat, NonNegativeFloat]
"""A number, or its start and its end over the steps of a stage."""
INTEGER_SQUARE = 255 * 511 / 6
"""The mean square of integers drawn uniformly from 0 to 255."""
Percent = Annotated[float, Field(ge=0, le=100)]
_OF_PIXELS = ("blur", "p_norm", "tv", "clip_extreme", "clip_small_norm", "clip_small_contribution")


@dataclass(frozen=True)
class GradientDescent(Optimizer, kind="gradient_descent"):
    """Each step, in this order, for every image by itself:

        g = dL/dx, divided by mean|g| (`normalize`)
        v = momentum v + g + p_norm r_p + tv r_tv           r: gradients of regularisers, normalised as g
        x = x - lr v
        x clipped at its percentiles; pixels of small norm, of small contribution |x g|: 0   (every `clip_every` steps)
        x = (1 - decay) x, then blurred

    x are the parameters in their own units: with `space: caffe` one is a grey level and 0 the mean colour. Numbers that
    a stage moves are one number or [start, end]: s(t) = start + (end - start) t / (T - 1), t = 0 .. T - 1.

    `faithful` does as the release of cnnpref: a schedule divides by T and so never reaches its end; and where a step's
    view is shifted (a stage's `jitter`), all happens in the shifted frame, from which the newest gradient is not
    shifted back into the velocity. Otherwise all is in the image's frame.

    Source: `prefer_img_gd` of cnnpref (Kamitani Lab, 2018). Departures: one `clip_every` for the three clippings;
    without `normalize`, the regularisers' N0^2 is its expected value, a quarter of an image's of uniform integers.
    """

    lr: PositiveFloat = 2.0
    schedule: Literal["cosine", "constant", "plateau"] = "constant"
    lr_end: NonNegativeFloat | None = None
    """Where lr goes in a straight line; by default it stays."""
    normalize: bool = True
    momentum: Ramp = 0.9
    decay: Ramp = 0.0
    blur: Ramp = 0.0
    """Standard deviation, in pixels."""
    p_norm: Ramp = 0.0
    p: PositiveFloat = 3.0
    tv: Ramp = 0.0
    tv_beta: PositiveFloat = 2.0
    clip_extreme: Percent = 0.0
    clip_small_norm: Percent = 0.0
    clip_small_contribution: Percent = 0.0
    clip_every: PositiveInt = 1
    faithful: bool = False

    def rules(self) -> Iterator[str]:
        if self.schedule != "constant":
            yield "schedule: gradient_descent goes in a straight line from lr to lr_end; leave it out"
        if self.warmup:
            yield "warmup: gradient_descent goes in a straight line from lr to lr_end; leave it out"

    def conflicts(
        self, stages: Sequence[StageFields], terms: Sequence[Objective], one_loss: bool, pixels: bool
    ) -> Iterator[str]:
        if not pixels:
            for name in _OF_PIXELS:
                if getattr(self, name):
                    yield f"optimizer.{name}: it is for pixels; leave it out, or use {{kind: pixels}} in image"
            if self.faithful and any(stage.jitter for stage in stages):
                yield "optimizer.faithful: it shifts pixels; leave jitter out, or use {kind: pixels} in image"
        for i, stage in enumerate(stages):
            if stage.moving < 1:
                yield f"stages[{i}].moving: gradient_descent moves all images; leave it out"
            if self.faithful and (stage.size or stage.flip or stage.zoom < 1):
                yield f"stages[{i}]: `faithful` knows shifts alone; leave size, flip and zoom out"
            if self.faithful and stage.jitter and stage.jitter_mode != "wrap":
                yield f"stages[{i}].jitter_mode: `faithful` shifts around the edges; use `wrap`"

    def make(self, parameters: list[torch.nn.Parameter], steps: int) -> torch.optim.Optimizer:
        return _Descent(rows_of_images(parameters, "gradient_descent"), self, steps)

    def multiplier(self, step: int, steps: int, plateau: Plateau | None) -> float:
        return self.at((self.lr, self.lr if self.lr_end is None else self.lr_end), step, steps) / self.lr

    def at(self, ramp: Ramp, step: int, steps: int) -> float:
        """A ramp's number at `step` of `steps`."""
        start, end = ramp if isinstance(ramp, tuple) else (ramp, ramp)
        return start + (end - start) * step / (steps if self.faithful else max(1, steps - 1))


class _Descent(ImageOptimizer):
    """`state` of each parameter: `velocity`, as itself, and `step`."""

    def __init__(self, parameter: torch.nn.Parameter, rule: GradientDescent, steps: int) -> None:
        super().__init__([parameter], {"lr": rule.lr})
        self.rule, self.steps = rule, steps
        self._shifts: Tensor | None = None

    def tell(self, shifts: Tensor | None, losses: Tensor | None) -> None:
        self._shifts = shifts if self.rule.faithful else None

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state["velocity"], state["step"] = torch.zeros_like(parameter), torch.zeros((), dtype=torch.int64)
                x, velocity = self._moved(parameter, state["velocity"], group["lr"], int(state["step"]))
                parameter.copy_(x)
                state["velocity"] = velocity
                state["step"] += 1

    def _moved(self, parameter: torch.nn.Parameter, velocity: Tensor, lr: float, t: int) -> tuple[Tensor, Tensor]:
        rule = self.rule
        assert parameter.grad is not None
        x, gradient, velocity = (self._shifted(part, 1) for part in (parameter, parameter.grad, velocity))

        def at(ramp: Ramp) -> float:
            return rule.at(ramp, t, self.steps)

        if rule.normalize:
            gradient = operators.unit_mean(gradient)
        velocity = at(rule.momentum) * velocity + gradient
        if rule.p_norm:
            velocity = velocity + at(rule.p_norm) * self._scaled(operators.p_norm_gradient(x, rule.p))
        if rule.tv:
            velocity = velocity + at(rule.tv) * self._scaled(operators.tv_gradient(x, rule.tv_beta))
        x = x - lr * velocity
        if (t + 1) % rule.clip_every == 0:
            x = self._clipped(x, gradient)
        x = self._shifted(x, -1)
        # the release shifts back all of the velocity but the newest gradient
        velocity = gradient + self._shifted(velocity - gradient, -1) if rule.faithful else velocity
        x = (1 - at(rule.decay)) * x
        return operators.blur(x, at(rule.blur)) if rule.blur else x, velocity

    def _scaled(self, gradient: Tensor) -> Tensor:
        if self.rule.normalize:
            return operators.unit_mean(gradient)
        return gradient / (gradient[0].numel() * INTEGER_SQUARE / 4)

    def _clipped(self, x: Tensor, gradient: Tensor) -> Tensor:
        if self.rule.clip_extreme:
            x = operators.clip_extreme(x, self.rule.clip_extreme)
        if self.rule.clip_small_norm:
            x = operators.clip_small(x, x.square().sum(1).sqrt(), self.rule.clip_small_norm)
        if self.rule.clip_small_contribution:
            size = (x * gradient).square().sum(1).sqrt()
            x = operators.clip_small(x, size, self.rule.clip_small_contribution)
        return x

    def _shifted(self, tensor: Tensor, sign: int) -> Tensor:
        """Rolled by each image's shift, or back."""
        if self._shifts is None:
            return tensor
        shifts = (sign * self._shifts).tolist()
        if len(shifts) == 1:
            return torch.roll(tensor, tuple(shifts[0]), (2, 3))
        return torch.stack([torch.roll(one, tuple(s), (1, 2)) for one, s in zip(tensor, shifts, strict=True)])
