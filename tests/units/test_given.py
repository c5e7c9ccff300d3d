"""What callers give that stands in the place of a method's: it keeps what the units need."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_unit_readings import CARD, Net

from ensemble import prefer
from ensemble.recipe import ImageRule
from ensemble.units.layer_values import write_layer_values

SHORT = {"iterations": 1, "progress": False, "device": "cpu", "precision": "fp32"}


def pictures(folder: Path, count: int) -> Path:
    folder.mkdir()
    for k in range(count):
        pixels = np.random.default_rng(k).integers(0, 256, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{k}.png")
    return folder


@pytest.mark.parametrize(
    "given",
    [
        {"image": {"parameterization": {"kind": "pixels"}}},
        {"image": ImageRule()},
        {"overrides": "image={parameterization: {kind: pixels}}"},
    ],
)
def test_an_image_of_the_callers_has_the_size_and_as_many_alike(given: dict[str, Any], tmp_path: Path) -> None:
    real = pictures(tmp_path / "real", 2)
    made = prefer([(Net(), CARD)], "bn:0,2,4", size=12, real=real, **SHORT, **given)  # type: ignore[arg-type]
    assert made is not None and made.top is not None
    assert made.images.shape[-1] == made.top.shape[-1] == 12 and made.results.recipe.image.alike == 3


def test_one_real_image_is_no_scale(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds one image; a mean and a deviation take two"):
        prefer([(Net(), CARD)], "bn:0", real=pictures(tmp_path / "real", 1), **SHORT)  # type: ignore[arg-type]


def test_a_weight_of_the_activation_brings_no_other_term() -> None:
    networks = [(Net(), replace(CARD, name="a")), (Net(), replace(CARD, name="b"))]
    with pytest.raises(ValueError, match="no selection names b"):
        prefer(networks, "a/bn:0", overrides="objectives[0].weight=2", **SHORT)  # type: ignore[arg-type]
    made = prefer(networks, "a/bn:0", overrides="objectives[1]={kind: bn_matching}", **SHORT)  # type: ignore[arg-type]
    assert made is not None and len(made.rows) == 1


def test_a_class_is_of_the_network_that_has_it_in_whichever_order() -> None:
    names = ("cat", "dog", "hen", "owl")
    networks = [(Net(), replace(CARD, name=name, class_names=names)) for name in ("a", "b")]
    units = ["b/logits:1", "a/bn:0", "a/logits:1 + b/logits:2", "a/logits:0 + b/logits:0"]
    for order in (networks, networks[::-1]):
        made = prefer(order, units, **SHORT)  # type: ignore[arg-type]
        assert made is not None
        said = [(row.get("class"), row["of_class"]) for row in made.rows]
        assert said == [(names[1], True), (None, False), (None, False), (names[0], True)]


def test_a_layer_of_another_network_has_no_values(tmp_path: Path) -> None:
    picture = pictures(tmp_path / "real", 1) / "0.png"
    with pytest.raises(ValueError, match="the network is called 'resnet20_cifar', not 'nobody'"):
        write_layer_values("resnet20_cifar", "nobody/layer1.1", picture, tmp_path / "a.npy")
    write_layer_values("resnet20_cifar", "resnet20_cifar/layer1.1", picture, tmp_path / "a.npy")
    write_layer_values("resnet20_cifar", "layer1.1", picture, tmp_path / "b.npy")
    assert torch.equal(*(torch.from_numpy(np.load(tmp_path / name)) for name in ("a.npy", "b.npy")))
    for target in (picture / "c.npy", "/proc/c.npy"):
        with pytest.raises(ValueError, match=r"c\.npy cannot be written"):
            write_layer_values("resnet20_cifar", "layer1.1", picture, target)
