"""All terms of one inversion, readable."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ensemble.objectives.bn_matching import BNMatching
from ensemble.objectives.classification import LogitsObjective
from ensemble.objectives.image_priors import ImagePrior


@dataclass(frozen=True)
class Formulation:
    """L = sum_t w_t [sum of logits terms + BN terms] + sum of priors, each term times its own weight.

    Priors act on the view in RGB, or, where `prior_mean` and `prior_std` are given, in (rgb - mean) / std.
    """

    logits_terms: tuple[LogitsObjective, ...]
    bn_terms: tuple[BNMatching, ...]
    priors: tuple[ImagePrior, ...] = ()
    prior_mean: tuple[float, ...] | None = None
    prior_std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not self.logits_terms and not self.bn_terms:
            raise ValueError("objectives: nothing ties the images to a teacher; add classification or bn_matching")

    def prior_loss(self, view: torch.Tensor) -> torch.Tensor:
        """The weighted sum of the priors, a scalar."""
        if self.prior_mean is not None and self.prior_std is not None:
            mean, std = (view.new_tensor(v)[:, None, None] for v in (self.prior_mean, self.prior_std))
            view = (view - mean) / std
        return sum((prior.weight * prior(view) for prior in self.priors), start=view.new_zeros(()))

    def describe(self, teachers: list[tuple[str, float]]) -> str:
        """The formula as text, e.g. for a dry run; `teachers` are (name, normalised weight)."""
        inner = [f"{t.weight:g} {t.name}" for t in self.logits_terms]
        inner += [f"{t.weight:g} {t.name}[{t.convention}, first x {t.first:g}]" for t in self.bn_terms]
        lines = ["L = sum_t w_t [ " + " + ".join(inner) + " ]"]
        lines += [f"    + {p.weight:g} {p.name}" for p in self.priors]
        lines += [f"    w({name}) = {weight:.4g}" for name, weight in teachers]
        return "\n".join(lines)
