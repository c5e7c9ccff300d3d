"""Images of one class that keep apart: hand values, and a plain twin through a network."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ensemble import invert
from ensemble.objectives.repulsion import Repulsion
from ensemble.objectives.terms import Features, Slice, Totals
from ensemble.teachers.teacher import Observation, Profile, Teacher
from models import ModelCard

CARD = ModelCard("tiny", "test", 8, 4, mean=(0.5, 0.4, 0.45), std=(0.2, 0.25, 0.3))


def value(
    term: Repulsion,
    features: torch.Tensor,
    targets: torch.Tensor,
    cuts: tuple[int, ...] = (),
    earlier: Features | None = None,
) -> torch.Tensor:
    """The loss of a batch, in slices that end at `cuts`."""
    n = len(targets)
    profile = Profile("t", CARD, None)

    def part(start: int, stop: int) -> Slice:
        return Slice(start, stop, n, targets[start:stop], profile, 8, earlier=earlier)

    edges = [0, *cuts, n]
    sums = [
        term.sums(Observation(torch.zeros(b - a, 4), torch.zeros(2, 0), features[a:b]), part(a, b))
        for a, b in pairwise(edges)
    ]
    return term.loss(Totals({0: sum(sums[1:], sums[0])}, [part(0, n)]), 0)


def at(*degrees: float) -> torch.Tensor:
    """Features of several lengths at these angles."""
    angles = torch.tensor(degrees, dtype=torch.float64) * math.pi / 180
    return torch.stack([angles.cos(), angles.sin()], 1) * torch.arange(1, len(degrees) + 1)[:, None]


@pytest.mark.parametrize("cuts", [(), (1,), (2, 3)])
def test_by_hand(cuts: tuple[int, ...]) -> None:
    features, targets = at(0, 60, 90, 0), torch.tensor([1, 1, 1, 0])
    # cosines within class 1: 1/2, 0, sqrt(3)/2; the last image is alone in its class
    expected = (0.1 + 0 + math.sqrt(3) / 2 - 0.4) / 3
    assert float(value(Repulsion(limit=0.4), features, targets, cuts)) == pytest.approx(expected)


def test_earlier_images_repel_too() -> None:
    features, targets = at(0, 60), torch.tensor([1, 0])
    earlier = Features(at(5, 30, 60, 90), torch.tensor([1, 1, 0, 0]))
    # of the last three: (0, 30) of class 1; (60, 60) and (60, 90) of class 0; no pair within the batch
    expected = (math.sqrt(3) / 2 - 0.5 + 0.5 + math.sqrt(3) / 2 - 0.5) / 3
    assert float(value(Repulsion(limit=0.5, memory=3), features, targets, earlier=earlier)) == pytest.approx(expected)
    assert float(value(Repulsion(limit=0.5), features, targets, earlier=earlier)) == 0


def test_without_pairs_there_is_nothing() -> None:
    features = at(0, 1).requires_grad_()
    loss = value(Repulsion(), features, torch.tensor([0, 1]))
    loss.backward()
    assert loss.item() == 0 and features.grad is not None and not features.grad.any()


def test_gradient() -> None:
    features = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    targets = torch.tensor([0, 0, 0, 1, 1])
    assert torch.autograd.gradcheck(lambda f: value(Repulsion(limit=-1.0), f, targets), features)


@pytest.mark.parametrize("rewritten", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
def test_features_are_the_input_of_the_last_layer(rewritten: bool, compiled: bool) -> None:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten())
    net = nn.Sequential(body, nn.Linear(54, 4)).double().eval()
    teacher = Teacher("t", net, CARD, dtype=torch.float64)
    teacher.emit_features()
    if rewritten:
        teacher.rewrite()
    if compiled:
        teacher.compile()
    assert teacher.profile().features == 54
    view = torch.rand(3, 3, 8, 8, dtype=torch.float64)
    mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (CARD.mean, CARD.std))
    leaf, other = view.clone().requires_grad_(), view.clone().requires_grad_()
    found, expected = teacher.observe(leaf).features, body((other - mean) / std)
    torch.testing.assert_close(found, expected)
    weights = torch.randn(54, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((found @ weights).sum(), leaf)
    (wanted,) = torch.autograd.grad((expected @ weights).sum(), other)
    torch.testing.assert_close(gradient, wanted)


def test_a_network_without_a_last_layer_is_refused_in_one_line() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ValueError, match=r"t: features need a network that ends in an nn\.Linear"):
        Teacher("t", net, CARD).emit_features()


def test_a_student_without_a_last_layer_is_let_in_as_nothing_reads_its_features() -> None:
    teacher = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))
    student = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    results = invert(
        [{"model": (teacher, CARD)}, {"model": (student, CARD), "student": True}],
        objectives=[{"kind": "repulsion", "memory": 2}, {"kind": "competition"}],
        targets=[0],
        images_per_class=2,
        trials=2,
        iterations=1,
        progress=False,
    )
    assert results is not None
    assert len(results.images) == 4


def test_it_falls() -> None:
    features = torch.rand(6, 5, dtype=torch.float64).requires_grad_()
    targets = torch.tensor([0, 0, 0, 1, 1, 1])
    term = Repulsion(limit=0.3)
    first = value(term, features, targets).item()
    optimizer = torch.optim.Adam([features], 0.05)
    for _ in range(100):
        optimizer.zero_grad()
        value(term, features, targets).backward()
        optimizer.step()
    assert value(term, features, targets).item() < 0.1 * first
    assert F.normalize(features, dim=1).isfinite().all()
