"""Gradient descent on images: a NumPy twin of the release, step by step, in its form and in the correct one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from linear import Curved, losses_of
from scipy import ndimage

from ensemble.config.mistakes import ConfigError
from ensemble.engine import image_operators as operators
from ensemble.engine.gradient_descent import GradientDescent
from ensemble.engine.inversion import Inversion, LiveStage
from ensemble.image.fourier import Fourier
from ensemble.image.maco import Maco
from ensemble.image.parameterization import Parameterization
from ensemble.image.pixels import PixelImage, Pixels
from ensemble.image.start import Noise
from ensemble.image.transforms import Compose, Jitter
from ensemble.machine.rng import generator
from ensemble.recipe import ImageRule, Recipe, Stage, TeacherEntry

RNG = np.random.default_rng(0)


# --- the twin, of one image (C, H, W), written from formulas ---------------------------------------------------


def tv(x: np.ndarray, beta: float) -> np.ndarray:
    d1, d2 = np.zeros_like(x), np.zeros_like(x)
    d1[:, :-1] = np.diff(x, axis=1)
    d2[:, :, :-1] = np.diff(x, axis=2)
    v = np.maximum((d1**2 + d2**2) ** (beta / 2), 1e-5)
    k = v ** (2 * (beta / 2 - 1) / beta)
    a1, a2 = k * d1, k * d2
    s1, s2 = np.roll(a1, 1, 1), np.roll(a2, 1, 2)
    s1[:, 0], s2[:, :, 0] = 0, 0
    return beta * (s1 - a1 + s2 - a2)


def zeroed(x: np.ndarray, n: np.ndarray, q: float) -> np.ndarray:
    found = x.copy()
    found[:, n < np.percentile(n, q)] = 0
    return found


def unit(g: np.ndarray) -> np.ndarray:
    return g / np.abs(g).mean() if np.abs(g).mean() > 0 else g


def twin_step(
    x: np.ndarray, v: np.ndarray, gradient: Any, t: int, steps: int, o: dict[str, Any], shift: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """`gradient` is a function of the image as the network sees it; `shift` (0, 0) where nothing moves the frame."""
    faithful = o.get("faithful", False)

    def s(name: str) -> float:
        start, end = o[name] if isinstance(o[name], tuple) else (o[name], o[name])
        return start + t * (end - start) / (steps if faithful else steps - 1)

    x, v = np.roll(x, shift, (1, 2)), np.roll(v, shift, (1, 2))
    g = unit(gradient(x))
    v = s("momentum") * v + g
    if o.get("p_norm"):
        v = v + s("p_norm") * unit(o["p"] * np.abs(x) ** (o["p"] - 1) * np.sign(x))
    if o.get("tv"):
        v = v + s("tv") * unit(tv(x, o["tv_beta"]))
    x = x - s("lr") * v
    if (t + 1) % o.get("clip_every", 1) == 0:
        if q := o.get("clip_extreme"):
            x = np.clip(x, np.percentile(x, q / 2), np.percentile(x, 100 - q / 2))
        if q := o.get("clip_small_norm"):
            x = zeroed(x, np.sqrt((x**2).sum(0)), q)
        if q := o.get("clip_small_contribution"):
            x = zeroed(x, np.sqrt(((x * g) ** 2).sum(0)), q)
    back = (-shift[0], -shift[1])
    x = np.roll(x, back, (1, 2))
    v = g + np.roll(v - g, back, (1, 2)) if faithful else np.roll(v, back, (1, 2))
    x = (1 - s("decay")) * x
    if o.get("blur"):
        x = np.stack([ndimage.gaussian_filter(c, s("blur")) for c in x])
    return x, v


# --- operators --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [2.0, 1.5, 3.0])
def test_total_variation(beta: float) -> None:
    x = RNG.normal(size=(2, 3, 5, 6))
    found = operators.tv_gradient(torch.from_numpy(x), beta)
    np.testing.assert_allclose(found, [tv(one, beta) for one in x], atol=1e-10)
    leaf = torch.from_numpy(x).requires_grad_()
    down = torch.cat([leaf[:, :, 1:] - leaf[:, :, :-1], 0 * leaf[:, :, :1]], 2)
    right = torch.cat([leaf[:, :, :, 1:] - leaf[:, :, :, :-1], 0 * leaf[:, :, :, :1]], 3)
    if beta >= 2:  # below, the floor changes it
        (gradient,) = torch.autograd.grad(((down**2 + right**2 + 1e-30) ** (beta / 2)).sum(), leaf)
        torch.testing.assert_close(found, gradient, rtol=1e-3, atol=1e-3)


def test_clippings_blur_and_the_rest() -> None:
    x, g = RNG.normal(size=(2, 3, 7, 6)), RNG.normal(size=(2, 3, 7, 6))
    tx, tg = torch.from_numpy(x), torch.from_numpy(g)
    expected = [np.clip(one, np.percentile(one, 5), np.percentile(one, 95)) for one in x]
    np.testing.assert_allclose(operators.clip_extreme(tx, 10), expected, atol=1e-12)
    expected = [zeroed(one, np.sqrt((one**2).sum(0)), 30) for one in x]
    np.testing.assert_allclose(operators.clip_small(tx, tx.square().sum(1).sqrt(), 30), expected, atol=1e-12)
    for sigma in (0.4, 1.0, 2.5):  # the last reaches further than the image
        expected = [[ndimage.gaussian_filter(c, sigma) for c in one] for one in x]
        np.testing.assert_allclose(operators.blur(tx, sigma), expected, atol=1e-12)
    assert operators.blur(tx, 0.1) is tx
    np.testing.assert_allclose(operators.unit_mean(tg), [unit(one) for one in g], atol=1e-12)
    assert not operators.unit_mean(0 * tg).any()
    np.testing.assert_allclose(operators.p_norm_gradient(tx, 3), 3 * x**2 * np.sign(x), atol=1e-12)


# --- steps ------------------------------------------------------------------------------------------------------

ALL = {
    **{"lr": (2.0, 0.5), "momentum": (0.9, 0.5), "decay": (0.1, 0.02), "blur": (1.0, 0.4)},
    **{"p_norm": (0.5, 0.2), "p": 3.0, "tv": 0.3, "tv_beta": 1.5},
    **{"clip_extreme": 4.0, "clip_small_norm": 5.0, "clip_small_contribution": 5.0},
}


def rule_of(o: dict[str, Any]) -> GradientDescent:
    start, end = o["lr"]
    return GradientDescent(**{**o, "lr": start, "lr_end": end})


@pytest.mark.parametrize("faithful", [False, True])
@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("every", [1, 2])
def test_steps_are_the_twins(faithful: bool, per_image: bool, every: int) -> None:
    """A small network's cross-entropy, jitter around the edges; the correct form stays in the image's frame."""
    o = {**ALL, "faithful": faithful, "clip_every": every}
    steps, targets = 4, torch.tensor([0, 1])
    loss = losses_of([Curved(0)], (1.0,), targets)
    image = PixelImage(2, 8, clip=False, dtype=torch.float64)
    image.randomize(0.4, torch.Generator().manual_seed(0))
    stage = LiveStage(steps, Compose((Jitter(2, "wrap", per_image),)), rule_of(o))
    inversion = Inversion(image, loss, [stage], seed=3)
    x = image.pixels.detach().numpy().copy()
    v = np.zeros_like(x)

    def gradient_of(batch: np.ndarray) -> np.ndarray:
        return loss.gradient(torch.from_numpy(batch), {0: 1.0})[1].numpy()

    for t, _ in enumerate(inversion):
        drawn = Jitter(2, "wrap", per_image).shifts(2, generator(3, "view", t)).tolist()
        shifts = [tuple(drawn[k % len(drawn)]) for k in range(2)]
        seen = gradient_of(np.stack([np.roll(one, s, (1, 2)) for one, s in zip(x, shifts, strict=True)]))
        for k, shift in enumerate(shifts):
            frame = shift if faithful else (0, 0)
            own = seen[k] if faithful else np.roll(seen[k], (-shift[0], -shift[1]), (1, 2))
            x[k], v[k] = twin_step(x[k], v[k], lambda _, own=own: own, t, steps, o, frame)
        np.testing.assert_allclose(image.pixels.detach().numpy(), x, atol=1e-9, err_msg=str(t))


def test_without_normalisation_it_is_plain_momentum() -> None:
    rule = GradientDescent(lr=0.5, normalize=False, momentum=0.5)
    parameter = torch.nn.Parameter(torch.zeros(1, 3, 2, 2, dtype=torch.float64))
    optimizer = rule.make([parameter], 3)
    velocity, x = 0.0, 0.0
    for g in (1.0, -2.0, 4.0):
        parameter.grad = torch.full_like(parameter, g)
        optimizer.step()
        velocity = 0.5 * velocity + g
        x -= 0.5 * velocity
        assert float(parameter.detach().mean()) == pytest.approx(x)


def test_a_resumed_run_has_the_same_bits() -> None:
    def begun() -> Inversion:
        image = PixelImage(2, 8, clip=False, dtype=torch.float64)
        image.randomize(0.4, torch.Generator().manual_seed(0))
        stage = LiveStage(6, Compose((Jitter(2, "wrap", False),)), rule_of({**ALL, "faithful": True}))
        return Inversion(image, losses_of([Curved(0)], (1.0,), torch.tensor([0, 1])), [stage], seed=3)

    whole, first, again = begun(), begun(), begun()
    for _ in whole:
        pass
    for step in first:
        if step.number == 2:
            break
    again.load_state(*first.state())
    for _ in again:
        pass
    assert torch.equal(again.image(), whole.image())


def test_schedules_reach_their_end_or_the_releases() -> None:
    correct, faithful = GradientDescent(faithful=False), GradientDescent(faithful=True)
    assert [correct.at((2.0, 1.0), t, 5) for t in range(5)] == [2, 1.75, 1.5, 1.25, 1]
    assert faithful.at((2.0, 1.0), 4, 5) == pytest.approx(1.2)
    rule = GradientDescent(lr=2.0, lr_end=0.5)
    assert rule.multiplier(0, 3, None) == 1 and rule.multiplier(2, 3, None) == 0.25


@pytest.mark.parametrize(
    ("stage", "optimizer", "message"),
    [
        ({"moving": 0.5}, {}, "gradient_descent moves all images"),
        ({"flip": 0.5}, {"faithful": True}, "`faithful` knows shifts alone"),
        ({"jitter": 2}, {"faithful": True}, "shifts around the edges; use `wrap`"),
        ({}, {"schedule": "cosine"}, "in a straight line from lr to lr_end"),
    ],
)
def test_what_does_not_go_together(stage: dict[str, Any], optimizer: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Recipe((TeacherEntry("a"),), stages=(Stage(**stage),), optimizer=GradientDescent(**optimizer))


@pytest.mark.parametrize(
    ("parameterization", "optimizer", "message"),
    [
        (Fourier(), {"blur": 1.0}, "optimizer.blur: it is for pixels"),
        (Maco(), {"clip_extreme": 1.0}, "optimizer.clip_extreme: it is for pixels"),
        (Fourier(), {"faithful": True}, "optimizer.faithful: it shifts pixels"),
        (Fourier(), {"decay": 0.1}, ""),
        (Pixels(), {"blur": 1.0, "faithful": True}, ""),
    ],
)
def test_operators_of_pixels_are_for_pixels(
    parameterization: Parameterization, optimizer: dict[str, Any], message: str
) -> None:
    def make() -> Recipe:
        stages = (Stage(jitter=2, jitter_mode="wrap"),)
        image = ImageRule(parameterization, start=Noise())
        return Recipe((TeacherEntry("a"),), image=image, stages=stages, optimizer=GradientDescent(**optimizer))

    if not message:
        make()
        return
    with pytest.raises(ConfigError, match=message):
        make()


def test_what_all_images_share_is_not_moved() -> None:
    row, shared = (torch.nn.Parameter(torch.zeros(shape)) for shape in ((2, 5), (5,)))
    with pytest.raises(ValueError, match="moves one tensor with a row an image"):
        GradientDescent().make([row, shared], 3)
    shared.requires_grad_(False)
    GradientDescent().make([row, shared], 3)


def test_a_small_exponent_leaves_pixels_at_zero() -> None:
    x = torch.tensor([[[[0.0, 2.0], [-0.5, 0.0]]]], dtype=torch.float64)
    expected = torch.tensor([[[[0.0, 0.5 * 2**-0.5], [-0.5 * 0.5**-0.5, 0.0]]]], dtype=torch.float64)
    torch.testing.assert_close(operators.p_norm_gradient(x, 0.5), expected)
