"""NAdam: steps by hand, and its state in a checkpoint."""

from __future__ import annotations

import numpy as np
import torch
from linear import SIZE, draw, losses_of, rows

from ensemble.engine.inversion import Inversion, LiveStage
from ensemble.engine.nadam import NAdam
from ensemble.image.pixels import PixelImage
from ensemble.image.transforms import Compose

TARGETS = torch.tensor([0, 1])
ROW = draw(1)[0]


def inversion(iterations: int = 4) -> Inversion:
    image = PixelImage(2, SIZE, clip=False, dtype=torch.float64)
    stage = LiveStage(iterations, Compose(()), NAdam(lr=0.1, schedule="constant"))
    return Inversion(image, losses_of([rows(ROW)], [1.0], TARGETS), [stage], seed=0)


def test_steps_by_the_paper() -> None:
    """mu_t = 0.9 (1 - 0.96^(0.004 t) / 2), whose product torch keeps in float32; the gradient here is -ROW / 2."""
    run = inversion()
    x, g = np.full((3, SIZE, SIZE), 0.5), -ROW.numpy() / 2
    first, second, product = np.zeros_like(x), np.zeros_like(x), 1.0
    for t, _ in enumerate(run, 1):
        mu, following = (0.9 * (1 - 0.5 * 0.96 ** (0.004 * k)) for k in (t, t + 1))
        product *= mu
        first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g**2
        ahead = following * first / (1 - product * following) + (1 - mu) * g / (1 - product)
        x = x - 0.1 * ahead / (np.sqrt(second / (1 - 0.999**t)) + 1e-8)
        np.testing.assert_allclose(run.image()[0].detach(), x, rtol=1e-6)


def test_a_resumed_run_has_the_same_bits() -> None:
    whole, begun, resumed = inversion(), inversion(), inversion()
    list(whole)
    steps = iter(begun)
    next(steps), next(steps)
    resumed.load_state(*begun.state())
    list(resumed)
    assert torch.equal(resumed.image(), whole.image())
