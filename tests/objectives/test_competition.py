"""Images on which a student differs from its teachers: hand values, NumPy twins, and that it falls."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from ensemble.objectives.competition import Competition
from ensemble.objectives.terms import Slice, Totals
from ensemble.teachers.teacher import Observation, Profile
from models import ModelCard

CARD = ModelCard("tiny", "test", 8, 3, mean=(0.5, 0.4, 0.45), std=(0.2, 0.25, 0.3))
FORMS = ("js", "masked", "reference")


def value(
    term: Competition,
    teacher: torch.Tensor,
    student: torch.Tensor,
    cuts: tuple[int, ...] = (),
    t: int = 0,
    columns: tuple[int, ...] | None = None,
) -> torch.Tensor:
    """The loss for network t, 0 the teacher and 1 the student, of logits (N, C) in slices that end at `cuts`.

    `columns` is where the student's logits have the teacher's classes.
    """
    n = len(teacher)
    profiles = [Profile("t", CARD, None), Profile("s", CARD, None, student=True, columns=columns)]
    targets = torch.zeros(n, dtype=torch.long)

    def part(profile: Profile, start: int, stop: int) -> Slice:
        return Slice(start, stop, n, targets[start:stop], profile, 8)

    totals = {}
    for index, (profile, logits) in enumerate(zip(profiles, (teacher, student), strict=True)):
        sums = [
            term.sums(Observation(logits[a:b], torch.zeros(2, 0), torch.zeros(b - a, 0)), part(profile, a, b))
            for a, b in pairwise([0, *cuts, n])
        ]
        totals[index] = sum(sums[1:], sums[0])
    return term.loss(Totals(totals, [part(profile, 0, n) for profile in profiles]), t)


def logits_of(*probabilities: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log()


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def numpy_twin(form: str, teacher: np.ndarray, student: np.ndarray, temperature: float) -> float:
    def softmax(z: np.ndarray) -> np.ndarray:
        e = np.exp(z / temperature)
        return e / e.sum(1, keepdims=True)

    def kl(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a * np.log(a / b)).sum(1)

    p, q = softmax(teacher), softmax(student)
    m = (p + q) / 2
    if form == "js":
        return float(1 - np.mean((kl(p, m) + kl(q, m)) / 2))
    if form == "masked":
        return float(-np.mean(np.where(p.argmax(1) == q.argmax(1), kl(p, q), 0)))
    p, q, m = (np.clip(v, 0.01, 0.99) for v in (p, q, m))
    return float(1 - np.clip(np.mean((kl(m, p) + kl(m, q)) / 2), 0, 1))


def test_by_hand() -> None:
    """p = (1/2, 1/4, 1/4), q = (1/4, 1/2, 1/4): m = (3/8, 3/8, 1/4), and they give different classes."""
    p, q = logits_of((0.5, 0.25, 0.25)), logits_of((0.25, 0.5, 0.25))
    js = 0.5 * math.log(0.5 / 0.375) + 0.25 * math.log(0.25 / 0.375)
    assert float(value(Competition(temperature=1.0), p, q)) == pytest.approx(1 - js)
    assert float(value(Competition(divergence="masked", temperature=1.0), p, q)) == 0
    # the same class: KL = 0.5 log(0.5 / 0.75) + 0.25 log 2 + 0.25 log 2
    r = logits_of((0.75, 0.125, 0.125))
    kl = 0.5 * math.log(2 / 3) + 0.5 * math.log(2)
    assert float(value(Competition(divergence="masked", temperature=1.0), p, r)) == pytest.approx(-kl)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("cuts", [(), (1, 4)])
def test_it_is_its_twin_over_any_slices(form: str, temperature: float, cuts: tuple[int, ...]) -> None:
    teacher, student = draw(6, 3), draw(6, 3, seed=1)
    student[:3] = teacher[:3] + 0.3  # the same classes, so that the mask lets some through
    student[:3, 1] -= 0.2
    found = value(Competition(divergence=form, temperature=temperature), teacher, student, cuts)  # type: ignore[arg-type]
    assert float(found) == pytest.approx(numpy_twin(form, teacher.numpy(), student.numpy(), temperature), abs=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_equal_networks_are_at_the_top_and_gradients_part_both(form: str) -> None:
    term = Competition(divergence=form)  # type: ignore[arg-type]
    same = draw(4, 3)
    assert float(value(term, same, same)) == pytest.approx(0 if form == "masked" else 1)
    teacher, student = draw(4, 3).requires_grad_(), draw(4, 3, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: value(term, a, b), (teacher, student))


def test_it_falls() -> None:
    z = [draw(4, 3), draw(4, 3) + 0.01 * draw(4, 3, seed=3)]
    leaves = [one.requires_grad_() for one in z]
    optimizer = torch.optim.SGD(leaves, lr=30.0)
    first = float(value(Competition(), *leaves).detach())
    for _ in range(400):
        optimizer.zero_grad()
        value(Competition(), *leaves).backward()
        optimizer.step()
    assert float(value(Competition(), *leaves).detach()) < first - 0.2


def test_the_student_itself_has_no_loss_and_logits_without_limit_no_nan() -> None:
    assert float(value(Competition(), draw(3, 3), draw(3, 3), t=1)) == 0
    far = torch.tensor([[900.0, 0.0, -900.0]], dtype=torch.float64)
    for form in FORMS:
        assert torch.isfinite(value(Competition(divergence=form, temperature=1.0), far, -far))


@pytest.mark.parametrize("form", FORMS)
def test_mapped_classes_are_compared_with_their_own(form: str) -> None:
    """A network with two more classes and ours in another order is compared by ours alone, as if it had no others."""
    term, teacher, student = Competition(divergence=form), draw(5, 3), draw(5, 3, seed=1)  # type: ignore[arg-type]
    wide = draw(5, 5, seed=2)
    wide[:, [4, 0, 2]] = student
    found = value(term, teacher, wide, columns=(4, 0, 2))
    assert float(found) == pytest.approx(numpy_twin(form, teacher.numpy(), student.numpy(), 3.0), abs=1e-12)
    wide.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: value(term, teacher, z, columns=(4, 0, 2)), wide)


def test_a_mapping_lets_other_classes_in_where_it_is_whole() -> None:
    named = replace(CARD, class_names=("a", "b", "c"))
    other = replace(CARD, name="wide", num_classes=5)
    profiles = [Profile("t", named, None), Profile("s", other, None, student=True, columns=(4, 0, 2))]
    Competition().check(profiles)
    with pytest.raises(ValueError, match="the classes of s are mapped without 'b'"):
        Competition().check([profiles[0], replace(profiles[1], columns=(4, -1, 2))])


def test_networks_of_other_classes_are_refused() -> None:
    other = replace(CARD, name="wide", num_classes=4)
    with pytest.raises(ValueError, match="competition: s has other classes than t"):
        Competition().check([Profile("t", CARD, None), Profile("s", other, None, student=True)])
