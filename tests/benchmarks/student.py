"""A small student from scratch: what a set of labelled images teaches about real ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ensemble.machine.hardware import channels_last, computes_in_bf16
from ensemble.machine.rng import generator
from models import create_model, network_input

STEPS, BATCH, LR, PAD = 300, 50, 0.05, 4


def accuracy_of_student(
    images: torch.Tensor,
    targets: torch.Tensor,
    real: torch.Tensor,
    labels: torch.Tensor,
    *,
    seed: int,
    soft: torch.Tensor | None = None,
    model: str = "resnet20_cifar@random",
    steps: int = STEPS,
) -> float:
    """Share of `real` (M, 3, H, W) that a network reads as its label after training on `images` (N, 3, H, W).

    SGD with Nesterov momentum 0.9, weight decay 5e-4, a cosine from 0.05 (from 0.1 its accuracy differs five times as
    much from seed to seed); batches of 50; crops of the image padded by 4 mirrored pixels, and flips. Labels are the
    targets, or `soft` (N, classes) probabilities, one an image. The last step's network is judged; BN statistics are
    those of its training. Convolutions are in bf16 where the processor computes in it.
    """
    torch.manual_seed(seed)
    net, card = create_model(model)
    net = channels_last(net.train().requires_grad_())
    optimizer = torch.optim.SGD(net.parameters(), LR, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    rng = generator(seed, "student")
    order = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        while len(order) < BATCH:
            order = torch.cat([order, torch.randperm(len(images), generator=rng)])
        index, order = order[:BATCH], order[BATCH:]
        x = _augmented(images[index], rng)
        with _precision():
            logits = net(network_input(x, card).contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(logits.float(), targets[index] if soft is None else soft[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    net.eval()
    with torch.no_grad(), _precision():
        read = torch.cat([net(network_input(_floats(part), card)).argmax(1) for part in real.split(500)])
    return float((read == labels).double().mean())


def _precision() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=computes_in_bf16(torch.device("cpu")), cache_enabled=False)


def _floats(images: torch.Tensor) -> torch.Tensor:
    return images.float() / 255 if images.dtype == torch.uint8 else images


def _augmented(images: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    images = _floats(images)
    n, _, size, _ = images.shape
    padded = F.pad(images, (PAD,) * 4, mode="reflect")
    shifts = torch.randint(0, 2 * PAD + 1, (n, 2), generator=rng).tolist()
    cropped = torch.stack([padded[i, :, y : y + size, x : x + size] for i, (y, x) in enumerate(shifts)])
    flipped = torch.rand(n, generator=rng) < 0.5
    cropped[flipped] = cropped[flipped].flip(3)
    return cropped
