"""What came out of one trial."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ensemble.engine.agreement import Agreement

_LOGITS, _MOMENTS, _AGREEMENT = "results.logits.", "results.moments.", "results.agreement."
_IMAGES, _ATTRIBUTION = "results.images", "results.attribution"


@dataclass(frozen=True)
class TrialResults:
    """The images of one trial, and what each teacher makes of them."""

    images: torch.Tensor
    """(N, 3, H, W), RGB in [0, 1], float32, on the CPU."""
    values: dict[str, float]
    """Final losses, by `<teacher>/<term>`."""
    logits: dict[str, torch.Tensor]
    """(N, classes) by teacher."""
    moments: dict[str, torch.Tensor]
    """Packed BN moments (2, C) by teacher."""
    agreement: Agreement | None = None
    """Between the teachers' gradients, where the recipe asks for it."""
    attribution: torch.Tensor | None = None
    """(N, H, W), where the gradient went over the steps, where the recipe asks for it."""
    steps: int = 0
    """That were taken."""

    def tensors(self) -> dict[str, torch.Tensor]:
        """All tensors by name, for a checkpoint."""
        named = {_IMAGES: self.images}
        named |= {_LOGITS + name: tensor for name, tensor in self.logits.items()}
        if self.agreement is not None:
            named |= {_AGREEMENT + name: tensor for name, tensor in self.agreement.tensors().items()}
        if self.attribution is not None:
            named[_ATTRIBUTION] = self.attribution
        return named | {_MOMENTS + name: tensor for name, tensor in self.moments.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor], values: Mapping[str, float], steps: int) -> TrialResults:
        """The inverse of `tensors`; without them, on ranks that were not sent any, an empty batch."""

        def part(prefix: str) -> dict[str, torch.Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        images, agreement = tensors.get(_IMAGES, torch.zeros(0, 3, 0, 0)), Agreement.from_tensors(part(_AGREEMENT))
        attribution = tensors.get(_ATTRIBUTION)
        return cls(images, dict(values), part(_LOGITS), part(_MOMENTS), agreement, attribution, steps)
