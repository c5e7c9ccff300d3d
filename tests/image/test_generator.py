"""Images from a network's latents, against plain torch modules and finite differences."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from moving import check_threads, losses_of_descent
from safetensors.torch import save_file
from torch import nn

from ensemble.image.dead_leaves import DeadLeaves
from ensemble.image.generator import Generator, GeneratorImage
from ensemble.image.start import Black, FromImage, Grey, Noise, Start
from ensemble.image.steady import convolution, linear
from ensemble.machine.rng import generator
from ensemble.recipe import ImageRule
from models import ModelCard

CARD = ModelCard("net", "test", 8, 10, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


def drawn(
    n: int = 3, size: int = 8, seed: int = 1, dtype: torch.dtype = torch.float64, **options: Any
) -> GeneratorImage:
    images = GeneratorImage(n, size, **{"width": 2, "latent": 5, "dtype": dtype, **options})
    images.randomize(0.3, generator(seed))
    return images


def made(kind: Generator, n: int = 3, size: int = 8) -> GeneratorImage:
    kind.check(size)
    images = kind.make(n, size, card=CARD, dtype=torch.float64, device="cpu")
    images.randomize(0.3, generator(2))
    return images


def plain(images: GeneratorImage, size: int, width: int) -> nn.Sequential:
    """The same network of torch's own modules, in their units."""

    def with_weight(layer: Any, name: str) -> Any:
        stored = images.network[name].detach()
        layer.weight.data = stored / stored[0].numel() ** 0.5
        return layer

    def norm(index: int, channels: int) -> nn.Module:
        layer = nn.BatchNorm2d(channels).double()
        layer.weight.data = 1 + images.network[f"gain{index}"].detach()
        layer.bias.data = images.network[f"shift{index}"].detach()
        return layer

    wide, latent = 2 * width, images.latents.shape[1]
    return nn.Sequential(
        with_weight(nn.Linear(latent, wide * (size // 4) ** 2, bias=False), "linear"),
        nn.Unflatten(1, (wide, size // 4, size // 4)),
        norm(0, wide),
        nn.Upsample(scale_factor=2),
        with_weight(nn.Conv2d(wide, wide, 3, padding=1, bias=False), "convolution1"),
        norm(1, wide),
        nn.LeakyReLU(0.2),
        nn.Upsample(scale_factor=2),
        with_weight(nn.Conv2d(wide, width, 3, padding=1, bias=False), "convolution2"),
        norm(2, width),
        nn.LeakyReLU(0.2),
        with_weight(nn.Conv2d(width, 3, 3, padding=1, bias=False), "convolution3"),
        nn.Sigmoid(),
    )


@pytest.mark.parametrize("size", [4, 8, 12])
def test_it_is_the_network_of_plain_modules(size: int) -> None:
    images = drawn(size=size)
    with torch.no_grad():
        for name in images.network:
            if not name.startswith(("linear", "convolution")):
                images.network[name].normal_(0, 0.3, generator=generator(3))
    expected = plain(images, size, 2)(images.latents)
    assert images().shape == (3, 3, size, size)
    torch.testing.assert_close(images(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "name", ["latents", "network.linear", "network.gain1", "network.shift2", "network.convolution1"]
)
def test_gradient_equals_finite_differences(name: str) -> None:
    images = drawn(n=2, size=4)
    start = dict(images.named_parameters())[name].detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda p: torch.func.functional_call(images, {name: p}, ()), (start,))


def test_layers_are_torchs_own() -> None:
    x, weight = (
        torch.randn(*shape, generator=generator(4), dtype=torch.float64) for shape in [(2, 3, 5, 5), (4, 3, 3, 3)]
    )
    torch.testing.assert_close(convolution(x, weight), nn.functional.conv2d(x, weight, padding=1))
    rows, matrix = x.flatten(2)[:, :, 0], weight[:, :, 0, 0]
    torch.testing.assert_close(linear(rows, matrix), rows @ matrix.T)
    leaves = (x.requires_grad_(), weight.requires_grad_())
    assert torch.autograd.gradcheck(convolution, leaves)
    flat = (rows.detach().requires_grad_(), matrix.detach().requires_grad_())
    assert torch.autograd.gradcheck(linear, flat)


def test_gradients_have_the_same_bits_on_any_number_of_threads() -> None:
    """oneDNN's gradient of a convolution's weights has not."""
    check_threads(
        lambda: drawn(n=12, size=16, dtype=torch.float32, width=16, latent=16),
        torch.randn(12, 3, 16, 16, generator=generator(5)),
    )


def test_a_new_image_is_grey() -> None:
    images = GeneratorImage(2, 8, width=2, latent=5)
    assert torch.equal(images().detach(), torch.full((2, 3, 8, 8), 0.5))


def test_the_start_depends_on_the_generator_alone() -> None:
    single, double = drawn(dtype=torch.float32), drawn()
    assert torch.equal(drawn()(), double())
    torch.testing.assert_close(single().double(), double(), rtol=0, atol=1e-5)
    assert (drawn(seed=2)() - double()).abs().max() > 1e-2
    assert torch.equal(drawn(n=2).network["linear"], double.network["linear"])  # of any number of images


def test_noise_draws_latents_and_weights_of_unit_deviation() -> None:
    images = GeneratorImage(50, 8, width=8, latent=64)
    Noise(scale=0.5).set(images, generator(6))
    assert images.latents.std().item() == pytest.approx(0.5, rel=0.05)
    assert images.network["linear"].std().item() == pytest.approx(1.0, rel=0.05)
    assert not images.network["gain1"].any() and not images.network["shift0"].any()


def test_a_batch_of_one_image_of_four_pixels() -> None:
    images = drawn(n=1, size=4)
    assert images().isfinite().all()


@pytest.mark.parametrize(("learn", "moves"), [("both", {"latents", "weights"}), ("latents",) * 2, ("weights",) * 2])
def test_what_is_learnt_moves(learn: Any, moves: set[str] | str) -> None:
    """And the images come near a target."""
    images = made(Generator(width=4, latent=8, learn=learn))
    before = {name: value.clone() for name, value in images.state_dict().items()}
    target = 0.2 + 0.6 * torch.rand(3, 3, 8, 8, generator=generator(7), dtype=torch.float64)
    losses = losses_of_descent(images, target, 0.03, 40)
    assert losses[-1] < (0.5 if learn != "latents" else 0.95) * losses[0]
    after = images.state_dict()
    assert (not torch.equal(before["latents"], after["latents"])) == ("latents" in moves)
    for name in before.keys() - {"latents"}:
        assert (not torch.equal(before[name], after[name])) == ("weights" in moves), name


@pytest.mark.parametrize("prefix", ["", "image."])
def test_weights_of_a_state_or_of_a_checkpoint(tmp_path: Path, prefix: str) -> None:
    first = drawn(n=5)
    file = tmp_path / "some.safetensors"
    save_file({**{prefix + k: v for k, v in first.state_dict().items()}, "optimizer.0.step": torch.ones(())}, file)
    second = made(Generator(width=2, latent=5, weights=str(file)))
    assert all(torch.equal(second.network[name], first.network[name]) for name in first.network)
    second.latents.data = first.latents.data[:3]
    expected = drawn(n=3)
    expected.load_state_dict({**first.state_dict(), "latents": first.latents[:3]})
    assert torch.equal(second(), expected())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: drawn(width=3).state_dict(), r"linear is \[24, 5\], not \[16, 5\]; give the width"),
        (lambda: drawn(size=4).state_dict(), r"linear is \[4, 5\], not \[16, 5\]"),
        (lambda: {"fc.weight": torch.ones(2)}, "holds no weights of a generator"),
        (lambda: {k: v * torch.nan for k, v in drawn().state_dict().items()}, "not all values of linear are finite"),
    ],
)
def test_weights_that_do_not_fit(tmp_path: Path, content: Callable[[], Any], message: str) -> None:
    file = tmp_path / "some.safetensors"
    save_file(content(), file)
    with pytest.raises(ValueError, match=message) as caught:
        Generator(width=2, latent=5, weights=str(file)).check(8)
    assert "\n" not in str(caught.value)


def test_weights_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "text.safetensors").write_text("no weights")
    for name in ("text.safetensors", "missing.safetensors"):
        with pytest.raises(ValueError, match=rf"{name} cannot be read as a safetensors file") as caught:
            Generator(weights=str(tmp_path / name)).check(8)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Generator().check(30), "size that 4 divides, not 30; set image.size to 32"),
        (lambda: GeneratorImage(1, 6, width=2, latent=2), "not 6; set image.size to 8"),
        (lambda: GeneratorImage(0, 8, width=2, latent=2), "at least 1"),
        (lambda: Generator(width=0), "width"),
        (lambda: Generator(learn="all"), "learn.*'all'"),  # type: ignore[arg-type]
        (lambda: drawn().set_image(torch.zeros(3, 3, 8, 8)), "cannot be set to an image; use kind 'noise'"),
        (lambda: drawn().vary(torch.ones(3), torch.zeros(3, 3)), "no coarse structure and colour"),
    ],
)
def test_mistakes_are_explained(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("start", "told"),
    [
        (Black(), "kind 'black'"),
        (Grey(), "kind 'grey'"),
        (FromImage("x.png"), "kind 'image'"),
        (DeadLeaves(), "kind 'dead_leaves'"),
        (Noise(colour_spread=0.1), "noise with spreads"),
    ],
)
def test_starts_that_say_what_images_look_like_are_refused(start: Start, told: str) -> None:
    with pytest.raises(ValueError, match=f"start: {told} says what images look like, which kind 'generator' cannot"):
        ImageRule(Generator(), start)
    ImageRule(Generator(), Noise())
    ImageRule(start=start)
