"""How far a student is from what it is told."""

from __future__ import annotations

import torch

from ensemble.data.soft_labels import centred


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
