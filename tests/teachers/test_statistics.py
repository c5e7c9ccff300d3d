"""What a teacher's BatchNorm layers saw: order, sums over shards, and logits that stay what they were."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import nn

from ensemble.teachers.observing import watch
from ensemble.teachers.statistics import BNLayer, BNStatistics
from ensemble.teachers.teacher import Teacher
from models import ModelCard


class Winding(nn.Module):
    """Runs its layers in another order than it declares them; `middle` twice, `unused` never."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.BatchNorm2d(9)
        self.last = nn.BatchNorm2d(6, affine=False)
        self.middle = BatchNormAct2d(5)
        self.first = nn.BatchNorm2d(3, eps=1e-2)
        self.conv1 = nn.Conv2d(3, 5, 3, padding=1)
        self.conv2 = nn.Conv2d(5, 5, 3, stride=2, padding=1)
        self.conv3 = nn.Conv2d(5, 6, 3, padding=1)
        self.head = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv1(self.first(x))
        x = self.conv2(self.middle(x))
        x = self.conv3(self.middle(x))
        return self.head(self.last(x).relu().mean((2, 3)))


def awaken(net: nn.Module, seed: int = 0) -> nn.Module:
    """`net` with random running statistics and affine maps."""
    rng = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            module.running_mean.copy_(torch.randn(module.num_features, generator=rng) * 0.3)
            module.running_var.copy_(torch.rand(module.num_features, generator=rng) + 0.5)
            if module.affine:
                nn.init.normal_(module.weight, 1, 0.3, generator=rng)
                nn.init.normal_(module.bias, 0, 0.3, generator=rng)
    return net


def make(name: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Winding() if name == "winding" else timm.create_model(name, num_classes=4)
    return awaken(net).double()


def card(size: int = 8) -> ModelCard:
    return ModelCard("tiny", "test", size, 4, mean=(0.5, 0.4, 0.45), std=(0.2, 0.25, 0.3))


def normalised(view: torch.Tensor, of: ModelCard) -> torch.Tensor:
    mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (of.mean, of.std))
    return (view - mean) / std


def draw_view(n: int, size: int = 8) -> torch.Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def inputs_of(net: nn.Module, x: torch.Tensor) -> list[tuple[str, nn.BatchNorm2d, np.ndarray]]:
    """(name, layer, input (N, C, H, W)) of each run of a BN layer of the original network, eval mode."""
    seen: list[tuple[str, nn.BatchNorm2d, np.ndarray]] = []
    net = copy.deepcopy(net).eval()
    for name, module in net.named_modules():
        if isinstance(module, nn.BatchNorm2d):

            def hook(m: nn.Module, args: tuple[torch.Tensor, ...], name: str = name) -> None:
                assert isinstance(m, nn.BatchNorm2d)
                seen.append((name, m, args[0].numpy().copy()))

            module.register_forward_pre_hook(hook)
    with torch.no_grad():
        net(x)
    return seen


def test_layers_are_listed_in_the_order_in_which_they_run() -> None:
    teacher = Teacher("t", make("winding"), card(), dtype=torch.float64)
    assert teacher.statistics is not None
    assert teacher.statistics.layers == (
        BNLayer("first", 0, 3, 64),
        BNLayer("middle", 3, 5, 64),
        BNLayer("middle", 8, 5, 16),
        BNLayer("last", 13, 6, 16),
    )
    assert teacher.left_out == {"unused": "it never runs in eval mode"}
    assert teacher.channels == 19
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in teacher.net.modules())


def test_a_layer_without_variance_has_no_unit_and_is_left_out() -> None:
    net = make("winding")
    net.get_submodule("middle").running_var.zero_()
    teacher = Teacher("t", net, card(), dtype=torch.float64)
    assert teacher.left_out["middle"] == "all its running variances are 0"
    assert teacher.statistics is not None and {layer.name for layer in teacher.statistics.layers} == {"first", "last"}


@pytest.mark.parametrize("name", ["winding", "test_resnet", "test_efficientnet"])
def test_batch_statistics_are_numpys(name: str) -> None:
    net, size = make(name), 8 if name == "winding" else 32
    teacher, view = Teacher("t", net, card(size), dtype=torch.float64), draw_view(5, size)
    assert teacher.statistics is not None
    offset, var = teacher.statistics.batch_statistics(teacher.observe(view).moments, 5)
    executed = inputs_of(net, normalised(view, card(size)))
    assert [name for name, *_ in executed] == [layer.name for layer in teacher.statistics.layers]
    for (_, norm, x), layer in zip(executed, teacher.statistics.layers, strict=True):
        mean = x.mean((0, 2, 3))
        assert norm.running_mean is not None and norm.running_var is not None
        span = slice(layer.start, layer.start + layer.channels)
        np.testing.assert_allclose(teacher.statistics.mean[span], norm.running_mean, rtol=1e-14)
        np.testing.assert_allclose(teacher.statistics.var[span], norm.running_var, rtol=1e-14)
        np.testing.assert_allclose(offset[span], mean - norm.running_mean.numpy(), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(var[span], x.var((0, 2, 3)), rtol=1e-9, atol=1e-12)


def test_moments_of_shards_add_up() -> None:
    teacher, view = Teacher("t", make("winding"), card(), dtype=torch.float64), draw_view(7)
    whole = teacher.observe(view)
    shards = [teacher.observe(view[a:b]) for a, b in ((0, 1), (1, 3), (3, 7))]
    torch.testing.assert_close(torch.stack([s.moments for s in shards]).sum(0), whole.moments, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.cat([s.logits for s in shards]), whole.logits, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["winding", "test_resnet", "test_efficientnet"])
def test_logits_stay_those_of_the_original(name: str) -> None:
    net, size = make(name), 8 if name == "winding" else 32
    view = draw_view(3, size)
    logits = Teacher("t", net, card(size), dtype=torch.float64).observe(view).logits
    with torch.no_grad():
        expected = copy.deepcopy(net).eval()(normalised(view, card(size)))
    torch.testing.assert_close(logits, expected, rtol=1e-12, atol=1e-12)


def test_fused_activation_is_kept() -> None:
    assert any(isinstance(m, BatchNormAct2d) for m in make("test_efficientnet").modules())
    norm = awaken(nn.Sequential(BatchNormAct2d(3, act_layer=nn.SiLU))).double().eval()
    x = draw_view(2)
    expected = norm(x)
    sink: list[torch.Tensor] = []
    watch(norm, sink, lambda: norm(x), 2)
    sink.clear()
    torch.testing.assert_close(norm(x), expected, rtol=1e-13, atol=1e-13)
    assert len(sink) == 1


def test_a_layer_under_two_names_is_one_module() -> None:
    shared = nn.BatchNorm2d(3)
    net = nn.Sequential(shared, nn.ReLU(), shared, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4))
    teacher = Teacher("t", net, card())
    assert teacher.statistics is not None
    assert teacher.net.get_submodule("0") is teacher.net.get_submodule("2")
    assert [layer.name for layer in teacher.statistics.layers] == ["0", "0"]
    assert not teacher.left_out


def test_layers_without_running_statistics_are_left_alone() -> None:
    net = nn.Sequential(
        nn.BatchNorm2d(3, track_running_stats=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4)
    )
    teacher = Teacher("t", net, card())
    assert teacher.statistics is None
    assert teacher.observe(draw_view(2).float()).moments.shape == (2, 0)
    assert isinstance(teacher.net.get_submodule("0"), nn.BatchNorm2d)


def test_the_network_passed_in_is_left_as_it_was() -> None:
    net = make("winding").float().train()
    before = copy.deepcopy(net.state_dict())
    Teacher("t", net, card(), dtype=torch.bfloat16).observe(draw_view(2))
    assert net.training and isinstance(net.get_submodule("first"), nn.BatchNorm2d)
    assert all(p.requires_grad for p in net.parameters())
    for key, value in net.state_dict().items():
        assert value.dtype == before[key].dtype and torch.equal(value, before[key])


def test_half_precision_keeps_wide_results() -> None:
    net, view = make("winding"), draw_view(4)
    exact = Teacher("t", net, card(), dtype=torch.float64).observe(view)
    teacher = Teacher("t", net.float(), card(), dtype=torch.bfloat16)
    seen = teacher.observe(view.float())
    assert seen.logits.dtype == seen.moments.dtype == torch.float32
    assert teacher.net.get_submodule("conv1").weight.dtype == torch.bfloat16
    scale = exact.moments.abs().amax(1, keepdim=True)
    assert ((seen.moments - exact.moments).abs() < 0.02 * scale).all()
    torch.testing.assert_close(seen.logits.double(), exact.logits, rtol=0, atol=0.05)


def test_views_are_resized_to_the_networks_size() -> None:
    teacher, view = Teacher("t", make("winding"), card(), dtype=torch.float64), draw_view(2, 16)[..., :12]
    resized = F.interpolate(view, (8, 8), mode="bilinear", antialias=True)
    torch.testing.assert_close(teacher.observe(view), teacher.observe(resized), rtol=1e-12, atol=1e-12)


def test_layer_norms() -> None:
    layers = (BNLayer("a", 0, 2, 1), BNLayer("b", 2, 1, 1), BNLayer("c", 3, 2, 1))
    statistics = BNStatistics(layers, torch.zeros(5, dtype=torch.float64), torch.ones(5, dtype=torch.float64))
    gap = torch.tensor([3.0, 4.0, -2.0, 0.0, 0.0], dtype=torch.float64, requires_grad=True)
    norms = statistics.layer_norms(gap)
    torch.testing.assert_close(norms, torch.tensor([5.0, 2.0, 0.0], dtype=torch.float64))
    norms.sum().backward()
    torch.testing.assert_close(gap.grad, torch.tensor([0.6, 0.8, -1.0, 0.0, 0.0], dtype=torch.float64))


def test_a_dead_channel_that_wakes_stays_of_order_one() -> None:
    """Fixed-point sums hold values up to 256."""
    layers = (BNLayer("a", 0, 2, 4), BNLayer("b", 2, 1, 4))
    var = torch.tensor([1.0, 1e-9, 5.0], dtype=torch.float64)
    statistics = BNStatistics(layers, torch.zeros(3).double(), var)
    awake = 10 * 4 * torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 5.0]], dtype=torch.float64)
    found = awake / statistics.units(10)
    assert float(found.max()) < 200
    assert torch.allclose(found[1, [0, 2]], torch.ones(2).double())
