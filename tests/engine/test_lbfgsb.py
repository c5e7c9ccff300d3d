"""L-BFGS-B, an image a problem: against SciPy called directly, inside its bounds, over a resume and over cells."""

from __future__ import annotations

import gc
import threading
from typing import Any

import numpy as np
import pytest
import torch
from linear import CARD
from scipy.optimize import minimize
from torch import nn

from ensemble.config.mistakes import ConfigError
from ensemble.engine.gradient import EnsembleLoss, EnsembleMember
from ensemble.engine.inversion import Inversion, LiveStage
from ensemble.engine.lbfgsb import LBFGSB
from ensemble.engine.placement import Cell
from ensemble.image.pixels import PixelImage
from ensemble.image.transforms import Compose
from ensemble.objectives.activation import Activation
from ensemble.objectives.bn_matching import BNMatching
from ensemble.objectives.classification import CrossEntropy
from ensemble.objectives.terms import Formulation
from ensemble.recipe import EnsembleRule, Recipe, Stage, TeacherEntry
from ensemble.teachers.teacher import Teacher

UNITS = ("conv:1@centre", "logits:0 - 0.5*conv:2")
IMAGES = 3


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.conv, self.last = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(3 * self.conv(x)).square().mean((2, 3)))


def begun(steps: int, cells: list[Cell] | None = None, term: Any = None, **rule: Any) -> Inversion:
    teacher = Teacher("t", Net(), CARD, dtype=torch.float64)
    terms = [term or Activation(UNITS)]
    taps = [tap for one in terms for tap in one.needs(teacher.profile())]
    if taps:
        teacher.tap(taps, alone=False)
    member = EnsembleMember(teacher.profile(), 1.0, torch.zeros(IMAGES, dtype=torch.int64), teacher)
    loss = EnsembleLoss([member], Formulation(tuple(terms)), cells or [Cell(0, 0, IMAGES)])
    image = PixelImage(IMAGES, 8, clip=True, dtype=torch.float64)
    image.randomize(0.2, torch.Generator().manual_seed(0))
    image.project()
    stage = LiveStage(steps, Compose(()), LBFGSB(**rule))
    return Inversion(image, loss, [stage], seed=0, best_every=5, attribute=True)


def ended(inversion: Inversion) -> torch.Tensor:
    for _ in inversion:
        assert float(inversion.image().min()) >= 0 and float(inversion.image().max()) <= 1
    return inversion.result()


def plain(x: np.ndarray, unit: int) -> tuple[float, np.ndarray]:
    net = Net().double().eval()
    leaf = torch.from_numpy(x).view(1, 3, 8, 8).requires_grad_()
    maps = net.conv(leaf)
    a = maps[0, 1, 3, 3] if unit == 0 else net(leaf)[0, 0] - 0.5 * maps[0, 2].mean()
    (gradient,) = torch.autograd.grad(-a, leaf)
    return -float(a), gradient.flatten().numpy()


@pytest.mark.parametrize("history", [3, 10])
def test_each_image_is_what_scipy_finds(history: int) -> None:
    inversion = begun(400, history=history)
    starts = inversion.image().detach().flatten(1).numpy().copy()
    images = ended(inversion)
    assert inversion.ended and inversion.step < 400
    options = {"maxcor": history, "ftol": 2.2e-9, "gtol": 1e-5}
    for i in range(IMAGES):
        found = minimize(
            plain, starts[i], (i % 2,), jac=True, method="L-BFGS-B", bounds=[(0, 1)] * 192, options=options
        )
        np.testing.assert_allclose(images[i].flatten().numpy(), found.x, atol=1e-6)


def test_a_search_that_is_cut_short_gives_its_best_point() -> None:
    inversion = begun(4)
    starts = inversion.image().detach().flatten(1).numpy().copy()
    images = ended(inversion)
    for i in range(IMAGES):
        seen: list[tuple[float, np.ndarray]] = []

        def watched(x: np.ndarray, i: int = i, seen: Any = seen) -> tuple[float, np.ndarray]:
            value, gradient = plain(x, i % 2)
            seen.append((value, x.copy()))
            return value, gradient

        minimize(watched, starts[i], jac=True, method="L-BFGS-B", bounds=[(0, 1)] * 192, options={"maxfun": 20})
        best = min(seen[:4], key=lambda pair: pair[0])[1]
        np.testing.assert_allclose(images[i].flatten().numpy(), best, atol=1e-9)


def test_cells_and_a_resume_change_nothing() -> None:
    first = begun(12)
    whole, attribution = ended(first), first.attribution
    cut = ended(begun(12, cells=[Cell(0, 0, 1), Cell(0, 1, 3)]))
    torch.testing.assert_close(cut, whole, rtol=0, atol=1e-9)
    for stop in (0, 6):
        first, again = begun(12), begun(12)
        for step in first:
            if step.number == stop:
                break
        again.load_state(*first.state())
        assert again.step == stop + 1
        assert torch.equal(ended(again), whole)
        assert again.attribution is not None and torch.equal(again.attribution, attribution)


def test_searches_that_are_left_end_their_threads() -> None:
    gc.collect()  # those of other tests
    before = set(threading.enumerate())
    inversion = begun(400)
    next(iter(inversion))
    own = set(threading.enumerate()) - before
    assert len(own) == IMAGES
    del inversion
    gc.collect()
    for thread in own:
        thread.join(10.0)
    assert not any(thread.is_alive() for thread in own)


def test_terms_that_tie_images_together_are_refused() -> None:
    with pytest.raises(ValueError, match="a term of the loss ties images together"):
        ended(begun(3, term=CrossEntropy()))
    common: dict[str, Any] = {"optimizer": LBFGSB(), "objectives": (Activation("a:0"),)}
    Recipe((TeacherEntry("a"),), **common)
    for changed, message in (
        ({"objectives": (Activation("a:0"), BNMatching())}, "objectives\\[1\\]: lbfgsb takes each image"),
        ({"stages": (Stage(jitter=1),)}, "lbfgsb needs views that do not change"),
        ({"stages": (Stage(), Stage())}, "lbfgsb has one stage"),
        ({"ensemble": EnsembleRule(aggregation="equal")}, "lbfgsb needs the gradient of one loss"),
    ):
        with pytest.raises(ConfigError, match=message):
            Recipe((TeacherEntry("a"),), **common | changed)
    with pytest.raises(ConfigError, match="lr: lbfgsb finds its own steps"):
        LBFGSB(lr=0.5)
