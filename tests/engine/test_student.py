"""A student beside its teachers: only what compares them reads it, whoever acts, over any cells."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from linear import CARD, FULL, SIZE, Curved, draw, plain_loss
from torch import nn

from ensemble.engine.gradient import EnsembleLoss, EnsembleMember
from ensemble.engine.inversion import Inversion, LiveStage
from ensemble.engine.optimizers import Adam
from ensemble.engine.placement import Cell
from ensemble.engine.reduction import FixedPointSum
from ensemble.image.pixels import PixelImage
from ensemble.image.transforms import Compose
from ensemble.objectives.competition import Competition
from ensemble.objectives.terms import Formulation
from ensemble.teachers.teacher import Teacher

TARGETS = torch.tensor([0, 1, 0, 1, 1])
FORMULATION = Formulation((*FULL.terms, Competition(weight=0.6, temperature=2.0)))
WHOLE = [Cell(t, 0, 5) for t in range(3)]
UNEVEN = [Cell(1, 3, 5), Cell(0, 0, 1), Cell(0, 1, 5), Cell(2, 2, 5), Cell(1, 0, 3), Cell(2, 0, 2)]


class WithoutNorm(nn.Module):
    """A student that has no statistics to match."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(9)
            self.head = nn.Linear(3 * SIZE * SIZE, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x.flatten(1)).tanh()


def made(student: nn.Module, cells: list[Cell] = WHOLE, **options: object) -> EnsembleLoss:
    members = []
    for t, (network, weight) in enumerate([(Curved(0), 1.0), (Curved(1), 3.0), (student, 0.0)]):
        teacher = Teacher(f"t{t}", network, CARD, dtype=torch.float64)
        members.append(EnsembleMember(replace(teacher.profile(), student=t == 2), weight, TARGETS, teacher))
    return EnsembleLoss(members, FORMULATION, cells, **options)  # type: ignore[arg-type]


def plain(view: torch.Tensor, student: nn.Module, weights: dict[int, float]) -> torch.Tensor:
    """Cross-entropy, BN and competition of each teacher, times its weight; the l2 prior once."""
    leaf = view.clone().requires_grad_()
    total = 0.1 * leaf.norm()
    q = torch.softmax(student.double()(leaf) / 2, 1)
    for t, weight in weights.items():
        network = Curved(t).double().eval()
        p = torch.softmax(network(leaf) / 2, 1)
        m = (p + q) / 2
        js = ((p * (p / m).log()).sum(1) + (q * (q / m).log()).sum(1)).mean() / 2
        total = total + weight * (plain_loss(network, leaf, TARGETS) + 0.6 * (1 - js))
    return torch.autograd.grad(total, leaf)[0]


@pytest.mark.parametrize("student", [WithoutNorm, lambda: Curved(5)], ids=["without BN", "with BN"])
@pytest.mark.parametrize("cells", [WHOLE, UNEVEN], ids=["whole", "uneven"])
@pytest.mark.parametrize("options", [{}, {"recompute": True}, {"reduction": FixedPointSum()}])
def test_the_gradient_is_plain_torchs(student: object, cells: list[Cell], options: dict) -> None:
    network = student().eval()  # type: ignore[operator]
    view = draw(5)
    for acting, weights in (((0, 1), {0: 0.25, 1: 0.75}), ((1,), {1: 1.0})):
        loss = made(network, cells, **options)
        assert loss.weights(acting) == {**weights, 2: 0.0}
        record, gradient, _ = loss.gradient(view, loss.weights(acting))
        expected = plain(view, network, weights)
        assert float((gradient - expected).norm() / expected.norm()) < 1e-9
        values = record.values()
        assert {key for key in values if key.startswith("t2/")} == {"t2/accuracy"}
        assert 0 <= values["t2/accuracy"] <= 1


def test_teachers_take_turns_and_the_student_is_always_there() -> None:
    image = PixelImage(5, SIZE, clip=True, dtype=torch.float64)
    stage = LiveStage(4, Compose(()), Adam(lr=0.05))
    inversion = Inversion(image, made(WithoutNorm()), [stage], seed=0, acting="turn")
    assert [inversion.weights_at(step) for step in range(3)] == [{0: 1.0, 2: 0.0}, {1: 1.0, 2: 0.0}, {0: 1.0, 2: 0.0}]
    assert [sorted(key for key in step.record.values() if "accuracy" in key) for step in inversion][:2] == [
        ["t0/accuracy", "t2/accuracy"],
        ["t1/accuracy", "t2/accuracy"],
    ]
