"""The one training loop: bundled teachers, students and subnets are all trained here."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ensemble.data.labelled import LabelledImages
from ensemble.machine.hardware import channels_last
from ensemble.machine.rng import generator
from ensemble.training.augment import Augmentation
from ensemble.training.hard_labels import Teaching, hard_labels
from ensemble.training.reading import black_pixel, evaluate, forward_logits, inputs_of, recalibrate_bn
from ensemble.training.schedule import Schedule
from models import ModelCard

State = dict[str, Any]
"""What a run goes on from: `net`, `optimizer` and, where there is one, `ema` (state dicts), and `epoch`, those done."""


@dataclass(frozen=True)
class Progress:
    """What the loop tells its observer after each epoch."""

    epoch: int
    """Epochs done."""
    epochs: int
    loss: float
    agreement: float
    """Share of the views that the network, as it learned, read as the class they were told to be most of all."""
    accuracy: float
    """Top-1, in [0, 1], on the images that are watched."""
    seconds: float
    measured: Mapping[str, float] = field(default_factory=dict)
    """What `measure` said."""


def train(
    net: nn.Module,
    card: ModelCard,
    train_set: LabelledImages,
    watched: LabelledImages,
    *,
    schedule: Schedule,
    augmentation: Augmentation,
    seed: int,
    device: torch.device,
    compile_net: bool,
    lesson: Teaching | None = None,
    measure: Callable[[nn.Module, int], Mapping[str, float]] = lambda net, epoch: {},
    saved: Mapping[str, Any] | None = None,
    after_epoch: Callable[[Progress, State], None] = lambda progress, state: None,
) -> nn.Module:
    """The trained network in eval mode (the averaged one where `schedule.ema` is set).

    A batch's loss is what `lesson` says, without one the cross-entropy with the images' labels. After each epoch the
    network, or the averaged one, reads the images that are `watched`; `measure` gets it too, and the epochs done.

    What the network sees and what counts as its logits is what `card` says, as wherever networks run
    (`models.network_input`, `models.card_logits`). Weights and optimiser stay in fp32. `after_epoch` gets the state,
    which shares memory with the run, and from which, as `saved`, the same call goes on to the same result.

    Raises ValueError where there are fewer images than a batch has, `saved` does not fit the network, the network's
    output does not fit the card, or the loss is not finite.
    """
    net = channels_last(net.to(device))
    precision = schedule.settled(device).precision
    optimizer = schedule.optimizer_of(net)
    ema = copy.deepcopy(net) if schedule.ema else None
    parts: dict[str, Any] = {"net": net, "optimizer": optimizer} | ({} if ema is None else {"ema": ema})
    done = 0 if saved is None else _restore(parts, saved)
    forward = torch.compile(net) if compile_net else net
    inputs = inputs_of(train_set.images, card, device)
    black = black_pixel(card).to(device)
    lesson = lesson or hard_labels(train_set.labels.to(device), schedule.label_smoothing)
    steps_per_epoch = schedule.steps_per_epoch(len(inputs))
    result = net if ema is None else ema
    for epoch in range(done, schedule.epochs):
        started = time.perf_counter()
        net.train()
        rng = generator(seed, "epoch", epoch)
        torch.manual_seed(generator(seed, "network", epoch).initial_seed())  # what a network draws itself: dropout
        order = torch.randperm(len(inputs), generator=rng)
        total, agreed = torch.zeros((), device=device), torch.zeros((), device=device)
        for i in range(steps_per_epoch):
            index = order[i * schedule.batch_size : (i + 1) * schedule.batch_size].to(device)
            for group in optimizer.param_groups:
                group["lr"] = schedule.lr_at(epoch * steps_per_epoch + i, schedule.epochs * steps_per_epoch)
            batch, mixed = augmentation(inputs[index], index, rng, black)
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                logits = forward_logits(forward, batch, card)
            loss, told = lesson(logits.float(), batch, mixed)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            total += loss.detach()
            agreed += (logits.argmax(1) == told).float().mean()
            if ema is not None:
                _average(ema, net, schedule.ema)
        if not math.isfinite(float(total)):
            raise ValueError(f"training: the loss is not finite in epoch {epoch + 1}; lower the learning rate")
        accuracy = evaluate(result, card, watched, device)
        measured = measure(result, epoch + 1)
        progress = Progress(
            epoch + 1,
            schedule.epochs,
            loss=float(total) / steps_per_epoch,
            agreement=float(agreed) / steps_per_epoch,
            accuracy=accuracy,
            seconds=time.perf_counter() - started,
            measured=measured,
        )
        after_epoch(progress, {**{name: part.state_dict() for name, part in parts.items()}, "epoch": epoch + 1})
    if schedule.recalibrate_bn:
        recalibrate_bn(result, inputs)
    return result.eval()


@torch.no_grad()
def _average(ema: nn.Module, net: nn.Module, decay: float) -> None:
    for averaged, current in zip(_tensors(ema), _tensors(net), strict=True):
        if averaged.is_floating_point():
            averaged.lerp_(current, 1 - decay)
        else:
            averaged.copy_(current)


def _tensors(net: nn.Module) -> Iterator[torch.Tensor]:
    """What `state_dict` has, each once: layers may share them."""
    yield from {id(tensor): tensor for tensor in net.state_dict(keep_vars=True).values()}.values()


def _restore(parts: Mapping[str, Any], saved: Mapping[str, Any]) -> int:
    """The epochs that `saved` has behind it; its state is loaded into the parts."""
    try:
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        return int(saved["epoch"])
    except (KeyError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"training: the saved state is not one of this network and schedule ({reason})") from None
