"""How weights move: the optimiser, its learning rate, and what is made of the weights at the end."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import nn

from ensemble.config.checked import Checked
from ensemble.machine.hardware import resolve_precision


@dataclass(frozen=True)
class Schedule(Checked):
    """SGD with Nesterov momentum, or AdamW, under a one-cycle schedule."""

    epochs: PositiveInt = 30
    batch_size: Annotated[int, Field(ge=2)] = 128
    lr: PositiveFloat = 0.2
    """Peak learning rate, for a loss averaged over the batch."""
    warmup: Annotated[float, Field(ge=0, le=1)] = 0.15
    """Share of the steps over which lr rises linearly from 0; then it falls along a cosine to 0."""
    momentum: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """AdamW's β1; its β2 is 0.999."""
    weight_decay: NonNegativeFloat = 5e-4
    """Acts on tensors with more than one dimension; AdamW's is decoupled: a step takes lr times it."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """AdamW (Loshchilov & Hutter 2019) wants an lr of about 1e-3 and a weight_decay of about 1e-2."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """What convolutions compute in; depthwise ones are slow in bf16 on a CPU. `auto` is bf16 where the device computes
    in it."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Of hard labels."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay per step of the averaged weights that are returned; 0 returns the last ones."""
    recalibrate_bn: bool = True
    """Replace the running statistics, at the end, by those of the whole training set without augmentation."""

    def settled(self, device: torch.device, saved: Mapping[str, Any] | None = None) -> Schedule:
        """With the precision that `auto` is on this device, or was where the run was saved."""
        found = resolve_precision(self.precision, [device])
        return replace(self, precision=(saved or {}).get("precision", found))

    def steps_per_epoch(self, images: int) -> int:
        """Whole batches in so many images; ValueError where there is none."""
        if images < 2:
            raise ValueError("training: there is one image; it takes two at least")
        if images < self.batch_size:
            raise ValueError(
                f"training: {images} images are fewer than one batch of {self.batch_size}; "
                f"set schedule.batch_size to {images} or less"
            )
        return images // self.batch_size

    def lr_at(self, step: int, steps: int) -> float:
        rise = max(1, round(self.warmup * steps))
        if step < rise:
            return self.lr * (step + 1) / rise
        return self.lr * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))

    def optimizer_of(self, net: nn.Module) -> torch.optim.Optimizer:
        """Of the parameters that are free."""
        free = [p for p in net.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in free if p.ndim > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in free if p.ndim <= 1], "weight_decay": 0.0},
        ]
        if self.optimizer == "adamw":
            return torch.optim.AdamW(groups, lr=self.lr, betas=(self.momentum, 0.999))
        return torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum, nesterov=True)
