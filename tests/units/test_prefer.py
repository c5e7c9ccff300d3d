"""prefer: what a caller's settings and mistakes do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_unit_readings import CARD, Net

from ensemble import prefer
from ensemble.objectives.activation import Activation
from ensemble.units import preferred
from ensemble.units.preferred import Preferred

SHORT = {"iterations": 3, "progress": False, "device": "cpu", "precision": "fp32", "seed": 1}
UNITS = "bn:0,2"


def images(**changes: Any) -> torch.Tensor:
    preferred = prefer([(Net(), CARD)], UNITS, **{**SHORT, **changes})
    assert preferred is not None
    return preferred.images


def test_what_the_caller_set_changes_nothing() -> None:
    expected = images()
    with torch.no_grad():
        assert torch.equal(images(), expected)
    with torch.inference_mode():
        assert torch.equal(images().clone(), expected)
    torch.set_default_dtype(torch.float64)
    try:
        net = Net().float()
        found = prefer([(net, CARD)], UNITS, **SHORT)  # type: ignore[arg-type]
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert found is not None and found.images.dtype == torch.float32
    single = prefer([(net, CARD)], UNITS, **SHORT)  # type: ignore[arg-type]
    assert single is not None and torch.equal(found.images, single.images)
    assert torch.equal(images(size=np.int64(8)), expected)


def test_readings_are_those_of_the_term_that_ran() -> None:
    preferred = prefer([(Net(), CARD)], UNITS, overrides=["objectives[0].reduction=norm"], **SHORT)  # type: ignore[arg-type]
    plain = prefer([(Net(), CARD)], UNITS, overrides="objectives[0].reduction=norm", **SHORT)  # type: ignore[arg-type]
    assert preferred is not None and plain is not None and plain.rows == preferred.rows
    saved = (preferred.images * 255).round() / 255
    mean, std = (torch.tensor(v)[:, None, None] for v in (CARD.mean, CARD.std))
    net = Net().eval()
    with torch.no_grad():
        value = net.bn(net.conv((saved - mean) / std))
    for i, channel in enumerate((0, 2)):
        assert preferred.rows[i]["activation"] == pytest.approx(float(value[i, channel].norm()), rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": []}, "models: name one network or several"),
        ({"models": None}, "models: name one network or several"),
        ({"models": [{"weight": 2}]}, "models: each is a network"),
        ({"models": Path("resnet20_cfar")}, "did you mean"),
        ({"units": None}, "units: a selection or a list"),
        ({"units": 3}, "units: a selection or a list"),
        ({"images_per_unit": "2"}, "images_per_unit: a whole number"),
        ({"size": 0}, "size: a whole number"),
        ({"size": "32"}, "size: a whole number"),
        ({"bn_matching": "1"}, "bn_matching: a weight"),
        ({"targets": [0]}, "targets: it follows from `units`"),
        ({"images_per_class": 3}, "images_per_class: it follows from `units`"),
        ({"overrides": ["objectives[0].units=bn:4"]}, r"objectives\[0\].units: it follows from `units`"),
        ({"overrides": ["images_per_class=2"]}, "images_per_class: it follows from `units`"),
        ({"overrides": ["objectives[0]={kind: activation, units: 'bn:4'}"]}, r"objectives\[0\]: it follows"),
        ({"overrides": ["teachers[0].model=resnet20_cifar"]}, r"teachers\[0\].model: it follows"),
        ({"teachers": ["resnet20_cifar"]}, "teachers: it follows"),
        ({"terms": [Activation("bn:1")]}, "terms: what is to be excited"),
        ({"method": "gdd"}, "method: 'gdd' is none"),
        ({"images_per_unit": True}, "images_per_unit: a whole number"),
        ({"size": True}, "size: a whole number"),
        ({"bn_matching": True}, "bn_matching: a weight"),
        ({"real": 3}, "real: a path, not 3"),
        ({"output": 3}, "output: a path, not 3"),
        ({"split": "test"}, "split: it says which of the real images"),
        ({"real": "any", "split": 3}, "split: the name of one, not 3"),
        ({"overrides": None}, "overrides: one or a list of some"),
        ({"overrides": [3]}, "overrides: one or a list of some"),
        ({"image": {"size": 16}}, "image.size: give size"),
        ({"overrides": ["image.size=16"]}, "image.size: give size"),
        ({"overrides": ["image['size']=16"]}, "image.size: give size"),
        ({"overrides": ["image={size: 16}"]}, "image.size: give size"),
        ({"resume": True}, "resume: there is no run to go on with"),
        ({"resume": True, "overwrite": True, "output": "any"}, "resume and overwrite: give one of them"),
        ({"verifiers": [(Net(), CARD)]}, "they read classes, and not every unit is one"),
    ],
)
def test_mistakes_are_one_line(changes: dict[str, Any], message: str) -> None:
    given = {"models": [(Net(), CARD)], "units": UNITS, **SHORT, **changes}
    with pytest.raises(ValueError, match=message) as caught:
        prefer(given.pop("models"), given.pop("units"), **given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", ["fourier", "maco"])
def test_units_at_places_are_seen_at_the_whole_size(method: str, tmp_path: Path) -> None:
    """A smaller view has another map: the place would be elsewhere, and a mask would fit nothing."""
    np.save(tmp_path / "mask.npy", np.eye(36, dtype=np.float32)[:6].reshape(6, 6, 6))
    for units, smaller in (("conv:0", True), ("conv:0@centre", True), ("conv:0@5,5", False)):
        made = prefer([(Net(), CARD)], units, method=method, **SHORT)  # type: ignore[arg-type]
        assert made is not None and (made.results.recipe.stages[0].size is not None) == smaller
    made = prefer([(Net(), CARD)], f"conv:mask={tmp_path / 'mask.npy'}", method=method, **SHORT)  # type: ignore[arg-type]
    assert made is not None and made.results.recipe.stages[0].size is None


def test_places_are_those_of_each_network_whatever_is_silent_there() -> None:
    """By hand: a unit of the 3 x 3 convolution sees three pixels both ways. Channel 0 of the first is silent."""
    net = Net()
    with torch.no_grad():
        net.bn.bias[0] = -100
    units = ["a/relu:0@1,2", "a/relu:1@1,2", "b/conv:0@3,4", "a/conv:1@0,0 + b/conv:1@3,3", "a/conv:1@0,0 + b/conv:1"]
    models = [(net, replace(CARD, name="a")), (Net(), replace(CARD, name="b"))]
    made = prefer(models, units, **SHORT)  # type: ignore[arg-type]
    assert made is not None
    seen = [row.get("receptive_field") for row in made.rows]
    assert seen == [[1, 2, 4, 5], [1, 2, 4, 5], [3, 4, 6, 7], [0, 0, 6, 6], None]


def test_above_counts_where_all_real_activations_are_negative(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    for k in range(4):
        pixels = np.random.default_rng(k).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "real" / f"{k}.png")
    made = prefer([(Net(), CARD)], "-relu:0", real=tmp_path / "real", **SHORT | {"iterations": 60})  # type: ignore[arg-type]
    assert made is not None
    (row,) = made.rows
    assert row["largest"] < 0 and row["of_largest"] is None
    assert row["above"] is (row["activation"] > row["largest"]) is True


@pytest.mark.parametrize("method", ["gd", "lbfgs"])
def test_a_unit_has_the_same_images_whichever_others_are_asked_for(method: str) -> None:
    settings = {"method": method, "images_per_unit": 2, **SHORT, "iterations": 8}
    several = prefer([(Net(), CARD)], "bn:0-3", **settings)  # type: ignore[arg-type]
    assert several is not None
    for unit in (0, 2):
        alone = prefer([(Net(), CARD)], f"bn:{unit}", **settings)  # type: ignore[arg-type]
        assert alone is not None
        torch.testing.assert_close(alone.images, several.images[[unit, unit + 4]], rtol=0, atol=1e-4)
        assert (alone.images[0] - alone.images[1]).abs().max() > 0.05


@pytest.mark.parametrize(
    ("units", "captions"),
    [
        (["bn:0", "bn:1"], ["bn:0", "bn:1"]),
        (["n0/bn:0", "n0/bn:2 - n0/bn:1"], ["bn:0", "bn:2 - bn:1"]),
        (["2*n0/bn:0", "-n0/conv:1 + 3*n0/bn:1"], ["2*bn:0", "-conv:1 + 3*bn:1"]),
        (["n0/bn:dir=n0/cat.npy"], ["bn:dir=n0/cat.npy"]),
        (["n0/bn:0", "n1/bn:0"], ["n0/bn:0", "n1/bn:0"]),
        (["bn:0", "n1/bn:0"], ["bn:0", "n1/bn:0"]),
        (["logits:1", "bn:0"], ["star", "bn:0"]),
    ],
)
def test_sheets_name_the_network_where_there_are_two(
    units: list[str], captions: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[object] = []
    monkeypatch.setattr(preferred, "draw_grid", lambda *given, **how: shown.append((given[2], how["ends"])))
    results = SimpleNamespace(images=torch.zeros(len(units), 3, 8, 8))
    rows = [{"unit": unit, "class": "star"} for unit in units if unit.startswith("logits")]
    Preferred(results, tuple(units), rows).sheet()  # type: ignore[arg-type]
    assert shown == [(captions, True)]


def test_lbfgs_starts_where_rectified_units_have_a_gradient() -> None:
    """Of these, as of a seventh of the layer, noise excites none."""
    found = prefer("resnet20_cifar", "layer3.1:5,15,53,55", method="lbfgs", **{**SHORT, "iterations": 5})  # type: ignore[arg-type]
    assert found is not None and all(row["activation"] > 0 for row in found.rows) and not found.warnings
