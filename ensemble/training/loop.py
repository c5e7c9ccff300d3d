"""The one training loop: bundled teachers, students and subnets are all trained here."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ensemble.config.checked import Checked
from ensemble.data.labelled import LabelledImages
from ensemble.machine.hardware import channels_last
from ensemble.machine.rng import generator
from ensemble.training.augment import MixedLabels, crop_and_flip, cutmix, cutout, mixup
from models import ModelCard, network_input, network_logits


@dataclass(frozen=True)
class Augmentation(Checked):
    """What is done to a training batch; every part is off at 0."""

    crop_padding: NonNegativeInt = 4
    """Largest shift, pixels; the border is mirrored."""
    flip: bool = True
    """Mirror every other image; turn it off where left and right differ, as in digits and letters."""
    cutout: NonNegativeInt = 0
    """Side of the square, pixels."""
    mixup: NonNegativeFloat = 0.0
    """Alpha of the Beta distribution."""
    cutmix: NonNegativeFloat = 0.0
    """Alpha of the Beta distribution."""
    mix_probability: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Share of the batches that mixup or CutMix acts on."""

    def rules(self) -> Iterator[str]:
        if self.mixup and self.cutmix:
            yield "mixup and cutmix exclude each other; set one of them to 0"


@dataclass(frozen=True)
class Schedule(Checked):
    """SGD with Nesterov momentum under a one-cycle schedule."""

    epochs: PositiveInt = 30
    batch_size: Annotated[int, Field(ge=2)] = 128
    lr: PositiveFloat = 0.2
    """Peak learning rate, for a loss averaged over the batch."""
    warmup: Annotated[float, Field(ge=0, le=1)] = 0.15
    """Share of the steps over which lr rises linearly from 0; then it falls along a cosine to 0."""
    momentum: Annotated[float, Field(gt=0, lt=1)] = 0.9
    weight_decay: NonNegativeFloat = 5e-4
    """Acts on tensors with more than one dimension."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """What convolutions compute in; depthwise ones are slow in bf16 on a CPU."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay per step of the averaged weights that are returned; 0 returns the last ones."""
    recalibrate_bn: bool = True
    """Replace the running statistics, at the end, by those of the whole training set without augmentation."""

    def steps_per_epoch(self, images: int) -> int:
        """Whole batches in so many images; ValueError where there is none."""
        if images < self.batch_size:
            raise ValueError(
                f"training: {images} images are fewer than one batch of {self.batch_size}; set schedule.batch_size"
            )
        return images // self.batch_size

    def lr_at(self, step: int, steps: int) -> float:
        rise = max(1, round(self.warmup * steps))
        if step < rise:
            return self.lr * (step + 1) / rise
        return self.lr * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


State = dict[str, Any]
"""What a run goes on from: `net`, `optimizer` and, where there is one, `ema` (state dicts), and `epoch`, those done."""


@dataclass(frozen=True)
class Progress:
    """What the loop tells its observer after each epoch."""

    epoch: int
    """Epochs done."""
    epochs: int
    loss: float
    accuracy: float
    seconds: float


def train(
    net: nn.Module,
    card: ModelCard,
    train_set: LabelledImages,
    test_set: LabelledImages,
    *,
    schedule: Schedule,
    augmentation: Augmentation,
    seed: int,
    device: torch.device,
    compile_net: bool,
    saved: Mapping[str, Any] | None = None,
    after_epoch: Callable[[Progress, State], None] = lambda progress, state: None,
) -> nn.Module:
    """The trained network in eval mode (the averaged one where `schedule.ema` is set).

    What the network sees and what counts as its logits is what `card` says, as wherever networks run
    (`models.network_input`, `models.network_logits`). Weights and optimiser stay in fp32. `after_epoch` gets the state,
    which shares memory with the run, and from which, as `saved`, the same call goes on to the same result.

    Raises ValueError where there are fewer images than a batch has, `saved` does not fit the network, the network's
    output does not fit the card, or the loss is not finite.
    """
    net = channels_last(net.to(device))
    decayed = [p for p in net.parameters() if p.requires_grad and p.ndim > 1]
    plain = [p for p in net.parameters() if p.requires_grad and p.ndim <= 1]
    optimizer = torch.optim.SGD(
        [{"params": decayed, "weight_decay": schedule.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=schedule.lr,
        momentum=schedule.momentum,
        nesterov=True,
    )
    ema = copy.deepcopy(net) if schedule.ema else None
    parts: dict[str, Any] = {"net": net, "optimizer": optimizer} | ({} if ema is None else {"ema": ema})
    done = 0 if saved is None else _restore(parts, saved)
    forward = torch.compile(net) if compile_net else net
    inputs = _inputs(train_set.images, card, device)
    labels = train_set.labels.to(device)
    steps_per_epoch = schedule.steps_per_epoch(len(labels))
    for epoch in range(done, schedule.epochs):
        started = time.perf_counter()
        net.train()
        rng = generator(seed, "epoch", epoch)
        torch.manual_seed(generator(seed, "network", epoch).initial_seed())  # what a network draws itself: dropout
        order = torch.randperm(len(labels), generator=rng)
        total = torch.zeros((), device=device)
        for i in range(steps_per_epoch):
            index = order[i * schedule.batch_size : (i + 1) * schedule.batch_size].to(device)
            for group in optimizer.param_groups:
                group["lr"] = schedule.lr_at(epoch * steps_per_epoch + i, schedule.epochs * steps_per_epoch)
            batch, mixed = _augmented(inputs[index], labels[index], augmentation, rng)
            with torch.autocast(device.type, torch.bfloat16, enabled=schedule.precision == "bf16"):
                logits = _logits(forward, batch, card)
            loss = _mixed_cross_entropy(logits.float(), mixed, schedule.label_smoothing)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            total += loss.detach()
            if ema is not None:
                _average(ema, net, schedule.ema)
        if not math.isfinite(float(total)):
            raise ValueError(f"training: the loss is not finite in epoch {epoch + 1}; lower the learning rate")
        accuracy = evaluate(net if ema is None else ema, card, test_set, device)
        seconds = time.perf_counter() - started
        after_epoch(
            Progress(epoch + 1, schedule.epochs, float(total) / steps_per_epoch, accuracy, seconds),
            {**{name: part.state_dict() for name, part in parts.items()}, "epoch": epoch + 1},
        )
    result = net if ema is None else ema
    if schedule.recalibrate_bn:
        recalibrate_bn(result, inputs)
    return result.eval()


@torch.no_grad()
def evaluate(net: nn.Module, card: ModelCard, data: LabelledImages, device: torch.device) -> float:
    """Top-1 accuracy in [0, 1], in fp32."""
    net.eval()
    correct = 0
    for images, labels in zip(data.images.split(500), data.labels.split(500), strict=True):
        logits = _logits(net, _inputs(images, card, device), card)
        correct += int((logits.argmax(1).cpu() == labels).sum())
    return correct / len(data)


@torch.no_grad()
def recalibrate_bn(net: nn.Module, inputs: torch.Tensor, batch_size: int = 500) -> None:
    """Set the running statistics of every BatchNorm, of any rank, to those of `inputs`, as the network takes them.

    The inputs are cut into as few batches of at most `batch_size` as there can be, equal up to one image. The mean
    is that of the batches' means, the variance that of their unbiased variances: with equal batches the first is
    exact and the second differs from the whole set's by the variance between batch means.
    """
    layers = [m for m in net.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # cumulative average
    net.eval()  # what draws at random, or changes with use, rests
    for layer in layers:
        layer.train()
    for batch in inputs.tensor_split(-(-len(inputs) // batch_size)):
        net(batch)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    net.eval()


def _inputs(images: torch.Tensor, card: ModelCard, device: torch.device) -> torch.Tensor:
    """Images uint8 (N, 3, H, W) as the network takes them."""
    return network_input(images.float() / 255, card).to(device, memory_format=torch.channels_last)


def _logits(net: Callable[[torch.Tensor], Any], batch: torch.Tensor, card: ModelCard) -> torch.Tensor:
    logits = network_logits(net(batch))
    if logits.shape != (len(batch), card.num_classes):
        raise ValueError(
            f"{card.name}: the card says {card.num_classes} classes, the network's logits for {len(batch)} images have "
            f"shape {tuple(logits.shape)}"
        )
    return logits


def _augmented(
    images: torch.Tensor, labels: torch.Tensor, augmentation: Augmentation, rng: torch.Generator
) -> tuple[torch.Tensor, MixedLabels]:
    images = crop_and_flip(images, augmentation.crop_padding, augmentation.flip, rng)
    if augmentation.cutout:
        images = cutout(images, augmentation.cutout, rng)
    mixed: MixedLabels = (labels, labels, 1.0)
    if (augmentation.mixup or augmentation.cutmix) and torch.rand(1, generator=rng) < augmentation.mix_probability:
        if augmentation.mixup:
            images, mixed = mixup(images, labels, augmentation.mixup, rng)
        else:
            images, mixed = cutmix(images, labels, augmentation.cutmix, rng)
    return images.contiguous(memory_format=torch.channels_last), mixed


def _mixed_cross_entropy(logits: torch.Tensor, mixed: MixedLabels, smoothing: float) -> torch.Tensor:
    first, second, share = mixed
    loss = F.cross_entropy(logits, first, label_smoothing=smoothing)
    if share == 1.0:
        return loss
    return share * loss + (1 - share) * F.cross_entropy(logits, second, label_smoothing=smoothing)


@torch.no_grad()
def _average(ema: nn.Module, net: nn.Module, decay: float) -> None:
    for averaged, current in zip(ema.state_dict().values(), net.state_dict().values(), strict=True):
        if averaged.is_floating_point():
            averaged.lerp_(current, 1 - decay)
        else:
            averaged.copy_(current)


def _restore(parts: Mapping[str, Any], saved: Mapping[str, Any]) -> int:
    """The epochs that `saved` has behind it; its state is loaded into the parts."""
    try:
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        return int(saved["epoch"])
    except (KeyError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"training: the saved state is not one of this network and schedule ({reason})") from None
