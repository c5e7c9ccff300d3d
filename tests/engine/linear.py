"""Teachers whose gradients are known: linear ones, and one with a BN layer, with plain torch's loss of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from ensemble.engine.gradient import EnsembleLoss, EnsembleMember
from ensemble.engine.placement import Cell
from ensemble.objectives.bn_matching import BNMatching
from ensemble.objectives.classification import ClassScore, CrossEntropy
from ensemble.objectives.image_priors import L2Prior
from ensemble.objectives.terms import Formulation
from ensemble.teachers.teacher import Teacher
from models import ModelCard

SIZE = 8
CARD = ModelCard("raw", "test", SIZE, 2, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
SCORE = Formulation((ClassScore(weight=1.0),))
"""-(1/N) sum_i z_i[y_i]: of a linear teacher, its gradient at image i is -row y_i / N."""
FULL = Formulation(
    (CrossEntropy(weight=0.7, temperature=2.0), BNMatching(weight=0.3, convention="paper"), L2Prior(0.1))
)


class Rows(nn.Module):
    """Logits are products with two images."""

    def __init__(self, rows: torch.Tensor) -> None:
        super().__init__()
        self.rows = nn.Parameter(rows.flatten(1), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1) @ self.rows.T


class Curved(nn.Module):
    """A convolution, a BN layer, a classifier."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.silu(self.norm(self.conv(x))).mean((2, 3)))


def rows(first: torch.Tensor) -> nn.Module:
    """A linear teacher: its row of class 0 is `first` (3, SIZE, SIZE), that of class 1 the opposite."""
    return Rows(torch.stack([first, -first]))


def losses_of(
    networks: Sequence[nn.Module],
    weights: Sequence[float],
    targets: torch.Tensor,
    formulation: Formulation = SCORE,
    cells: Sequence[Cell] | None = None,
    **options: object,
) -> EnsembleLoss:
    """All on one rank, in float64; each teacher in one cell where `cells` are not given."""
    members = []
    for t, (network, weight) in enumerate(zip(networks, weights, strict=True)):
        teacher = Teacher(f"t{t}", network, CARD, dtype=torch.float64)
        members.append(EnsembleMember(teacher.profile(), weight, targets, teacher))
    cells = [Cell(t, 0, len(targets)) for t in range(len(members))] if cells is None else cells
    return EnsembleLoss(members, formulation, cells, **options)  # type: ignore[arg-type]


def plain_loss(network: nn.Module, view: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """What FULL says of one teacher of kind Curved, of the whole batch."""
    assert isinstance(network, Curved)
    network = network.double().eval()
    maps, norm = network.conv(view), network.norm
    gaps = (maps.mean((0, 2, 3)) - norm.running_mean).norm() + (
        maps.var((0, 2, 3), correction=0) - norm.running_var
    ).norm()
    return 0.7 * F.cross_entropy(network(view) / 2, targets) + 0.3 * gaps


def draw(images: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(images, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
