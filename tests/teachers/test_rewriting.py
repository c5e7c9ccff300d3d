"""Rewritten networks say what the originals say: logits, moments, order of layers, gradient at the image."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import nn

from ensemble.teachers.kernels import Form
from ensemble.teachers.teacher import Teacher
from models import ModelCard, create_model

CARD = ModelCard("tiny", "tiny", input_size=16, num_classes=5, mean=(0.5,) * 3, std=(0.25,) * 3)


class Block(nn.Module):
    """One stem and one residual block, whose end is up to `end`; the shortcut has a BN that runs last."""

    def __init__(self, end: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], shortcut: bool = True) -> None:
        super().__init__()
        self.stem, self.bn1 = nn.Conv2d(3, 6, 5, stride=2, padding=1), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv3, self.bn3 = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.down, self.bn4 = nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)
        self.relu, self.drop = nn.ReLU(inplace=True), nn.Identity()
        self.linear = nn.Linear(6, 5)
        self.end, self.shortcut = end, shortcut

    def forward(self, x):
        x = self.relu(self.drop(self.bn1(self.stem(x))))
        out = F.relu(self.bn2(self.conv2(x)), inplace=True)
        out = self.bn3(self.conv3(out))
        x = self.end(out, self.bn4(self.down(x)) if self.shortcut else x)
        return self.linear(x.mean((2, 3)))


def in_place(out: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    out += other
    return out.relu_()


def into_the_other(out: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    other = other * 1
    return other.add_(out).relu() + other


def reused(out: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return (out + other).relu() + 0.1 * out


ENDS: dict[str, tuple[Callable[..., torch.Tensor], bool, dict[str, Form]]] = {
    "sum": (lambda a, b: F.relu(a + b), True, {"bn4": Form.ADD_RELU}),
    "sum, identity": (lambda a, b: torch.relu(b + a), False, {"bn3": Form.ADD_RELU}),
    "method": (lambda a, b: a.add(b).relu(), False, {"bn3": Form.ADD_RELU}),
    "in place": (in_place, True, {"bn4": Form.ADD_RELU}),
    "in place, identity": (in_place, False, {"bn3": Form.ADD_RELU}),
    "into the other": (into_the_other, False, {}),
    "reused": (reused, False, {}),
    "scaled": (lambda a, b: torch.add(a, b, alpha=0.5).relu(), False, {}),
    "no relu": (lambda a, b: a + b, False, {}),
    "broadcast": (lambda a, b: F.relu(a + b.mean((2, 3), keepdim=True)), False, {}),
    "number": (lambda a, b: F.relu(a + b.size(1)) + b, False, {}),
    "with itself": (lambda a, b: F.relu(a + a) + b, False, {}),
}


def seeded(net: nn.Module) -> nn.Module:
    """Every parameter and running statistic drawn, so that no two layers are alike."""
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in [*net.named_parameters(), *net.named_buffers()]:
            if value.is_floating_point():
                value.copy_(torch.randn(value.shape, generator=rng) * 0.5 + (1.5 if "var" in name else 0.1))
                if "var" in name:
                    value.abs_()
    return net.eval()


def twin(net: nn.Module, view: torch.Tensor, weights: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    """Logits, moments in execution order and gradient by hooks on the untouched network, in float64."""
    net = copy.deepcopy(net).double()
    found = []

    def hook(norm: nn.BatchNorm2d, inputs: tuple[torch.Tensor, ...]) -> None:
        centred = inputs[0] - norm.running_mean[:, None, None]
        found.append(torch.stack([centred.sum((0, 2, 3)), centred.square().sum((0, 2, 3))]))

    handles = [m.register_forward_pre_hook(hook) for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    leaf = view.double().requires_grad_()
    logits = net((leaf - 0.5) / 0.25)
    moments = torch.cat(found, 1)
    (gradient,) = torch.autograd.grad((logits, moments), leaf, [w.double() for w in weights])
    for handle in handles:
        handle.remove()
    return [logits.detach(), moments.detach(), gradient]


def check(net: nn.Module, dtype: torch.dtype, rtol: float) -> Teacher:
    """The teacher of `net`, after comparing it with the twin (relative error of whole tensors)."""
    teacher = Teacher("tiny", net, CARD, dtype=dtype)
    teacher.rewrite()
    rng = torch.Generator().manual_seed(1)
    view = torch.rand(3, 3, 16, 16, generator=rng)
    weights = (torch.randn(3, 5, generator=rng), 1e-3 * torch.randn(2, teacher.channels, generator=rng))
    leaf = view.to(teacher.wide).requires_grad_()
    seen = teacher.observe(leaf)[:2]
    (gradient,) = torch.autograd.grad(tuple(seen), leaf, [w.to(teacher.wide) for w in weights])
    for found, expected in zip([*seen, gradient], twin(net, view, weights), strict=True):
        assert (found.double() - expected).norm() <= rtol * expected.norm()
    return teacher


def forms(teacher: Teacher) -> dict[str, Form]:
    return {name: layer.module.form for name, layer in teacher.layers.items()}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("dtype, rtol", [(torch.float64, 1e-12), (torch.float32, 2e-6), (torch.bfloat16, 0.05)])
def test_what_is_fused_says_the_same(end: str, dtype: torch.dtype, rtol: float) -> None:
    function, shortcut, fused = ENDS[end]
    teacher = check(seeded(Block(function, shortcut)), dtype, rtol)
    names = ["bn1", "bn2", "bn3"] + (["bn4"] if shortcut else [])
    assert teacher.statistics is not None
    assert [layer.name for layer in teacher.statistics.layers] == names
    expected = dict.fromkeys(names, Form.AFFINE) | {"bn1": Form.RELU, "bn2": Form.RELU}
    assert forms(teacher) == expected | fused


class Twice(nn.Module):
    """One BN layer runs twice, once before a relu and once not; another runs once."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.stem2 = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
        self.stem, self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
        self.linear = nn.Linear(4, 5)

    def forward(self, x):
        x = self.stem2(F.relu(self.first(self.stem(x))))
        x = F.relu(self.bn(x))
        return self.linear(self.bn(self.conv(x)).mean((2, 3)))


class Plain(nn.Module):
    """What follows the BN layer is fusable, unless a subclass sees to it that it is not."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.relu, self.linear = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Linear(4, 5)

    def forward(self, x):
        return self.linear(self.relu(self.bn(self.conv(x))).mean((2, 3)))


class DependsOnValues(Plain):
    def forward(self, x):
        return super().forward(x if x.mean() > -100 else -x)


class TracedWrongly(Plain):
    """What torch.fx passes through a network is no Tensor."""

    def forward(self, x):
        x = self.bn(self.conv(x)).relu()
        return self.linear(x.mean((2, 3))) if isinstance(x, torch.Tensor) else self.linear(x.amax((2, 3)))


class HalfDetached(Plain):
    """torch.fx does not record under which mode something was computed: the trace has another gradient."""

    def forward(self, x):
        x = self.relu(self.bn(self.conv(x)))
        with torch.no_grad():
            gate = x.mean((2, 3), keepdim=True)
        return self.linear((x * gate).mean((2, 3)))


class _Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.sign()

    @staticmethod
    def backward(ctx, dy):
        return dy


class StraightThrough(Plain):
    def forward(self, x):
        return self.linear(_Sign.apply(self.relu(self.bn(self.conv(x))) - 1).mean((2, 3)))


class Hooked(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.relu.register_full_backward_hook(lambda module, before, after: (0.1 * before[0],))


class HookedWhole(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Identity())
        self.block.register_full_backward_hook(lambda module, before, after: (0.1 * before[0],))

    def forward(self, x):
        return super().forward(self.block(x))


@pytest.mark.parametrize(
    "network", [DependsOnValues, TracedWrongly, HalfDetached, StraightThrough, Hooked, HookedWhole]
)
def test_what_cannot_be_fused_is_left_alone(network: type[nn.Module]) -> None:
    teacher = check(seeded(network()), torch.float32, 2e-6)
    assert set(forms(teacher).values()) == {Form.AFFINE}
    assert type(teacher.net) is network


def test_a_sum_that_promotes_is_left_alone_in_bf16() -> None:
    """In fp32 both summands have one dtype; in bf16 the sum in place keeps that of the BN's output."""

    def promoted(out: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        out += other.float().sigmoid()
        return out.relu_()

    teacher = check(seeded(Block(promoted, False)), torch.bfloat16, 0.05)
    assert set(forms(teacher).values()) == {Form.AFFINE}


class Clipped(nn.ReLU):
    def forward(self, x):
        return super().forward(x).clamp_max(0.5)


def test_a_relu_of_another_kind_is_left_alone() -> None:
    net = Plain()
    net.relu = Clipped()
    check(seeded(net), torch.float32, 2e-6)
    net = Plain()
    net.bn, net.relu = BatchNormAct2d(net.bn.num_features, act_layer=Clipped), nn.Identity()
    teacher = Teacher("tiny", seeded(net), CARD)
    assert isinstance(teacher.layers["bn"].module.activation, Clipped)


@pytest.mark.parametrize(
    "activation, form, parameter",
    [
        (nn.ReLU6(inplace=True), Form.RELU6, 0.0),
        (nn.Hardtanh(0, 6), Form.RELU6, 0.0),
        (nn.LeakyReLU(0.1), Form.LEAKY_RELU, 0.1),
        (nn.Hardswish(), Form.HARDSWISH, 0.0),
        (nn.SiLU(), Form.SILU, 0.0),
        (nn.GELU(), Form.GELU, 0.0),
        (nn.GELU("tanh"), Form.AFFINE, 0.0),
        (nn.Hardtanh(-1, 6), Form.AFFINE, 0.0),
        (nn.ELU(), Form.AFFINE, 0.0),
    ],
)
@pytest.mark.parametrize("where", ["after", "in the layer"])
def test_activations(activation: nn.Module, form: Form, parameter: float, where: str) -> None:
    net = Plain()
    net.relu = activation
    if where == "in the layer":
        net.bn, net.relu = BatchNormAct2d(net.bn.num_features), nn.Identity()
        net.bn.act = activation
    teacher = check(seeded(net), torch.float32, 2e-6)
    module = teacher.layers["bn"].module
    assert (module.form, module.parameter) == (form, parameter)


@pytest.mark.parametrize(
    "function, form",
    [
        (F.relu6, Form.RELU6),
        (F.hardswish, Form.HARDSWISH),
        (partial(F.silu, inplace=True), Form.SILU),
        (F.gelu, Form.GELU),
        (partial(F.gelu, approximate="tanh"), Form.AFFINE),
        (partial(F.leaky_relu, negative_slope=0.1), Form.AFFINE),
    ],
)
def test_activations_as_functions(function: Callable[..., torch.Tensor], form: Form) -> None:
    class Net(Plain):
        def forward(self, x):
            return self.linear(function(self.bn(self.conv(x))).mean((2, 3)))

    assert forms(check(seeded(Net()), torch.float32, 2e-6)) == {"bn": form}


@pytest.mark.parametrize("dtype, rtol", [(torch.float32, 2e-6), (torch.bfloat16, 0.05)])
def test_compiled(dtype: torch.dtype, rtol: float) -> None:
    function, shortcut, _ = ENDS["sum"]
    teacher = Teacher("tiny", seeded(Block(function, shortcut)), CARD, dtype=dtype)
    teacher.rewrite()
    view = torch.rand(3, 3, 16, 16)
    eager = teacher.observe(view.requires_grad_())
    (expected,) = torch.autograd.grad(eager.logits.sum() + 1e-3 * eager.moments.sum(), view)
    teacher.compile()
    compiled = teacher.observe(view)
    (found,) = torch.autograd.grad(compiled.logits.sum() + 1e-3 * compiled.moments.sum(), view)
    for one, other in zip((*compiled[:3], found), (*eager[:3], expected), strict=True):
        assert (one - other).norm() <= rtol * other.norm()


def test_known_networks_are_fused() -> None:
    """So that a failure of the tracing does not pass for a network that cannot be traced."""
    for name, size, counts in (
        ("resnet20_cifar@random", 32, {Form.RELU: 10, Form.ADD_RELU: 9}),
        ("wrn16_2_cifar@random", 32, {Form.RELU: 13}),
        ("resnet18@random", 224, {Form.RELU: 9, Form.ADD_RELU: 8, Form.AFFINE: 3}),
        ("timm/resnet18@random", 224, {Form.RELU: 9, Form.ADD_RELU: 8, Form.AFFINE: 3}),
        ("mobilenet_v2@random", 224, {Form.RELU6: 35, Form.AFFINE: 17}),
        ("efficientnet_lite0@random", 224, {Form.RELU6: 33, Form.AFFINE: 16}),
        ("efficientnet_b0@random", 224, {Form.SILU: 33, Form.AFFINE: 16}),
    ):
        teacher = Teacher(name, *create_model(name))
        assert teacher.card.input_size == size
        teacher.rewrite()
        assert Counter(forms(teacher).values()) == counts, name


def test_other_view_sizes_of_a_rewritten_network(capsys: pytest.CaptureFixture[str]) -> None:
    function, shortcut, _ = ENDS["sum"]
    teacher = Teacher("tiny", seeded(Block(function, shortcut)), CARD, dtype=torch.float64)
    teacher.admit(8, 16)
    view = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    expected = teacher.observe(view)[:3]
    teacher.rewrite()
    for found, wanted in zip(teacher.observe(view)[:3], expected, strict=True):
        torch.testing.assert_close(found, wanted)
    with pytest.raises(RuntimeError):
        teacher.net.forward(torch.rand(2, 4, 8, 8, dtype=torch.float64))
    assert "Traceback" not in capsys.readouterr().err
