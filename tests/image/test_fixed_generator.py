"""Images of a trained generator's codes: bounds, starts, gradients, other sizes, and users' own generators."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from moving import check_threads, losses_of_descent
from safetensors.torch import load_file, save_file
from torch import nn

from ensemble.config.kinds import undone_on_error
from ensemble.image.feature_inverter import BUNDLED, FeatureInverter, InverterNetwork, read_inverter
from ensemble.image.fixed_generator import CodeImage, CodeSpace
from ensemble.image.generator import Generator
from ensemble.image.parameterization import ImageParameterization
from ensemble.image.start import Black, Noise
from ensemble.machine.rng import generator
from ensemble.plugins import load_plugin
from ensemble.recipe import ImageRule, parse_recipe
from models import ModelCard

CARD = ModelCard("net", "test", 8, 10, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
SHAPES = [(4, 2, 3, 3), (3, 4, 3, 3), (3, 3, 3, 3)]


def random_tensors(seed: int = 1) -> dict[str, torch.Tensor]:
    """A file's content: codes of 2 x 2 x 2, three layers, images of 4 x 4."""
    rng = generator(seed)
    tensors = {f"weight{i}": 0.3 * torch.randn(*shape, generator=rng) for i, shape in enumerate(SHAPES)}
    tensors |= {f"bias{i}": 0.3 * torch.randn(shape[0], generator=rng) for i, shape in enumerate(SHAPES)}
    return {**tensors, "highest": 0.5 + torch.rand(2, 2, 2, generator=rng)}


def written(folder: Path, **changed: Any) -> str:
    tensors = {name: value for name, value in {**random_tensors(), **changed}.items() if value is not None}
    save_file(tensors, folder / "some.safetensors")
    return str(folder / "some.safetensors")


def small(folder: Path, n: int = 3, size: int = 4, dtype: torch.dtype = torch.float64) -> CodeImage:
    kind = Generator(pretrained=FeatureInverter(weights=written(folder)))
    kind.check(size)
    made = kind.make(n, size, card=CARD, dtype=dtype, device="cpu")
    assert isinstance(made, CodeImage)
    made.randomize(0.85, generator(2))
    return made


def test_the_network_is_that_of_plain_modules(tmp_path: Path) -> None:
    tensors = {name: value.double() for name, value in random_tensors().items()}
    layers: list[nn.Module] = []
    for i, (out, into, *_) in enumerate(SHAPES):
        layers += [nn.Upsample(scale_factor=2)] if i == 1 else []
        layer = nn.Conv2d(into, out, 3, padding=1)
        layer.weight.data, layer.bias.data = tensors[f"weight{i}"], tensors[f"bias{i}"]  # type: ignore[union-attr]
        layers += [layer, nn.Sigmoid() if i == 2 else nn.LeakyReLU(0.2)]
    images = small(tmp_path)
    torch.testing.assert_close(images(), nn.Sequential(*layers)(images.codes), rtol=0, atol=1e-12)
    assert images().shape == (3, 3, 4, 4)


@pytest.mark.parametrize("size", [4, 7])
def test_gradient_equals_finite_differences(tmp_path: Path, size: int) -> None:
    images = small(tmp_path, n=2, size=size)
    start = images.codes.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: torch.func.functional_call(images, {"codes": z}, ()), (start,))


def test_the_start_is_a_rectified_normal_within_the_bounds(tmp_path: Path) -> None:
    images = small(tmp_path, n=500)
    high = random_tensors()["highest"].double()
    drawn = torch.randn(500, 2, 2, 2, generator=generator(2), dtype=torch.float64)
    expected = torch.minimum(0.85 * high * drawn.clamp_min(0), high)
    torch.testing.assert_close(images.codes.detach(), expected)
    assert (images.codes == 0).double().mean().item() == pytest.approx(0.5, abs=0.03)
    low, top = images.bounds()
    assert not low.any() and torch.equal(top, high) and (images.codes == top).any()


def test_codes_stay_within_their_bounds(tmp_path: Path) -> None:
    images = small(tmp_path)
    codes = images.codes
    high = random_tensors()["highest"].double()
    with torch.no_grad():
        codes.copy_(torch.stack([-high, 0.5 * high, 2 * high]))
    images.project()
    assert images.codes is codes
    torch.testing.assert_close(codes.detach(), torch.stack([0 * high, 0.5 * high, high]))


def test_other_bounds_than_from_0() -> None:
    """A generator of N(0, 1) vectors: its start is not rectified."""
    space = CodeSpace(
        nn.Sequential(nn.Linear(6, 48), nn.Sigmoid(), nn.Unflatten(1, (3, 4, 4))), -2 * torch.ones(6), 2 * torch.ones(6)
    )
    images = CodeImage(400, 4, space, dtype=torch.float64)
    images.randomize(0.5, generator(3))
    assert images.codes.std().item() == pytest.approx(1.0, rel=0.1) and images.codes.abs().max() <= 2


def test_codes_are_all_that_is_optimised_and_saved(tmp_path: Path) -> None:
    images = small(tmp_path)
    assert [name for name, _ in images.named_parameters()] == ["codes"] == list(images.state_dict())
    target = small(tmp_path)
    target.randomize(0.85, generator(9))
    losses = losses_of_descent(images, target().detach(), 0.1, 40)
    assert losses[-1] < 0.2 * losses[0]


def test_the_start_depends_on_the_generator_alone(tmp_path: Path) -> None:
    single, double = small(tmp_path, dtype=torch.float32), small(tmp_path)
    torch.testing.assert_close(single().double(), double(), rtol=0, atol=1e-6)
    double.randomize(0.85, generator(5))
    assert (single().double() - double()).abs().max() > 1e-3


def test_another_size_is_antialiased_bilinear(tmp_path: Path) -> None:
    images, larger = small(tmp_path), small(tmp_path, size=9)
    expected = nn.functional.interpolate(images(), (9, 9), mode="bilinear", antialias=True)
    torch.testing.assert_close(larger(), expected)


# --- the bundled one ------------------------------------------------------------------------------------------


def test_the_bundled_generator_and_its_record() -> None:
    images = Generator(pretrained=FeatureInverter()).make(4, 32, card=CARD, dtype=torch.float32, device="cpu")
    assert isinstance(images, CodeImage) and images.codes.shape == (4, 64, 4, 4)
    Noise(scale=0.85).set(images, generator(6))
    assert images().shape == (4, 3, 32, 32) and images().std() > 0.1
    low, high = images.bounds()
    assert not low.any() and (high > 0).all()
    record = json.loads(BUNDLED.with_suffix(".json").read_text())
    assert record["sha256"] == hashlib.sha256(BUNDLED.read_bytes()).hexdigest()
    figures = record["figures"]
    assert figures["image_mse"] < 0.5 * figures["mean_image_image_mse"]
    assert figures["code_cosine"] > 0.9 > figures["mean_image_code_cosine"]


def test_gradients_have_the_same_bits_on_any_number_of_threads() -> None:
    def made() -> ImageParameterization:
        images = Generator(pretrained=FeatureInverter()).make(6, 40, card=CARD, dtype=torch.float32, device="cpu")
        images.randomize(0.85, generator(7))
        return images

    check_threads(made, torch.randn(6, 3, 40, 40, generator=generator(8)))


def test_weights_in_half_precision_are_computed_in_single() -> None:
    assert load_file(BUNDLED)["weight0"].dtype == torch.float16
    network = read_inverter(BUNDLED).network
    assert isinstance(network, InverterNetwork) and network.weights[0].dtype == torch.float32


# --- mistakes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"highest": None}, "holds no feature inverter; give a file of demos/train_feature_inverter.py"),
        ({"bias1": None}, "holds no feature inverter"),
        ({"extra": torch.ones(1)}, "holds no feature inverter"),
        ({"weight0": torch.full((4, 2, 3, 3), torch.nan)}, "not all values of weight0 are finite"),
        ({"weight1": torch.zeros(3, 5, 3, 3)}, r"does not take codes of \[1, 2, 2, 2\]"),
        ({"highest": torch.ones(7, 2, 2)}, r"does not take codes of \[1, 7, 2, 2\]"),
        ({"highest": torch.ones(2, 2, 3)}, r"come images \[1, 3, 4, 6\], not \[1, 3, S, S\]"),
        ({"weight2": torch.zeros(1, 3, 3, 3), "bias2": torch.zeros(1)}, r"come images \[1, 1, 4, 4\]"),
        ({"highest": -torch.ones(2, 2, 2)}, "low <= high"),
    ],
)
def test_files_that_do_not_fit(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    kind = Generator(pretrained=FeatureInverter(weights=written(tmp_path, **changed)))
    with pytest.raises(ValueError, match=message) as caught:
        kind.check(4)
    told = str(caught.value)
    assert told.startswith("image.parameterization.pretrained") and "\n" not in told


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "text.safetensors").write_text("no weights")
    for name in ("text.safetensors", "missing.safetensors"):
        with pytest.raises(ValueError, match=rf"weights: .*{name} cannot be read as a safetensors file") as caught:
            Generator(pretrained=FeatureInverter(weights=str(tmp_path / name))).check(4)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: Generator(pretrained=FeatureInverter(), width=8),
            "width: a pretrained generator is as it was trained",
        ),
        (lambda: Generator(pretrained=FeatureInverter(), learn="latents"), "learn: a pretrained generator"),
        (lambda: Generator(pretrained=FeatureInverter(), weights="x"), "weights: a pretrained generator"),
        (lambda: ImageRule(Generator(pretrained=FeatureInverter()), Black()), "which kind 'generator' cannot be told"),
        (lambda: recipe({"kind": "feature_invertor"}), "pretrained.*'feature_invertor'.*feature_inverter"),
        (lambda: recipe({"kind": "feature_inverter", "weight": "x"}), "weight.*weights"),
    ],
)
def test_mistakes_are_explained(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_an_image_that_cannot_be_set(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be set to an image; use kind 'noise'"):
        small(tmp_path).set_image(torch.zeros(3, 3, 4, 4))


# --- a user's own ---------------------------------------------------------------------------------------------


def recipe(pretrained: Any) -> Any:
    image = {"size": 8, "parameterization": {"kind": "generator", "pretrained": pretrained}}
    return parse_recipe({"teachers": [{"model": "resnet20_cifar"}], "image": image})


class Forward(nn.Module):
    """A network that is one function."""

    def __init__(self, forward: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.forward = forward  # type: ignore[method-assign]


def filled(codes: torch.Tensor, value: float = 0.5) -> torch.Tensor:
    return torch.full((len(codes), 3, 8, 8), value)


@pytest.mark.parametrize(
    ("forward", "low", "high", "message"),
    [
        (lambda codes: {}["nothing"], torch.zeros(5), torch.ones(5), r"does not take codes of \[1, 5\]: .*nothing"),
        (lambda codes: [filled(codes)], torch.zeros(5), torch.ones(5), r"does not take codes of \[1, 5\]"),
        (filled, 0.0, 1.0, "`low` and `high` are tensors"),
        (filled, torch.tensor(0.0), torch.tensor(1.0), "have one dimension or more"),
        (filled, torch.zeros(5), torch.full((5,), torch.inf), "finite numbers"),
        (lambda codes: filled(codes, -1), torch.zeros(5), torch.ones(5), r"RGB in \[0, 1\], .* are -1 to -1"),
        (lambda codes: filled(codes, torch.nan), torch.zeros(5), torch.ones(5), r"RGB in \[0, 1\]"),
    ],
)
def test_what_is_no_generator(forward: Any, low: Any, high: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        CodeImage(2, 8, CodeSpace(Forward(forward), low, high))
    assert str(caught.value).startswith("image.parameterization.pretrained: ") and "\n" not in str(caught.value)


def test_images_may_lie_outside_by_rounding() -> None:
    space = CodeSpace(Forward(lambda codes: filled(codes, 1.0005)), torch.zeros(5), torch.ones(5))
    assert CodeImage(2, 8, space)().shape == (2, 3, 8, 8)


@pytest.fixture
def forgotten() -> Iterator[None]:
    """What a test registers is taken back."""
    with pytest.raises(InterruptedError), undone_on_error():
        yield
        raise InterruptedError


PLUGIN = """
from dataclasses import dataclass
import torch
from torch import nn
from ensemble import CodeSpace, FixedGenerator

@dataclass(frozen=True)
class Stripes(FixedGenerator, kind="stripes"):
    contrast: float = 1.0

    def load(self) -> CodeSpace:
        network = nn.Sequential(nn.Linear(5, 3 * 8 * 8), nn.Sigmoid(), nn.Unflatten(1, (3, 8, 8)))
        nn.init.constant_(network[0].weight, self.contrast)
        return CodeSpace(network, low=-torch.ones(5), high=torch.ones(5))
"""


@pytest.mark.usefixtures("forgotten")
def test_a_plugin_brings_a_generator(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(PLUGIN)
    assert load_plugin(file) == ("FixedGenerator.stripes",)
    made = recipe({"kind": "stripes", "contrast": 2}).image.parameterization
    images = made.make(2, 8, card=CARD, dtype=torch.float64, device="cpu")
    assert isinstance(images, CodeImage) and images.codes.shape == (2, 5) and images().shape == (2, 3, 8, 8)
    with pytest.raises(ValueError, match=r"'stripe'.*did you mean 'stripes'"):
        recipe({"kind": "stripe"})
