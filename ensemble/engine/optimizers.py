"""Optimisers of the image parameters: the family, and Adam."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat

from ensemble.config.kinds import Kind
from ensemble.engine.schedules import Plateau, ramp, warmup_cosine
from ensemble.objectives.terms import Objective

Beta = Annotated[float, Field(ge=0, lt=1)]


class StageFields(Protocol):
    """Of a recipe's stage, what an optimiser may not be able to do."""

    @property
    def size(self) -> int | None: ...
    @property
    def jitter(self) -> int: ...
    @property
    def jitter_mode(self) -> str: ...
    @property
    def flip(self) -> float: ...
    @property
    def zoom(self) -> float: ...
    @property
    def noise(self) -> float: ...
    @property
    def moving(self) -> float: ...


@dataclass(frozen=True)
class Optimizer(Kind, default="adam"):
    """A torch optimiser under a schedule of its learning rate; each stage runs the schedule from its start."""

    lr: PositiveFloat = 0.1
    """Peak of the schedule, in units of the parameters."""
    schedule: Literal["cosine", "constant", "plateau"] = "cosine"
    """`cosine` falls to 0 at the stage's end, `plateau` shrinks where the loss no longer falls."""
    warmup: NonNegativeInt = 0
    """Steps over which lr rises linearly."""
    plateau_factor: Annotated[float, Field(gt=0, lt=1)] = 0.5
    plateau_patience: NonNegativeInt = 50
    """Steps without a lower loss before lr shrinks by `plateau_factor`."""
    early_stopping: NonNegativeInt = 0
    """Stop once the last stage's loss has not improved for more than so many steps; 0 never does. Where not all
    teachers act at each step, the loss is the mean of each one's last."""
    enough: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """End the last stage once the teachers' part of the loss has been at most this share of what it was at first, as
    soon as each of them had acted, ten steps in a row: nothing is left to pull where terms end (saturating,
    calibrated). 0: never."""

    @abstractmethod
    def make(self, parameters: list[torch.nn.Parameter], steps: int) -> torch.optim.Optimizer:
        """The optimiser of a stage of so many steps; the loop sets its groups' `lr` before each.

        Those that need more of a step than the gradient are an ImageOptimizer.
        """

    def conflicts(
        self, stages: Sequence[StageFields], terms: Sequence[Objective], one_loss: bool, pixels: bool
    ) -> Iterator[str]:
        """What it cannot do of a recipe's other fields, by their paths; `one_loss`: each step's gradient is that of one
        loss, the same at all steps; `pixels`: the parameters are the images' pixels."""
        yield from ()

    def plateau(self) -> Plateau | None:
        """What follows the loss under the schedule `plateau`."""
        return Plateau(self.plateau_factor, self.plateau_patience) if self.schedule == "plateau" else None

    def multiplier(self, step: int, steps: int, plateau: Plateau | None) -> float:
        """What lr is multiplied by at `step` of a stage of `steps`."""
        warmup = min(self.warmup, steps)
        if self.schedule == "cosine":
            return warmup_cosine(step, steps, warmup)
        return ramp(step, warmup) * (1.0 if plateau is None else plateau.multiplier)


def rows_of_images(parameters: Sequence[torch.nn.Parameter], kind: str) -> torch.nn.Parameter:
    """The one parameter that moves, with a row an image; ValueError where others do, which all images share."""
    moved = [parameter for parameter in parameters if parameter.requires_grad]
    if len(moved) != 1:
        raise ValueError(
            f"optimizer: {kind} moves one tensor with a row an image: pixels, Fourier coefficients, codes; of a "
            "generator, its latents alone (image.parameterization.learn=latents)"
        )
    return moved[0]


class ImageOptimizer(torch.optim.Optimizer):
    """An optimiser of images that each stand for themselves."""

    replays: bool = False
    """Whether its state is where it began, so that a resumed run takes its steps again."""
    done: bool = False
    """Whether no step would change anything any more."""
    bounds: tuple[torch.Tensor, torch.Tensor] | None = None
    """The parameters' lowest and highest values, which broadcast to them; the loop sets them."""

    def tell(self, shifts: torch.Tensor | None, losses: torch.Tensor | None) -> None:
        """Before each step: by how much the view was shifted, (1 or N, 2), down and right, where it was by wrapping
        alone; and each image's part of the loss, (N,), where all terms of it are of single images."""

    def settle(self) -> None:
        """After the last step: leave the parameters at the best that is known."""


@dataclass(frozen=True)
class Adam(Optimizer, kind="adam"):
    """Adam (Kingma & Ba 2015)."""

    betas: tuple[Beta, Beta] = (0.5, 0.9)
    eps: PositiveFloat = 1e-8

    def make(self, parameters: list[torch.nn.Parameter], steps: int) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=self.lr, betas=self.betas, eps=self.eps, fused=True)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimiser's state as flat named tensors, for a checkpoint."""
    return {
        f"{index}.{key}": torch.as_tensor(value)
        for index, slot in optimizer.state_dict()["state"].items()
        for key, value in slot.items()
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """The inverse of `optimizer_tensors`."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    parameters: list[torch.Tensor] = [each for group in optimizer.param_groups for each in group["params"]]
    for place, slot in state.items():  # torch gives all of it the parameters' dtype, NAdam's float32 product too
        held = optimizer.state[parameters[place]]
        held |= {key: held[key].to(tensor.dtype) for key, tensor in slot.items()}
