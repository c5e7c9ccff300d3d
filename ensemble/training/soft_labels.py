"""How far teachers are scaled, and how far a student is from what it is told."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from ensemble.data.soft_labels import centred


def scales(deviations: Mapping[str, float]) -> dict[str, float]:
    """What each teacher's centred logits are multiplied by, (mean over teachers of s) / s, so that all reach as far.

    A single teacher's logits stay as they are. Raises ValueError for a teacher that says the same everywhere.
    """
    mean = math.fsum(deviations.values()) / len(deviations)
    for name, s in deviations.items():
        if not (math.isfinite(s) and s > 0):
            raise ValueError(f"lesson: {name} tells no classes apart in these images; leave it out of the teachers")
    return {name: mean / s for name, s in deviations.items()}


def kl_divergence(told: torch.Tensor, logits: torch.Tensor, temperature: float, scale: bool) -> torch.Tensor:
    """KL(told || softmax(logits / T)), mean over the batch, of probabilities (B, classes); with `scale`, times T².

    The gradient at the logits shrinks as 1/T² where T is large; T² keeps its size (Hinton et al. 2015, section 2).
    """
    log_q = (logits / temperature).log_softmax(1)
    divergence = (torch.xlogy(told, told) - told * log_q).sum(1).mean()
    return divergence * temperature**2 if scale else divergence


def squared_distance(told: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Mean over batch and classes of the squared difference of the centred logits."""
    return (centred(told) - centred(logits)).square().mean()
