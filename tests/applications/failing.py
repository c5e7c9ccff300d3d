"""A plugin of networks whose forward fails, or lets no gradient through."""

from __future__ import annotations

import torch
from torch import nn

from models import ModelCard, register_model

NAMES = ("circle", "square", "star")


class Failing(nn.Module):
    """As a name says: it asserts something false, asks a tensor for nonsense, forgets gradients, squeezes, detaches."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert self.how != "asserts"
        if self.how == "asks":
            x = x.nonsense  # type: ignore[assignment]
        if self.how == "forgets":
            x = x.detach()
            with torch.no_grad():
                return self.fc(self.norm(self.conv(x)).relu().mean((2, 3)))
        logits = self.fc(self.norm(self.conv(x)).relu().mean((2, 3)))
        if self.how == "detaches":
            return logits.detach()
        return logits.squeeze() if self.how == "squeezes" else logits


for _how in ("asserts", "asks", "forgets", "squeezes", "detaches"):

    def _make(num_classes: int = 3, how: str = _how) -> nn.Module:
        return Failing(how)

    register_model(ModelCard(_how, "failing", 8, 3, (0.5,) * 3, (0.5,) * 3, NAMES, "shapes"))(_make)
