"""Several teachers' logits as one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch

Average = Literal["probabilities", "logits"]


def centred(logits: torch.Tensor) -> torch.Tensor:
    """Without their mean over the classes, which no softmax sees."""
    return logits - logits.mean(1, keepdim=True)


def deviation(logits: torch.Tensor) -> float:
    """How far a teacher's logits (N, classes) reach: the root mean square, over images and classes, of the centred."""
    return float(centred(logits.double()).square().mean().sqrt())


def scales(deviations: Mapping[str, float]) -> dict[str, float]:
    """What each teacher's centred logits are multiplied by, (mean over teachers of s) / s, so that all reach as far.

    A single teacher's logits stay as they are. Raises ValueError for a teacher that says the same everywhere.
    """
    mean = math.fsum(deviations.values()) / len(deviations)
    for name, s in deviations.items():
        if not (math.isfinite(s) and s > 0):
            raise ValueError(f"soft labels: {name} tells no classes apart here; leave it out of the teachers")
    return {name: mean / s for name, s in deviations.items()}


def pooled(logits: Sequence[torch.Tensor], average: Average, temperature: float) -> torch.Tensor:
    """One teacher's worth of logits z (N, classes) from those of K teachers, scaled: their mean, or with
    `probabilities` those whose softmax at the temperature is the mean of theirs,

        softmax(z / T) = 1/K Σ_t softmax(z_t / T).
    """
    each = torch.stack([centred(z) for z in logits])
    if average == "logits" or len(each) == 1:
        return each.mean(0)
    logs = (each / temperature).log_softmax(2)
    return temperature * (logs.logsumexp(0) - math.log(len(each)))
