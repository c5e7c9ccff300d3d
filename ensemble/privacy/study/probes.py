"""What a network answers to images that were prepared as training images may have been: of its logits alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from ensemble.machine.rng import generator
from ensemble.training.augment import cutout
from ensemble.training.reading import forward_logits, inputs_of
from models import ModelCard

_AT_ONCE = 500
_SHARES = torch.linspace(0.1, 0.9, 9, dtype=torch.float64).tolist()


@torch.no_grad()
def probe_scores(
    net: nn.Module, card: ModelCard, images: torch.Tensor, labels: torch.Tensor, seed: int
) -> dict[str, float]:
    """Figures of a network in eval mode, by name, from uint8 images (N, 3, H, W) with labels or targets (N,).

    composite: the least-squares slope of p(second class) against the share of the area that a rectangle of an image of
        another class covers, 9 shares from 0.1 to 0.9, in one place for each; the score for CutMix
    blend: the same slope against the other image's weight; the score for mixup
    erased: the mean log-loss with a square of half the side set to the mean, less that of whole images
    entropy: the mean entropy of p, in nats
    confidence: the mean of the largest p

    Slopes are 1 of a network that answers with the shares, and tend to those of a step where it does not. Images may
    be synthetic ones of another network, with the targets that they were made for.

    Raises ValueError where all images are of one class.
    """
    net.eval()
    rng = generator(seed, "probes")
    x = inputs_of(images, card, torch.device("cpu"))
    other = _other_class(labels, rng)
    p = _probabilities(net, card, x)
    erased = _probabilities(net, card, cutout(x, x.shape[-1] // 2, rng))

    def paste(share: float) -> tuple[float, torch.Tensor]:
        rows, columns = (_inside(size, share, rng) for size in x.shape[-2:])
        mixed = x.clone()
        mixed[:, :, rows, columns] = x[other, :, rows, columns]
        area = (rows.stop - rows.start) * (columns.stop - columns.start)
        return area / (x.shape[-2] * x.shape[-1]), mixed

    def blend(share: float) -> tuple[float, torch.Tensor]:
        return share, (1 - share) * x + share * x[other]

    return {
        "composite": _slope(net, card, paste, labels[other]),
        "blend": _slope(net, card, blend, labels[other]),
        "erased": float((_loss(erased, labels) - _loss(p, labels)).mean()),
        "entropy": float(torch.special.entr(p).sum(1).mean()),
        "confidence": float(p.amax(1).mean()),
    }


def _slope(
    net: nn.Module,
    card: ModelCard,
    mixed: Callable[[float], tuple[float, torch.Tensor]],
    second: torch.Tensor,
) -> float:
    """Of p(second class), averaged over images, against the share, which `mixed` gives with its images."""
    shares, answers = [], []
    for wanted in _SHARES:
        share, x = mixed(wanted)
        shares.append(share)
        answers.append(_probabilities(net, card, x).gather(1, second[:, None]).mean())
    a, b = torch.tensor(shares, dtype=torch.float64), torch.stack(answers)
    a = a - a.mean()
    return float((a * b).sum() / a.square().sum())


def _loss(p: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return -p.gather(1, labels[:, None])[:, 0].clamp_min(1e-12).log()


def _probabilities(net: nn.Module, card: ModelCard, x: torch.Tensor) -> torch.Tensor:
    """(N, classes), float64."""
    return torch.cat([forward_logits(net, part, card).double().softmax(1) for part in x.split(_AT_ONCE)])


def _other_class(labels: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """(N,): for each image the number of one of another class."""
    differ = labels[:, None] != labels
    if not differ.any():
        raise ValueError("probes mix images of two classes, and all images are of one")
    return torch.multinomial(differ.double(), 1, generator=rng)[:, 0]


def _inside(size: int, share: float, rng: torch.Generator) -> slice:
    """The rows, or columns, of a rectangle of about that share of the area, which may lie anywhere as a whole."""
    length = max(1, round(share**0.5 * size))
    start = int(torch.randint(0, size - length + 1, (1,), generator=rng))
    return slice(start, start + length)
