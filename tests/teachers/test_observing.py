"""Layers that keep running statistics, of any class and rank: the network stays what it was, moments are right."""

from __future__ import annotations

import copy
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from ensemble.teachers.observing import EmittingBatchNorm
from ensemble.teachers.teacher import Teacher
from models import ModelCard, network_input

MEAN, STD = (0.5, 0.4, 0.45), (0.2, 0.25, 0.3)
CARD = ModelCard("tiny", "test", 12, 4, mean=MEAN, std=STD)


def settled(net: nn.Module) -> nn.Module:
    """Statistics and affine maps that are not 0 and 1, as after training."""
    rng = torch.Generator().manual_seed(1)
    for module in net.modules():
        if isinstance(getattr(module, "running_mean", None), torch.Tensor):
            module.running_mean.copy_(0.3 * torch.randn(module.running_mean.shape, generator=rng))
            module.running_var.copy_(0.5 + torch.rand(module.running_var.shape, generator=rng))
            if getattr(module, "weight", None) is not None:
                with torch.no_grad():
                    module.weight.copy_(0.5 + torch.rand(module.weight.shape, generator=rng))
    return net.eval()


def trunk(norm: type[nn.Module] | object, act: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    first = nn.Conv2d(3, 6, 3, padding=1), norm(6), act()  # type: ignore[operator]
    second = nn.Conv2d(6, 8, 3, stride=2), norm(8), act()  # type: ignore[operator]
    return nn.Sequential(*first, *second, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


class Leaky(nn.BatchNorm2d):
    """A norm that activates in its own forward, as no module of torch's does."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.leaky_relu(super().forward(x), 0.1)


class Activating(nn.BatchNorm2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu_(super().forward(x))


class Own(nn.Module):
    """Running statistics under the usual names, and a map of its own."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh((x - self.running_mean[:, None, None]) / self.running_var[:, None, None].sqrt())


class Ghost(nn.BatchNorm2d):
    """Statistics of four splits of the batch one after another; eval mode uses the first."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.register_buffer("running_mean", torch.zeros(4 * channels))
        self.register_buffer("running_var", torch.ones(4 * channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n = self.num_features
        return F.batch_norm(x, self.running_mean[:n], self.running_var[:n], self.weight, self.bias, False, 0, self.eps)


class Tokens(nn.Module):
    """BatchNorm1d over vectors, over (N, C, L), and over tokens that are rows of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 5, 4, stride=4)
        self.sequence, self.rows, self.vector = nn.BatchNorm1d(5), nn.BatchNorm1d(5), nn.BatchNorm1d(5)
        self.head = nn.Linear(5, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.sequence(self.embed(x).flatten(2)).relu().transpose(1, 2)
        x = self.rows(x.flatten(0, 1)).view_as(x)
        return self.head(self.vector(x.mean(1)))


class Listed(nn.Module):
    """Layers that the forward pass takes from a plain list, beside their names."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU())
        self.blocks = []
        for i in range(2):
            conv, norm = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
            self.add_module(f"conv{i}", conv)
            self.add_module(f"norm{i}", norm)
            self.blocks.append((conv, norm))
        self.head = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for conv, norm in self.blocks:
            x = norm(conv(x)).relu()
        return self.head(x.mean((2, 3)))


def batch(n: int = 5) -> torch.Tensor:
    return torch.rand(n, 3, 12, 12, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def normalised(view: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (MEAN, STD))
    return (view - mean) / std


CASES = {
    "plain": lambda: trunk(nn.BatchNorm2d),
    "sync": lambda: trunk(nn.SyncBatchNorm),
    "frozen": lambda: trunk(FrozenBatchNorm2d),
    "no affine": lambda: trunk(lambda c: nn.BatchNorm2d(c, affine=False)),
    "leaky": lambda: trunk(Leaky, nn.Identity),
    "activating": lambda: trunk(Activating, nn.Identity),
    "own": lambda: trunk(Own),
    "ghost": lambda: trunk(Ghost),
    "instance": lambda: trunk(lambda c: nn.InstanceNorm2d(c, track_running_stats=True)),
    "tokens": Tokens,
    "listed": Listed,
}


@pytest.mark.parametrize("rewrite", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_the_network_says_what_it_said_and_moments_are_its_inputs(case: str, rewrite: bool) -> None:
    """Against hooks on the network itself, in float64, with NumPy's mean and variance."""
    net = settled(CASES[case]()).double()
    twin, inputs = copy.deepcopy(net), {}
    for name, module in twin.named_modules():
        if isinstance(getattr(module, "running_mean", None), torch.Tensor):

            def hook(m: nn.Module, args: tuple[torch.Tensor, ...], name: str = name) -> None:
                inputs[name] = args[0].movedim(1, -1).flatten(0, -2).numpy().copy()

            module.register_forward_pre_hook(hook)
    with torch.no_grad():
        expected = twin(normalised(batch()))
    teacher = Teacher("t", net, CARD, dtype=torch.float64)
    if rewrite:
        teacher.rewrite()
    seen = teacher.observe(batch())
    torch.testing.assert_close(seen.logits, expected, rtol=1e-10, atol=1e-12)
    assert not teacher.left_out and teacher.statistics is not None
    assert [layer.name for layer in teacher.statistics.layers] == list(inputs)
    offset, var = teacher.statistics.batch_statistics(seen.moments, 5)
    for layer in teacher.statistics.layers:
        span, x = slice(layer.start, layer.start + layer.channels), inputs[layer.name]
        mean = net.get_submodule(layer.name).get_buffer("running_mean")[: layer.channels]
        np.testing.assert_allclose(offset[span], x.mean(0) - mean.numpy(), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(var[span], x.var(0), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("case", "fast"), [("sync", True), ("frozen", True), ("activating", True), ("leaky", False), ("own", False)]
)
def test_layers_are_replaced_where_that_says_the_same(case: str, fast: bool) -> None:
    net = settled(CASES[case]())
    teacher = Teacher("t", net, CARD)
    assert all(isinstance(layer.module, EmittingBatchNorm) == fast for layer in teacher.layers.values())
    in_bf16 = Teacher("t", net, CARD, dtype=torch.bfloat16)
    exact = teacher.observe(batch().float()).logits
    torch.testing.assert_close(in_bf16.observe(batch().float()).logits, exact, rtol=0.1, atol=0.1)


class Bounded(nn.BatchNorm2d):
    """What noise does not tell from a plain ReLU."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).clamp(0, 20)


@pytest.mark.parametrize("dead", [None, 0.0, 1e-10])
def test_a_bound_that_few_images_reach_is_seen(dead: float | None) -> None:
    net = settled(trunk(Bounded, nn.Identity))
    if dead is not None:  # a channel that says nothing does not hide the others
        net[1].running_var[2] = dead
        with torch.no_grad():
            net[0].weight[2] = 0.0
    teacher = Teacher("t", net, CARD)
    glaring = (batch() > 0.5).float() * 400 - 200
    with torch.no_grad():
        expected = net(normalised(glaring).float())
    torch.testing.assert_close(teacher.observe(glaring).logits, expected)


class Last(nn.Module):
    """Channels last, in a map with as many rows as channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 12, 3, padding=1), OwnLast(12), nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.conv(x).permute(0, 2, 3, 1)).mean((1, 2)))


class OwnLast(Own):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.dtype == self.running_mean.dtype
        return (x - self.running_mean) / self.running_var.sqrt()


def test_channels_are_found_where_another_dimension_has_as_many() -> None:
    net = settled(Last()).double()
    teacher = Teacher("t", net, CARD, dtype=torch.float64)
    x = net.conv(normalised(batch())).permute(0, 2, 3, 1).flatten(0, 2) - net.norm.running_mean
    torch.testing.assert_close(teacher.observe(batch()).moments, torch.stack([x.sum(0), x.square().sum(0)]).detach())


class Asked(nn.Module):
    """A map that takes another number, as wide as it has channels; and a forward that reads what a layer holds."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.norm = nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), Scaled(12)
        self.head = nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.bn(self.conv(x)), self.bn.weight.mean())
        return self.head(x.mean((2, 3)))


class Scaled(Own):
    def forward(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        assert x.shape[1] == 12
        return super().forward(x * scale)


def test_layers_that_take_more_and_a_network_that_reads_them() -> None:
    net = settled(Asked())
    teacher = Teacher("t", net, CARD)
    assert list(teacher.layers) == ["bn", "norm"] and not teacher.left_out
    with torch.no_grad():
        expected = net(normalised(batch()).float())
    torch.testing.assert_close(teacher.observe(batch().float()).logits, expected)


@pytest.mark.parametrize("shape", [(), (1, 6, 1, 1), (6, 1, 1)])
def test_statistics_of_another_shape_are_left_out(shape: tuple[int, ...]) -> None:
    net = settled(trunk(nn.BatchNorm2d))
    net.insert(2, OwnLast(1))
    for key in ("running_mean", "running_var"):
        net[2].register_buffer(key, torch.ones(shape))
    teacher = Teacher("t", net, CARD)
    assert list(teacher.layers) == ["1", "5"] and "not one number a channel" in teacher.left_out["2"]


class Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.BatchNorm2d(3), nn.Linear(3, 4)
        self.register_parameter("filter", nn.Parameter(torch.randn(3, 12, 7, dtype=torch.cfloat)))
        self.register_parameter("order", nn.Parameter(torch.tensor([2, 0, 1]), requires_grad=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.fft.irfft2(torch.fft.rfft2(self.norm(x)) * self.filter)
        return self.head(x[:, self.order].square().mean((2, 3)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_complex_weights_and_indices_stay_what_they_are(dtype: torch.dtype) -> None:
    net = settled(Complex())
    view = batch().float()
    with torch.no_grad():
        expected = net(normalised(view).float())
    teacher = Teacher("t", net, CARD, dtype=dtype)
    torch.testing.assert_close(teacher.observe(view).logits, expected)
    assert teacher.dtype == torch.float32 and len(teacher.notes) == (dtype == torch.bfloat16)


def test_a_network_that_cannot_be_copied_is_one_line() -> None:
    net = trunk(nn.BatchNorm2d)
    net.lock = threading.Lock()
    with pytest.raises(ValueError, match=r"^t: a network is copied before it is watched.* pickle"):
        Teacher("t", net, CARD)


class Foreign(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = trunk(nn.BatchNorm2d)
        self.register_buffer("rm", torch.zeros(3))
        self.register_buffer("rv", torch.ones(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(F.batch_norm(x, self.rm, self.rv))


def test_what_is_not_matched_is_named() -> None:
    net = trunk(Ghost)
    net[1].forward = lambda x: F.batch_norm(x, net[1].running_mean[6:12], net[1].running_var[6:12])  # the second part
    settled(net)
    teacher = Teacher("t", net, CARD)
    assert "24 statistics for 6 channels" in teacher.left_out["1"] and list(teacher.layers) == ["4"]
    called = Teacher("t", settled(Foreign()), CARD)
    assert "statistics of no layer" in called.left_out["batch_norm call 1"] and len(called.layers) == 2


class Returning(nn.Module):
    def __init__(self, make: object) -> None:
        super().__init__()
        self.net, self.make = trunk(nn.BatchNorm2d), make

    def forward(self, x: torch.Tensor) -> object:
        return self.make(self.net(x))  # type: ignore[operator]


@pytest.mark.parametrize(
    "make",
    [
        lambda y: (y, {"feature": y * 2}),
        lambda y: [y],
        lambda y: {"aux": y * 2, "logits": y},
        lambda y: {"out": y, "aux": y * 2},
        lambda y: {"anything": y},
    ],
)
def test_logits_are_found_in_what_is_returned(make: object) -> None:
    net = settled(Returning(make))
    expected = net.net(normalised(batch()).float()).detach()
    teacher = Teacher("t", net, CARD)
    teacher.rewrite()
    torch.testing.assert_close(teacher.observe(batch().float()).logits, expected, rtol=1e-4, atol=1e-5)


def test_one_logit_is_two_classes() -> None:
    net = trunk(nn.BatchNorm2d)
    net[-1] = nn.Linear(8, 1)
    card = ModelCard("binary", "test", 12, 1, mean=MEAN, std=STD)
    assert card.num_classes == 2
    logits = Teacher("t", settled(net), card).observe(batch().float()).logits
    expected = torch.sigmoid(net(normalised(batch()).float()))[:, 0].detach()
    torch.testing.assert_close(logits.softmax(1)[:, 1], expected)
    alone = Teacher("t", net, card).observe(batch(1).float()).logits
    torch.testing.assert_close(alone, -alone.flip(1))  # either class's score pulls
    squeezed = nn.Sequential(net, nn.Flatten(0))
    squeezed.forward = lambda x: net(x).squeeze()  # of one image a number without dimensions
    torch.testing.assert_close(Teacher("t", squeezed, card).observe(batch(1).float()).logits, alone)


def test_one_channel_sees_luminance() -> None:
    net = trunk(nn.BatchNorm2d)
    net[0] = nn.Conv2d(1, 6, 3, padding=1)
    card = ModelCard("digits", "test", 12, 4, mean=(0.13,), std=(0.31,))
    view = batch().float()
    grey = 0.299 * view[:, :1] + 0.587 * view[:, 1:2] + 0.114 * view[:, 2:]
    expected = settled(net)((grey - 0.13) / 0.31).detach()
    teacher = Teacher("t", net, card)
    teacher.rewrite()
    torch.testing.assert_close(teacher.observe(view).logits, expected, rtol=1e-4, atol=1e-5)


def test_probabilities_are_taken_by_their_logarithm() -> None:
    net = settled(Returning(lambda y: y.softmax(1)))
    teacher = Teacher("t", net, CARD)
    expected = net.net(normalised(batch()).float()).log_softmax(1).detach()
    torch.testing.assert_close(teacher.observe(batch().float()).logits, expected, rtol=1e-4, atol=1e-5)
    assert "probabilities" in teacher.notes[0]


def test_a_network_that_runs_in_fp32_alone_stays_there() -> None:
    net = settled(
        Returning(lambda y: y + torch.fft.fft(y.to(torch.float32 if y.dtype != torch.bfloat16 else 1 / 0)).real)
    )
    teacher = Teacher("t", net, CARD, dtype=torch.bfloat16)
    assert teacher.dtype == torch.float32 and "does not run in bfloat16" in teacher.notes[0]
    torch.testing.assert_close(
        teacher.observe(batch().float()).logits, Teacher("t", net, CARD).observe(batch().float()).logits
    )


def test_a_network_that_draws_is_no_teacher() -> None:
    with pytest.raises(ValueError, match="two forward passes of the same images give different logits"):
        Teacher("t", settled(Returning(lambda y: y + torch.rand_like(y))), CARD)


@pytest.mark.parametrize("make", [lambda y: "logits", lambda y: None, lambda y: y[:, :, None], lambda y: {"loss": 1.0}])
def test_what_holds_no_logits_is_one_line(make: object) -> None:
    with pytest.raises(ValueError, match=r"t: its forward pass fails on .*: the network returns") as caught:
        Teacher("t", settled(Returning(make)), CARD)
    assert "\n" not in str(caught.value)


def test_a_look_in_inference_mode_leaves_nothing_behind() -> None:
    """What is made once and kept must take part in gradients later."""
    card = ModelCard("plain", "test", 8, 4, mean=(0.123, 0.4, 0.3), std=(0.2,) * 3)
    with torch.inference_mode():
        network_input(torch.rand(1, 3, 8, 8), card)
    view = torch.rand(1, 3, 8, 8, requires_grad=True)
    network_input(view, card).sum().backward()
    assert view.grad is not None and torch.allclose(view.grad, torch.full_like(view, 5.0))
