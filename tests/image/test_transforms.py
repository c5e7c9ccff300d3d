"""Views: hand values, NumPy twins, gradients, and draws that depend on the generator alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from ensemble.image.transforms import Compose, Flip, Jitter, Noise, Resize, Zoom, resize_bilinear
from ensemble.machine.rng import generator

ROW = torch.arange(4.0).reshape(1, 1, 1, 4).expand(1, 1, 4, 4)  # every row is 0 1 2 3


def shifts(n: int, pixels: int, seed: int) -> np.ndarray:
    """What Jitter draws for n shifts."""
    return torch.randint(-pixels, pixels + 1, (n, 2), generator=generator(seed)).numpy()


def numpy_shift(image: np.ndarray, dy: int, dx: int, mode: str) -> np.ndarray:
    """Pad a (C, H, W) image on all sides, crop with an offset."""
    p = max(abs(dy), abs(dx))
    padded = np.pad(image, ((0, 0), (p, p), (p, p)), mode=mode)  # type: ignore[call-overload]
    height, width = image.shape[1:]
    return padded[:, p - dy : p - dy + height, p - dx : p - dx + width]


@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize(
    ("mode", "dx", "expected"),
    [
        ("wrap", 1, [3, 0, 1, 2]),
        ("wrap", -1, [1, 2, 3, 0]),
        ("reflect", 1, [1, 0, 1, 2]),
        ("reflect", -1, [1, 2, 3, 2]),
        ("reflect", 2, [2, 1, 0, 1]),
        ("reflect", -2, [2, 3, 2, 1]),
        ("reflect", -3, [3, 2, 1, 0]),
    ],
)
def test_jitter_by_hand(mode: Any, dx: int, expected: list[int], per_image: bool) -> None:
    pixels = abs(dx)
    seed = next(seed for seed in range(1000) if shifts(1, pixels, seed)[0, 1] == dx)
    moved = Jitter(pixels, mode, per_image)(ROW, generator(seed))
    assert moved[0, 0].tolist() == [expected] * 4


@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("mode", ["wrap", "reflect"])
def test_jitter_equals_numpy_in_value_and_gradient(mode: Any, per_image: bool) -> None:
    images = torch.rand(6, 3, 5, 7, generator=generator(0), dtype=torch.float64).requires_grad_()
    weights = torch.rand(6, 3, 5, 7, generator=generator(1), dtype=torch.float64)
    drawn = shifts(6 if per_image else 1, 3, 2)
    each = drawn if per_image else drawn.repeat(6, 0)
    moved = Jitter(3, mode, per_image)(images, generator(2))
    expected = [
        numpy_shift(image, dy, dx, "wrap" if mode == "wrap" else "reflect")
        for image, (dy, dx) in zip(images.detach().numpy(), each, strict=True)
    ]
    np.testing.assert_array_equal(moved.detach().numpy(), expected)
    # The gradient of a weighted sum adds each weight where its pixel came from.
    gradient = np.zeros((6, 3, 5, 7))
    sources = np.arange(5 * 7).reshape(1, 5, 7)
    for i, (dy, dx) in enumerate(each):
        source = numpy_shift(sources, dy, dx, mode).ravel()
        for c in range(3):
            np.add.at(gradient[i, c].ravel(), source, weights[i, c].numpy().ravel())
    (moved * weights).sum().backward()
    assert images.grad is not None
    np.testing.assert_allclose(images.grad.numpy(), gradient, atol=1e-14)


@pytest.mark.parametrize(
    "transform",
    [
        Jitter(2, "wrap", True),
        Jitter(2, "reflect", True),
        Jitter(2, "reflect", False),
        Flip(0.5, True),
        Resize(2),
        Resize(3),
        Zoom(0.3),
        Noise(0.2),
        Compose((Jitter(1, "wrap", False), Flip(1.0, False), Resize(2))),
    ],
    ids=str,
)
def test_gradients_equal_finite_differences(transform: Callable[..., torch.Tensor]) -> None:
    images = torch.rand(3, 1, 4, 4, generator=generator(3), dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: transform(x, generator(4)), (images,))


def test_jitter_draws_every_shift_evenly() -> None:
    drawn = shifts(2000, 2, 5)
    moved = Jitter(2, "wrap", True)(torch.eye(8)[None, None].repeat(2000, 1, 1, 1), generator(5))
    assert {tuple(row) for row in drawn} == {(dy, dx) for dy in range(-2, 3) for dx in range(-2, 3)}
    assert np.abs(np.bincount(drawn.ravel() + 2) / 4000 - 0.2).max() < 0.03
    assert torch.equal(moved.flatten(1).sum(1), torch.full((2000,), 8.0))


def test_flip_mirrors_left_and_right() -> None:
    images = torch.rand(8, 3, 2, 3, generator=generator(6))
    mirrored = torch.from_numpy(images.numpy()[..., ::-1].copy())
    assert torch.equal(Flip(1.0, False)(images, generator(0)), mirrored)
    assert torch.equal(Flip(0.0, False)(images, generator(0)), images)
    assert torch.equal(Flip(1.0, True)(images, generator(0)), mirrored)
    assert torch.equal(Flip(0.0, True)(images, generator(0)), images)
    chosen = torch.rand(8, generator=generator(7)) < 0.5
    assert 0 < chosen.sum() < 8
    flipped = Flip(0.5, True)(images, generator(7))
    for i in range(8):
        assert torch.equal(flipped[i], (mirrored if chosen[i] else images)[i])


def test_flip_of_the_batch_happens_as_often_as_asked() -> None:
    rng = generator(8)
    flips = sum(bool(Flip(0.3, False)(ROW, rng)[0, 0, 0, 0] == 3) for _ in range(2000))
    assert flips / 2000 == pytest.approx(0.3, abs=0.04)


def test_zoom_shows_a_square_part_of_each_image() -> None:
    """Against torch's own bilinear sampling of that part."""
    images = torch.rand(5, 3, 8, 8, generator=generator(14), dtype=torch.float64)
    drawn = torch.rand(5, 3, generator=generator(15), dtype=torch.float64).numpy()
    zoomed = Zoom(0.4)(images, generator(15))
    for i, (share, down, right) in enumerate(drawn):
        side = 0.4 + 0.6 * share
        steps = side * (2 * np.arange(8) + 1) / 8
        y, x = (2 * (1 - side) * place + steps - 1 for place in (down, right))
        grid = torch.from_numpy(np.stack(np.meshgrid(x, y), -1))[None]
        expected = F.grid_sample(images[i : i + 1], grid, padding_mode="border", align_corners=False)
        assert torch.allclose(zoomed[i : i + 1], expected, atol=1e-12)


def test_zoom_of_the_whole_is_nothing() -> None:
    images = torch.rand(2, 3, 8, 8, generator=generator(16))
    assert Zoom(1.0)(images, generator(17)) is images


def test_noise_is_normal_and_the_generators_alone() -> None:
    images = torch.full((20, 3, 16, 16), 0.5)
    drawn = torch.randn(20, 3, 16, 16, generator=generator(18), dtype=torch.float64)
    noisy = Noise(0.08)(images, generator(18))
    torch.testing.assert_close(noisy.double(), 0.5 + 0.08 * drawn)
    assert (noisy - images).std().item() == pytest.approx(0.08, rel=0.02)
    double = Noise(0.08)(images.double(), generator(18))  # float32 and float64 runs see one noise
    torch.testing.assert_close(noisy.double(), double, rtol=0, atol=1e-7)
    rng = generator(19)
    assert Noise(0.0)(images, rng) is images and torch.equal(rng.get_state(), generator(19).get_state())


@pytest.mark.parametrize("per_image", [False, True])
def test_the_number_of_draws_does_not_depend_on_settings(per_image: bool) -> None:
    images = torch.rand(5, 3, 8, 8, generator=generator(9))
    following = set()
    for pixels, mode, probability in ((0, "wrap", 0.0), (3, "reflect", 0.5), (7, "wrap", 1.0)):
        rng = generator(10)
        jitter = Jitter(pixels, mode, per_image)  # type: ignore[arg-type]
        Compose((jitter, Flip(probability, per_image), Zoom(1 - probability / 2), Resize(4)))(images, rng)
        following.add(torch.rand(1, generator=rng).item())
    assert len(following) == 1


def test_compose_applies_in_order_on_one_generator() -> None:
    images = torch.rand(2, 3, 6, 6, generator=generator(11))
    rng = generator(12)
    by_hand = Resize(3)(Flip(0.5, False)(Jitter(2, "wrap", False)(images, rng), rng), rng)
    composed = Compose((Jitter(2, "wrap", False), Flip(0.5, False), Resize(3)))
    assert torch.equal(composed(images, generator(12)), by_hand)
    assert torch.equal(composed(images, generator(12)), composed(images, generator(12)))
    assert Compose(())(images, rng) is images


def test_resize_by_an_integer_factor_is_the_block_mean() -> None:
    images = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert Resize(2)(images, generator(0)).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert Resize(4)(images, generator(0)) is images


def graph_of(result: torch.Tensor) -> str:
    names, nodes = [], [result.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is not None:
            names.append(node.name())
            nodes += [following for following, _ in node.next_functions]
    return " ".join(names)


@pytest.mark.parametrize(("height", "width", "size"), [(9, 9, 5), (9, 9, 12), (16, 7, 11), (299, 299, 149)])
def test_resampling_and_its_gradient_are_torch_s(height: int, width: int, size: int) -> None:
    image = torch.rand(2, 3, height, width, dtype=torch.float64, generator=generator(3), requires_grad=True)
    cotangent = torch.rand(2, 3, size, size, dtype=torch.float64, generator=generator(4))
    assert "Upsample" not in graph_of(resize_bilinear(image, size))  # its gradient is not deterministic on CUDA
    resized = resize_bilinear(image, size), F.interpolate(image, (size, size), mode="bilinear", antialias=True)
    gradients = [torch.autograd.grad(r, image, cotangent)[0] for r in resized]
    torch.testing.assert_close(*resized, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [5, 12])
def test_other_sizes_are_pil_s_antialiased_bilinear(size: int) -> None:
    image = torch.rand(9, 9, generator=generator(13))
    wanted = Image.fromarray(image.numpy()).resize((size, size), Image.Resampling.BILINEAR)
    resized = Resize(size)(image[None, None], generator(0))
    np.testing.assert_allclose(resized[0, 0].numpy(), np.asarray(wanted), atol=1e-5)
    if size < 9:  # and not the plain one, which aliases
        plain = F.interpolate(image[None, None], (size, size), mode="bilinear")
        assert (resized - plain).abs().max() > 0.02


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Jitter(-1, "wrap", False), "pixels must be >= 0"),
        (lambda: Jitter(1, "zeros", False), "unknown mode 'zeros'"),  # type: ignore[arg-type]
        (lambda: Jitter(4, "reflect", False)(ROW, generator(0)), "reflecting 4 pixels needs larger images"),
        (lambda: Flip(1.5, False), "probability must lie in"),
        (lambda: Zoom(0.0), "the smallest part must lie in"),
        (lambda: Noise(-0.1), "the deviation must be >= 0"),
        (lambda: Resize(0), "size must be at least 1"),
    ],
)
def test_mistakes_are_explained(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
