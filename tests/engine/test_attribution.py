"""Where the gradient went: of one step by plain torch, of many as their sum, and over a resume."""

from __future__ import annotations

import torch
from linear import FULL, Curved, losses_of

from ensemble.engine.inversion import Inversion, LiveStage
from ensemble.engine.optimizers import Adam
from ensemble.image.pixels import PixelImage
from ensemble.image.transforms import Compose, Flip

TARGETS = torch.tensor([0, 1, 0])


def inversion(steps: int) -> Inversion:
    loss = losses_of([Curved(0), Curved(1)], (1.0, 2.0), TARGETS, FULL)
    image = PixelImage(3, 8, clip=False, dtype=torch.float64)
    image.randomize(0.1, torch.Generator().manual_seed(0))
    stage = LiveStage(steps, Compose((Flip(1.0, False),)), Adam(lr=0.01))
    return Inversion(image, loss, [stage], seed=0, attribute=True)


def test_it_is_the_gradients_magnitude_at_the_image() -> None:
    made = inversion(1)
    _, gradient, _ = made.loss.gradient(made.image().detach().flip(3), made.weights_at(0))
    for _ in made:
        pass
    assert made.attribution is not None
    torch.testing.assert_close(made.attribution, gradient.flip(3).abs().mean(1).float())


def test_steps_add_up_over_a_resume() -> None:
    whole, first = inversion(6), inversion(6)
    for _ in whole:
        pass
    for step in first:
        if step.number == 2:
            break
    again = inversion(6)
    again.load_state(*first.state())
    for _ in again:
        pass
    assert whole.attribution is not None and again.attribution is not None
    assert torch.equal(whole.attribution, again.attribution) and float(whole.attribution.min()) > 0
