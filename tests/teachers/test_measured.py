"""Layers without running statistics: measured on images, matched by a teacher, against plain hooks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from measured_networks import CARD, MEAN, NETWORKS, STD, Vit, measured, network, photographs
from safetensors.torch import load_file, save_file
from torch import nn

from ensemble.objectives.bn_matching import BNMatching
from ensemble.objectives.terms import Slice
from ensemble.teachers.calibration import measure
from ensemble.teachers.convolutions import SpaceToDepthConv
from ensemble.teachers.measured import Measurement, read_measurement, write_measurement
from ensemble.teachers.teacher import Teacher
from models import Weights

INPUTS = {
    "vit": ["blocks.0.norm1", "blocks.0.norm2", "blocks.1.norm1", "blocks.1.norm2", "norm"],
    "convnext": ["norm", "block.norm", "groups"],
    "mixed": ["bn1", "conv2", "bn2", "short", "conv2#2", "head"],
}
every = pytest.mark.parametrize("name", NETWORKS)


def values_of(name: str, net: nn.Module, view: torch.Tensor) -> dict[str, torch.Tensor]:
    """By plain hooks on a copy: what each layer sees, as rows of channels, in float64."""
    net, seen = copy.deepcopy(net).double(), dict[str, torch.Tensor]()
    for key in INPUTS[name]:
        if "#" in key:
            continue

        def hook(module: nn.Module, inputs: tuple[Any, ...], key: str = key) -> None:
            x = inputs[0]
            is_first = x.ndim == 4 and not (name == "convnext" and key == "block.norm")
            rows = x.movedim(1, -1) if is_first else x
            seen[f"{key}#2" if key in seen else key] = rows.reshape(len(x), -1, rows.shape[-1])

        net.get_submodule(key).register_forward_pre_hook(hook)
    mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (MEAN, STD))
    net((view.double() - mean) / std)
    return seen


@every
def test_mean_and_variance_are_those_of_all_images(name: str) -> None:
    net, found = measured(name)
    with torch.no_grad():
        seen = values_of(name, net, photographs(40))
    assert list(found.levels) == INPUTS[name] and found.images == 40
    assert set(found.layers) == {key for key in INPUTS[name] if "#" not in key and "bn" not in key}
    for key, layer in found.layers.items():
        rows = torch.cat([values.flatten(0, 1) for other, values in seen.items() if other.partition("#")[0] == key])
        torch.testing.assert_close(layer.mean, rows.mean(0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(layer.var, rows.var(0, correction=0), rtol=1e-4, atol=1e-5)


def test_levels_are_the_distances_of_batches() -> None:
    net, found = measured("vit", 1200)
    teacher = Teacher("vit", net, CARD, measured=found)
    statistics = teacher.statistics
    assert statistics is not None and statistics.levels_measured
    with torch.no_grad():
        batches = photographs(20 * 150, seed=5).split(20)
        gaps = [torch.stack(statistics.distances(teacher.observe(batch).moments.double(), 20)) for batch in batches]
    expected = torch.stack(gaps).square().mean(0).sqrt()
    torch.testing.assert_close(torch.stack(statistics.level(20)), expected, rtol=0.12, atol=0)


def test_a_mean_far_from_zero_does_not_cancel() -> None:
    class Far(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.head = nn.GroupNorm(1, 3), nn.Linear(3, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.norm(1000 + x).mean((2, 3)))

    images = photographs(30)
    found = measure(Far(), CARD, [images])
    x = 1000 + ((images.double() - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None])
    torch.testing.assert_close(found.layers["norm"].var, x.movedim(1, -1).flatten(0, -2).var(0), rtol=1e-3, atol=0)


@pytest.mark.parametrize("form", ["plain", "rewritten", "compiled"])
@every
def test_observed_are_the_inputs(name: str, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64: logits and the batch's mean and variance at each layer."""
    net, found = measured(name)
    view = torch.rand(5, 3, 12, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    teacher = Teacher(name, net.double(), CARD, dtype=torch.float64, measured=found)
    if form == "rewritten":
        before = teacher.net
        teacher.rewrite()
        if name == "mixed":
            assert teacher.net is not before and any(isinstance(m, SpaceToDepthConv) for m in teacher.net.modules())
    if form == "compiled":
        original = torch.compile
        monkeypatch.setattr(torch, "compile", lambda f, **options: original(f, **options, backend="aot_eager"))
        teacher.compile()
    seen = teacher.observe(view)
    expected = values_of(name, net, view)
    assert teacher.statistics is not None and teacher.statistics.keys == list(expected) == INPUTS[name]
    offset, var = teacher.statistics.batch_statistics(seen.moments, 5)
    for layer, rows in zip(teacher.statistics.layers, expected.values(), strict=True):
        span = slice(layer.start, layer.start + layer.channels)
        mean = teacher.statistics.mean[span] + offset[span]
        torch.testing.assert_close(mean, rows.flatten(0, 1).mean(0), rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(var[span], rows.flatten(0, 1).var(0, correction=0), rtol=1e-9, atol=1e-11)
    mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (MEAN, STD))
    torch.testing.assert_close(seen.logits, net((view - mean) / std), rtol=1e-9, atol=1e-11)


def loss_of(teacher: Teacher) -> Callable[[torch.Tensor], torch.Tensor]:
    """The relative BN loss, written in plain torch."""
    profile, term = teacher.profile(), BNMatching(convention="relative")
    statistics = profile.statistics
    assert statistics is not None

    def loss(view: torch.Tensor) -> torch.Tensor:
        batch = Slice(0, len(view), len(view), torch.zeros(len(view), dtype=torch.long), profile, 12)
        sums = term.sums(teacher.observe(view), batch)
        offset, var = statistics.batch_statistics(sums * statistics.units(len(view)), len(view))
        gaps = statistics.layer_norms(offset) / statistics.mean_scale
        return (gaps + statistics.layer_norms(var - statistics.var) / statistics.var_scale).mean()

    return loss


@every
def test_gradient_by_differences(name: str) -> None:
    net, found = measured(name)
    teacher = Teacher(name, net.double(), CARD, dtype=torch.float64, measured=found)
    loss, rng = loss_of(teacher), torch.Generator().manual_seed(2)
    view = torch.rand(2, 3, 12, 12, generator=rng, dtype=torch.float64).requires_grad_()
    (slope,) = torch.autograd.grad(loss(view), view)
    step = torch.randn(view.shape, generator=rng, dtype=torch.float64) * 1e-6
    with torch.no_grad():
        difference = (loss(view + step) - loss(view - step)) / 2
    assert float(difference) == pytest.approx(float((slope * step).sum()), rel=1e-5)


@every
def test_half_precision_and_stages(name: str) -> None:
    net, found = measured(name)
    view = photographs(4, seed=9)
    exact = Teacher(name, net, CARD, measured=found)
    half = Teacher(name, net, CARD, dtype=torch.bfloat16, measured=found)
    half.admit(6, 12)
    half.rewrite()
    assert half.dtype == torch.bfloat16 and not half.notes
    assert half.statistics is not None and half.statistics.at(6).levels_measured
    a, b = exact.observe(view).moments, half.observe(view).moments
    assert (a - b).norm() < 0.05 * a.norm()
    small = half.observe(view[:, :, ::2, ::2]).moments
    assert small.shape == a.shape


def test_a_teacher_leaves_the_network_alone() -> None:
    net, found = measured("vit")
    Teacher("vit", net, CARD, measured=found)
    assert not any(module._forward_pre_hooks for module in net.modules())


# --- which layers ---------------------------------------------------------------------------------------------


def test_further_layers_by_patterns() -> None:
    found = measure(network("vit"), CARD, [photographs(8)], layers=["blocks.1.*", "head"])
    names = [
        "blocks.1.norm1",
        "blocks.1.qkv",
        "blocks.1.proj",
        "blocks.1.norm2",
        "blocks.1.fc1",
        "blocks.1.fc2",
        "head",
    ]
    assert list(found.levels) == names
    assert [len(found.layers[name].mean) for name in names] == [6, 6, 6, 6, 6, 12, 6]
    with pytest.raises(ValueError, match=r"matches 'layer\*'; there are 15: embed, blocks.0.norm1, blocks.0.norm2, .."):
        measure(network("vit"), CARD, [photographs(8)], layers=["layer*"])


def test_a_network_with_running_statistics_has_levels_alone() -> None:
    found = measure(network("mixed"), CARD, photographs(8).split(3))
    assert list(found.levels) == ["bn1", "bn2"] and not found.layers
    teacher = Teacher("mixed", network("mixed"), CARD, measured=found)
    assert teacher.statistics is not None and teacher.statistics.levels_measured


class Odd(Vit):
    """A norm of what no image changes, one that is called by name, and one that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_of_places, self.norm_by_name = nn.LayerNorm(6), nn.LayerNorm(6)
        self.norm_unused, self.blocks = nn.LayerNorm(6), nn.Sequential()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = x + self.norm_of_places(self.places[:, 1:].expand(len(x), -1, -1))
        return self.head(self.norm(self.norm_by_name(input=x)).mean(1))


def test_what_cannot_be_measured_is_told() -> None:
    with pytest.warns(UserWarning, match="tiny: not measured: ") as caught:
        found = measure(Odd(), CARD, [photographs(8)])
    (text,) = [str(warning.message) for warning in caught]
    assert list(found.levels) == ["norm"]
    for words in (
        "norm_by_name (its input is no",
        "norm_unused (it never runs",
        "norm_of_places (its input does not dif",
    ):
        assert words in text


def test_nothing_to_measure() -> None:
    bare = nn.Sequential(nn.Flatten(), nn.Linear(432, 4))
    with pytest.raises(ValueError, match=r"tiny: no layer can be measured; it has no norm"):
        measure(bare, CARD, [photographs(4)])
    for images in (0, 1):
        with pytest.raises(ValueError, match=rf"levels: {images} image; give at least two"):
            measure(network("vit"), CARD, photographs(images).split(2) if images else [])


def test_parts_may_be_single_images() -> None:
    images = photographs(9)
    found = measure(network("vit"), CARD, images.split(1))
    assert found.images == 9
    other = measure(network("vit"), CARD, [images])
    torch.testing.assert_close(found.layers["norm"].var, other.layers["norm"].var, rtol=1e-5, atol=0)


def test_all_images_alike() -> None:
    with pytest.raises(ValueError, match=r"no layer can be measured; blocks.0.norm1 .its input does not differ"):
        measure(network("vit"), CARD, [torch.full((4, 3, 12, 12), 0.3)])


# --- the file -------------------------------------------------------------------------------------------------


@every
def test_the_file_says_what_was_measured(name: str, tmp_path: Path) -> None:
    _, found = measured(name)
    files = [tmp_path / key for key in ("a.safetensors", "b.safetensors")]
    for file in files:
        write_measurement(file, found)
    read = read_measurement(files[0])
    assert files[0].read_bytes() == files[1].read_bytes() and read.digest == found.digest
    assert replace(read, layers={}, levels={}) == replace(found, layers={}, levels={})
    assert read.levels == found.levels
    for key, layer in found.layers.items():
        assert read.layers[key].dim == layer.dim
        assert torch.equal(read.layers[key].mean, layer.mean) and torch.equal(read.layers[key].var, layer.var)


def test_files_that_are_none(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    with pytest.raises(ValueError, match=r"statistics: .* is no file; invert.py calibrate writes one"):
        read_measurement(file)
    _, found = measured("convnext")
    write_measurement(file, found)
    whole = file.read_bytes()
    tensors = load_file(file)
    for damaged in (b"", b"text", whole[:-9], whole.replace(b'\\"input_size\\": 12', b'\\"input_size\\": "1"')):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"is no file of invert.py calibrate, or is damaged"):
            read_measurement(file)
    save_file(tensors, file)
    with pytest.raises(ValueError, match=r"is no file of invert.py calibrate"):
        read_measurement(file)
    nan = replace(found, layers={k: replace(v, mean=v.mean * float("nan")) for k, v in found.layers.items()})
    flat = replace(found, layers={k: replace(v, var=v.var * 0) for k, v in found.layers.items()})
    for wrong in (nan, flat, replace(found, levels={}), replace(found, levels={"norm": found.levels["norm"]})):
        write_measurement(file, wrong)
        with pytest.raises(ValueError, match=r"is no file of invert.py calibrate"):
            read_measurement(file)


def other_weights(net: nn.Module) -> nn.Module:
    torch.nn.init.normal_(net.head.weight)  # type: ignore[union-attr,arg-type]
    return net


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda net, card, found: (network("convnext"), card, found), "t has no layer blocks.0.norm1; .* of tiny"),
        (lambda net, card, found: (Vit(8), card, found), "of other weights than t has"),
        (lambda net, card, found: (other_weights(net), card, found), "of other weights than t has"),
        (lambda net, card, found: (net, replace(card, mean=(0.1,) * 3), found), "or of another mean and std"),
        (lambda net, card, found: (net, replace(card, input_size=16), found), "12 pixels, and t takes 16"),
        (
            lambda net, card, found: (
                net,
                card,
                replace(found, layers={k: replace(v, mean=v.mean[:5]) for k, v in found.layers.items()}),
            ),
            r"5 channels were measured of blocks.0.norm1, which sees \(10, 6\)",
        ),
        (
            lambda net, card, found: (net, card, replace(found, levels={"norm": found.levels["norm"]})),
            "levels: none for blocks.0.norm1; measure them again",
        ),
    ],
)
def test_another_networks_file_is_refused(
    change: Callable[[nn.Module, Any, Measurement], tuple[nn.Module, Any, Measurement]], words: str
) -> None:
    net, card, found = change(*(lambda pair: (pair[0], CARD, pair[1]))(measured("vit")))
    with pytest.raises(ValueError, match=words):
        Teacher("t", net, card, measured=found)


def test_a_cards_levels_give_way() -> None:
    rows = {"bn1": (0.1, 0.2, 0.3, 0.4), "bn2": (0.1, 0.2, 0.3, 0.4)}
    card = replace(CARD, weights={"own": Weights("file", sha256="ab", levels=rows)}, default_weights="own")
    found = measure(network("mixed"), card, [photographs(8)])
    assert found.weights == "ab"
    teacher = Teacher("t", network("mixed"), card, measured=found)
    assert teacher.statistics is not None
    assert teacher.statistics.levels[0].tolist() != pytest.approx([0.1, 0.1])
