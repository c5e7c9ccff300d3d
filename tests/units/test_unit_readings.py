"""What is read of units: against hooks, NumPy and SciPy, and a network whose channels come in another order."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from torch import nn

from ensemble.objectives.activation import Activation
from ensemble.units import layer_values, matching
from ensemble.units.excitation import Readers
from ensemble.units.matching import channel_means, correlation, matched
from ensemble.units.real import RealExcitations
from ensemble.units.receptive_field import receptive_field
from ensemble.units.robustness import BLUR, blur, jpeg, rescale
from models import ModelCard

CARD = ModelCard("tiny", "test", 8, 4, mean=(0.5, 0.4, 0.45), std=(0.2, 0.25, 0.3))


class Net(nn.Module):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.conv, self.bn, self.relu = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace=True)
            self.head = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.relu(self.bn(self.conv(x))).mean((2, 3)))


def shuffled(net: Net, order: list[int]) -> Net:
    """The same function with its channels in another order."""
    other = Net().eval()
    for name, value in net.named_parameters():
        target = other.get_parameter(name).data
        target.copy_(value[:, order] if name == "head.weight" else value if "head" in name else value[order])
    for name in ("running_mean", "running_var"):
        other.bn.get_buffer(name).copy_(net.bn.get_buffer(name)[order])
    return other


def test_readings_are_what_layers_return() -> None:
    net = Net().eval()
    images = torch.randint(256, (120, 3, 8, 8), dtype=torch.uint8)
    readers = Readers({"t": (net, CARD)}, Activation(("bn:2", "logits:1 - 2*conv:0@0,1")))
    mean, std = (torch.tensor(v)[:, None, None] for v in (CARD.mean, CARD.std))
    with torch.no_grad():
        conv = net.conv((images / 255 - mean) / std)
        bn = net.bn(conv)
        logits = net.head(bn.relu().mean((2, 3)))
    expected = torch.stack([bn[:, 2].mean((1, 2)), logits[:, 1] - 2 * conv[:, 0, 0, 1]], 1)
    torch.testing.assert_close(readers(images).float(), expected, rtol=1e-4, atol=1e-5)
    which = [k % 2 for k in range(120)]
    torch.testing.assert_close(
        readers.own(images / 255, which)["t"].float(), expected[torch.arange(120), which], rtol=1e-4, atol=1e-5
    )


def test_what_a_unit_can_see() -> None:
    """Two 3 x 3 convolutions of stride 2: by hand, a unit sees 7 pixels both ways, cut off at the border."""
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ).eval()
    readers = Readers({"t": (net, replace(CARD, input_size=32))}, Activation(("1:0@4,2", "1:1@0,0", "1:2", "logits:0")))
    assert receptive_field(readers, 0, 32) == (13, 5, 20, 12)  # 4 y - 3 to 4 y + 3
    assert receptive_field(readers, 1, 32) == (0, 0, 4, 4)
    assert receptive_field(readers, 2, 32) == receptive_field(readers, 3, 32) == (0, 0, 32, 32)


def test_a_picture_s_values_are_a_mask(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    net = Net().eval()
    monkeypatch.setattr(layer_values, "create_model", lambda name: (net, CARD))
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    file = tmp_path / "a.npy"
    layer_values.write_layer_values("t", "bn", tmp_path / "a.png", file)
    view = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    mean, std = (torch.tensor(v)[:, None, None] for v in (CARD.mean, CARD.std))
    expected = net.bn(net.conv((view / 255 - mean) / std)).detach()[0]
    np.testing.assert_allclose(np.load(file), expected, rtol=1e-4, atol=1e-5)
    readers = Readers({"t": (net, CARD)}, Activation(f"bn:mask={file}", reduction="dot_cos", power=2))
    found = readers(torch.cat([view, 255 - view]))[:, 0]  # the picture itself has a cosine of 1
    assert float(found[0]) == pytest.approx(float(expected.square().sum()), rel=1e-3) and found[1] < found[0]
    for name, message in (("a.npy", "exists; give another name"), ("a.txt", "let it end in .npy")):
        with pytest.raises(ValueError, match=message):
            layer_values.write_layer_values("t", "bn", tmp_path / "a.png", tmp_path / name)


def test_bytes_and_numbers_are_the_same_images() -> None:
    net = Net().eval()
    images = torch.randint(256, (60, 3, 8, 8), dtype=torch.uint8)
    found, same = (channel_means("t", (net, CARD), x) for x in (images, images / 255))
    mean, std = (torch.tensor(v)[:, None, None] for v in (CARD.mean, CARD.std))
    expected = net.relu(net.bn(net.conv((images / 255 - mean) / std))).mean((2, 3)).detach()
    assert list(found) == ["relu"]
    for values in (found["relu"], same["relu"]):
        torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-5)


def test_matches_are_looked_for_in_what_blocks_return() -> None:
    """Not in their last layers, to whose values they add others."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.bn(self.conv(x))

    net = nn.Sequential(nn.Conv2d(3, 6, 3), Block(), Block(), nn.Conv2d(6, 5, 3), nn.Flatten(), nn.Linear(80, 4))
    assert matching.searched(net, CARD) == ["2", "3"]


def test_what_real_images_say() -> None:
    found = RealExcitations.of(torch.tensor([[1.0, 5.0], [4.0, 5.0], [2.5, -1.0]]))
    assert found.count == 3 and found.mean.tolist() == [2.5, 3.0] and found.largest.tolist() == [4, 5]
    assert found.std.tolist() == pytest.approx([1.5, np.std([5, 5, -1], ddof=1)])
    assert found.top[0].tolist() == [1, 2, 0] and found.top.shape == (2, 3)


def test_changes_that_no_optimisation_makes() -> None:
    images = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    twin = [[ndimage.gaussian_filter(c, BLUR * 48, mode="mirror") for c in one] for one in images.double().numpy()]
    np.testing.assert_allclose(blur(images).numpy(), np.array(twin), atol=1e-5)
    smooth = torch.nn.functional.interpolate(images[:, :, :4, :4], size=48, mode="bicubic").clamp(0, 1)
    again = jpeg(smooth)
    assert 1e-4 < float((again - smooth).abs().mean()) < 0.03
    small = rescale(images)
    assert torch.equal(small[:, :, 1, 20], small[:, :, 3, 20]) and torch.equal(small[:, :, 20, 47], small[:, :, 20, 41])
    inner = np.asarray(
        Image.fromarray(images[0].permute(1, 2, 0).mul(255).byte().numpy()).resize((43, 43), Image.Resampling.BILINEAR)
    )
    assert float((small[0, :, 2:45, 2:45].permute(1, 2, 0) * 255 - torch.from_numpy(inner.copy())).abs().mean()) < 1.5


def test_correlation_is_numpys() -> None:
    a, b = torch.randn(50, 3), torch.randn(50, 4)
    b[:, 3] = 7
    found = correlation(a, b)
    np.testing.assert_allclose(found[:, :3], np.corrcoef(a.T, b[:, :3].T)[:3, 3:], atol=1e-6)
    assert found[:, 3].tolist() == [0, 0, 0]


def test_a_unit_is_matched_with_its_twin(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    order = [3, 0, 5, 1, 4, 2]
    net = Net().eval()
    networks: dict[str, nn.Module] = {"a": net, "b": shuffled(net, order)}
    monkeypatch.setattr(matching, "create_model", lambda name: (networks[name], CARD))
    for k in range(40):
        file = tmp_path / "train" / "c" / f"{k}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(k).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(file)
    found = matched(["a", "b"], ["a/relu:0-5"], tmp_path, "train")
    for k, match in enumerate(found):
        (other,) = match.others
        assert match.unit == f"a/relu:{k}" and other == f"b/relu:{order.index(k)}"
        assert match.correlations[0] == pytest.approx(1, abs=1e-4)
        assert match.selection == f"a/relu:{k} + {other}"
    networks["flat"] = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    for models, units, message in (
        (["a", "flat"], ["a/relu:0"], "flat: no layer returns maps"),
        (["a"], ["a/relu:0"], "name at least two networks"),
        (["a", "b"], ["relu:0"], "each selection is of one network, as a/LAYER:7"),
        (["a", "b"], ["c/relu:0"], "each selection is of one network"),
    ):
        with pytest.raises(ValueError, match=message):
            matched(models, units, tmp_path, "train")
