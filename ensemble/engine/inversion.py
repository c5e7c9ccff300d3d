"""Inversion: the loop. Mathematics only, no files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from ensemble.engine.acting import Acting, Per, acting_teachers
from ensemble.engine.exchange import Exchanged
from ensemble.engine.gradient import EnsembleLoss, Record
from ensemble.engine.guard import Guard
from ensemble.engine.optimizers import ImageOptimizer, Optimizer, load_optimizer_tensors, optimizer_tensors
from ensemble.engine.schedules import EarlyStopping, Enough, Heard, Plateau
from ensemble.image.parameterization import ImageParameterization
from ensemble.image.transforms import Compose
from ensemble.machine.rng import generator


@dataclass(frozen=True)
class LiveStage:
    """One stretch of the loop: its transform of the image into the view, and a fresh optimiser."""

    iterations: int
    transform: Compose
    optimizer: Optimizer
    moving: float = 1.0
    """The share of the batch's images, the first ones, that it moves; the others wait, and are seen."""


@dataclass(frozen=True)
class Step:
    """A step that was taken, alike on every rank."""

    number: int
    """Counted from 0."""
    record: Record
    """At the images before the step."""
    stage: int
    """Counted from 0."""
    lr: float
    event: str
    """What is new at this step: a stage, a learning rate that a plateau shrank; else empty."""
    last: bool
    """Whether no step follows."""
    save: bool
    """Whether some rank asked that this state be saved, or `save_every` says so."""
    stop: bool
    """Whether some rank asked for a stop."""


class Inversion:
    """Optimises one batch of images until the teachers agree about it: `for step in inversion`.

    A step: every rank computes the same view; the loss's gradient there (`EnsembleLoss`) is the same on every rank;
    every rank takes the same optimiser step. The iteration ends with the last stage, where early stopping finds no
    more progress, or where the caller leaves it; it goes on where it was left. It raises NotFiniteError with the step
    and the teacher at fault.
    """

    def __init__(
        self,
        image: ImageParameterization,
        loss: EnsembleLoss,
        stages: Sequence[LiveStage],
        *,
        seed: int,
        acting: Acting = "all",
        acting_count: int = 1,
        acting_per: Per = "step",
        best_every: int = 0,
        save_every: int = 0,
        poll_every: int = 1,
        attribute: bool = False,
        from_owner: Callable[[torch.Tensor], None] = lambda tensor: None,
    ) -> None:
        """`from_owner` replaces a tensor by the owner's, where ranks do not compute the same bits. `best_every` = 0
        returns the last images; `save_every` = 0 saves where it is asked for alone. With `attribute`, it keeps where
        the gradient went: see `attribution`.

        Flags and finiteness are read from the device every `poll_every` steps; the loss is where a
        plateau, early stopping or `enough` follows it.
        """
        self.image = image
        self.loss = loss
        self.stages = tuple(stages)
        self.seed = seed
        self.acting, self.acting_count, self.acting_per = acting, acting_count, acting_per
        self.best_every, self.save_every, self.poll_every = best_every, save_every, poll_every
        self.from_owner = from_owner
        self.guard = Guard(image, [m.name for m in loss.members], loss.members[0].targets.device)
        self.step = 0
        self.attribution = torch.zeros(image.n, image.size, image.size) if attribute else None
        """(N, H, W), summed over the steps: the mean over red, green and blue of |dL/dx| at each pixel x."""
        self.ended = False
        """Whether it came to an end before its last step."""
        self.plateau: Plateau | None = None
        patience = self.stages[-1].optimizer.early_stopping
        self.early_stopping = EarlyStopping(patience) if patience else None
        share = self.stages[-1].optimizer.enough
        self.enough = Enough(share) if share else None
        alike = acting == "all" or acting_per == "batch" or (acting == "random" and acting_count >= len(loss.teachers))
        self.heard = None if alike else Heard(len(loss.teachers))
        self._optimizer: torch.optim.Optimizer | None = None
        self._stage_index = -1
        self._asked: dict[str, bool] = {}

    @property
    def iterations(self) -> int:
        return sum(stage.iterations for stage in self.stages)

    def ask(self, *, save: bool = False, stop: bool = False) -> None:
        """What this rank wants of the next step; all ranks learn of it there."""
        self._asked = {"save": save, "stop": stop}

    def __iter__(self) -> Iterator[Step]:
        self.guard.begin()
        while self.step < self.iterations and not self.ended:
            step = self._take_step()
            yield step
            if step.last:
                break
        self.guard.check_image(self.step)

    def weights_at(self, step: int) -> dict[int, float]:
        """The acting teachers of a step and their weights, which sum to 1, and the student's."""
        teachers = len(self.loss.teachers)
        acting = acting_teachers(
            self.acting, self.acting_count, self.acting_per, teachers=teachers, seed=self.seed, step=step
        )
        return self.loss.weights(acting)

    def settle(self) -> None:
        """After the last step, also where the caller leaves before its own: the best that the optimiser knows."""
        if (own := self._image_optimizer) is not None:
            own.settle()

    def result(self) -> torch.Tensor:
        """The best images measured, or the last where none was: (N, 3, H, W), RGB clipped to [0, 1]."""
        return self.guard.result()

    # --- one step ---------------------------------------------------------------------------------------------

    def _take_step(self) -> Step:
        index, local = self._locate(self.step)
        event = self._enter_stage(index)
        stage, number = self.stages[index], self.step
        last = number + 1 == self.iterations
        due = self.save_every > 0 and (number + 1) % self.save_every == 0
        polled = due or last or (number + 1) % self.poll_every == 0
        before = self.guard.parameters() if polled else {}
        lr = stage.optimizer.lr * stage.optimizer.multiplier(local, stage.iterations, self.plateau)
        record, exchanged = self._descend(stage, lr)
        followed = self._followed(record)
        if self.plateau is not None and followed is not None:
            multiplier = self.plateau.multiplier
            if self.plateau.update(followed[0]) < multiplier:
                event = f"no progress: the learning rate falls to {stage.optimizer.lr * self.plateau.multiplier:g}"
        self.step += 1
        if polled:
            self.guard.check(before)
        if (why := self._why_it_ends(index == len(self.stages) - 1, followed)) and not last:
            last, event = True, f"{why}: the run ends here"
        if last:
            self.settle()
        self.ended = last and self.step < self.iterations
        self._keep_best(index, local, last)
        save = due or (polled and exchanged.flag("save"))
        return Step(number, record, index, lr, event, last, save, polled and exchanged.flag("stop"))

    def _descend(self, stage: LiveStage, lr: float) -> tuple[Record, Exchanged]:
        assert self._optimizer is not None
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        image = self.image()
        if self.attribution is not None:
            image.retain_grad()
        view = stage.transform(image, generator(self.seed, "view", self.step))
        weights = self.weights_at(self.step)
        record, gradient, exchanged = self.loss.gradient(view, weights, self._asked)
        self.guard.note(self.step, exchanged, weights, record.total)
        gradient[max(1, round(stage.moving * len(gradient))) :] = 0
        if (own := self._image_optimizer) is not None:
            own.tell(stage.transform.shifts(len(view), generator(self.seed, "view", self.step)), record.per_image)
        self._optimizer.zero_grad(set_to_none=True)
        view.backward(gradient)
        if self.attribution is not None and image.grad is not None:
            self.attribution += image.grad.abs().mean(1).float().cpu()
        self._optimizer.step()
        self.image.project()
        for parameter in self.image.parameters():
            self.from_owner(parameter.detach())
        return record, exchanged

    def _followed(self, record: Record) -> tuple[float, float] | None:
        """The loss of the step just taken and the teachers' part of it, for what follows them; None where nothing does,
        or not all teachers that take turns have been heard."""
        if all(machine is None for _, machine in self._machines() if not isinstance(machine, Heard)):
            return None
        total, asked = self._agreed(record.total), self._agreed(record.total - record.prior)
        if self.heard is None:
            return total, asked
        return self.heard.update(self.weights_at(self.step).keys() & {*self.loss.teachers}, total, asked)

    def _why_it_ends(self, in_last_stage: bool, followed: tuple[float, float] | None) -> str:
        """Why no step need follow, in words; empty where one does. Tells what follows the loss of this step."""
        total, asked = followed or (0.0, 0.0)
        early = bool(in_last_stage and followed and self.early_stopping and self.early_stopping.update(total))
        met = bool(followed and self.enough and self.enough.update(asked))
        if self._image_optimizer is not None and self._image_optimizer.done:
            return "every search has ended"
        if met and in_last_stage:
            return "nothing is left to pull"
        return "no progress" if early else ""

    def _agreed(self, value: torch.Tensor) -> float:
        """A scalar as the owner has it: devices of different kinds round differently, and all must decide alike."""
        value = value.clone()
        self.from_owner(value)
        return float(value)

    def _keep_best(self, index: int, local: int, last: bool) -> None:
        own = self._image_optimizer
        keeps = own is not None and own.replays  # each image's best, by itself
        if not self.best_every or keeps or index != len(self.stages) - 1:
            return
        if (local + 1) % self.best_every == 0 or last:
            lasting = self.weights_at(self.step) if self.acting_per == "batch" else None
            with torch.no_grad():
                record = self.loss.measure(self.image(), lasting)
            self.guard.keep_best(self.step, record, self._agreed(record.total))

    # --- stages -----------------------------------------------------------------------------------------------

    def _locate(self, step: int) -> tuple[int, int]:
        for index, stage in enumerate(self.stages):
            if step < stage.iterations:
                return index, step
            step -= stage.iterations
        raise AssertionError("step beyond the last stage")

    def _enter_stage(self, index: int) -> str:
        """Begin the stage with a fresh optimiser unless it has begun; what is to be said of it."""
        if index == self._stage_index:
            return ""
        stage = self.stages[index]
        self._optimizer = stage.optimizer.make(list(self.image.parameters()), stage.iterations)
        if (own := self._image_optimizer) is not None:
            own.bounds = self.image.bounds()
        self.plateau = stage.optimizer.plateau()
        if self.heard is not None:
            self.heard = Heard(self.heard.teachers)
        self._stage_index = index
        return f"stage {index + 1} of {len(self.stages)}: {stage.iterations} steps" if len(self.stages) > 1 else ""

    @property
    def _image_optimizer(self) -> ImageOptimizer | None:
        """The optimiser, where it is one that is told more of a step than the gradient."""
        return self._optimizer if isinstance(self._optimizer, ImageOptimizer) else None

    def _replay(self, optimizer: ImageOptimizer) -> None:
        """Take the steps of the only stage again, from where the optimiser began, up to where the run was."""
        for parameter, state in optimizer.state.items():
            parameter.data.copy_(state["start"])
        if self.attribution is not None:
            self.attribution.zero_()  # the steps add it up again
        until, stage = self.step, self.stages[0]
        for self.step in range(until):
            self._descend(stage, stage.optimizer.lr)
        self.step = until

    def _machines(self) -> Iterator[tuple[str, Plateau | EarlyStopping | Enough | Heard | None]]:
        """What follows the loss, and has a state of its own."""
        yield from (("plateau", self.plateau), ("early", self.early_stopping), ("enough", self.enough))
        yield "heard", self.heard

    # --- state ------------------------------------------------------------------------------------------------

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
        """All that a resumed run needs: named tensors, and plain numbers."""
        assert self._optimizer is not None
        best = self.guard.best
        tensors = {f"image.{k}": v for k, v in self.image.state_dict().items()}
        tensors |= {f"optimizer.{k}": v for k, v in optimizer_tensors(self._optimizer).items()}
        tensors |= {f"best.{k}": v for k, v in best.tensors.items()}
        if self.attribution is not None:
            tensors["attribution"] = self.attribution
        numbers = {"step": self.step, "stage": self._stage_index, "best_loss": best.loss, "best_step": best.step}
        numbers["ended"] = float(self.ended)
        for name, machine in self._machines():
            if machine is not None:
                numbers |= {f"{name}.{k}": v for k, v in machine.state().items()}
        return tensors, numbers

    def load_state(
        self, tensors: Mapping[str, torch.Tensor], numbers: Mapping[str, float], *, goes_on: bool = False
    ) -> None:
        """The inverse of `state`; of a run that `goes_on` after its end, what ended it begins to wait anew."""
        if goes_on:
            numbers = {key: value for key, value in numbers.items() if not key.startswith("early.")}
            numbers |= {key: 0.0 for key in ("ended", "enough.met") if key in numbers}

        def part(prefix: str) -> dict[str, torch.Tensor]:
            return {k.removeprefix(prefix): v.clone() for k, v in tensors.items() if k.startswith(prefix)}

        self.image.load_state_dict(part("image."))
        if self.attribution is not None:
            self.attribution = tensors["attribution"].clone().cpu()
        self.step = int(numbers["step"])
        self.ended = bool(numbers["ended"])
        self._stage_index = -1
        self._enter_stage(int(numbers["stage"]))
        assert self._optimizer is not None
        load_optimizer_tensors(self._optimizer, part("optimizer."))
        if (image_optimizer := self._image_optimizer) is not None and image_optimizer.replays and not self.ended:
            self._replay(image_optimizer)
        self.guard.load_best(float(numbers["best_loss"]), int(numbers["best_step"]), part("best."))
        for name, machine in self._machines():
            own = {k.removeprefix(f"{name}."): v for k, v in numbers.items() if k.startswith(f"{name}.")}
            if machine is not None and own:
                machine.load_state(own)
