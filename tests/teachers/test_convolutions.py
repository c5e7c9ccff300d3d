"""Convolutions in other forms: the same sums, the same gradients."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from timm.layers import Conv2dSame
from torch import nn

from ensemble.machine import hardware
from ensemble.machine.hardware import can_compile
from ensemble.teachers.convolutions import Depthwise, SpaceToDepthConv, Winograd, replace_convolutions
from ensemble.teachers.kernels import winograd
from ensemble.teachers.teacher import Teacher
from models import ModelCard, create_model

SIZES = [15, 16, 17, 18, 31]


def same_as(conv: nn.Conv2d, other: nn.Module, size: int, dtype: torch.dtype, rtol: float) -> None:
    """Output and gradient of `other` in `dtype` are those of `conv` in float64; sides differ."""
    x = torch.randn(2, conv.in_channels, size, size + 3, generator=torch.Generator().manual_seed(1)).to(dtype)
    x, wide = x.requires_grad_(), x.detach().double().requires_grad_()
    found, expected = other.to(dtype)(x), conv.double()(wide)
    assert found.shape == expected.shape
    dy = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2)).to(dtype)
    pairs = [(found, expected), (*torch.autograd.grad(found, x, dy), *torch.autograd.grad(expected, wide, dy.double()))]
    for one, exact in pairs:
        assert (one.double() - exact).norm() <= rtol * exact.norm()


def conv(k: int, stride: int, padding: int | None, channels: int = 3, groups: int = 1) -> nn.Conv2d:
    """None: TensorFlow's padding."""
    torch.manual_seed(0)
    out = channels if groups > 1 else 4
    if padding is None:
        return Conv2dSame(channels, out, k, stride, groups=groups)
    return nn.Conv2d(channels, out, k, stride, padding, groups=groups)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "k, stride, padding",
    [(7, 2, 3), (3, 2, 1), (3, 2, 0), (11, 4, 2), (5, 4, 1), (6, 2, 2), (3, 2, None), (7, 4, None)],
)
def test_space_to_depth(k: int, stride: int, padding: int | None, size: int) -> None:
    one = conv(k, stride, padding).double()
    same_as(one, SpaceToDepthConv(one), size, torch.float64, 1e-12)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "k, stride, padding",
    [
        *((3, 1, 1), (5, 1, 2), (3, 1, 0), (4, 1, 2), (3, 1, None)),
        *((3, 2, 1), (5, 2, 2), (3, 2, 0), (4, 3, 1), (7, 4, 6), (3, 2, None), (5, 2, None), (7, 3, None)),
    ],
)
@pytest.mark.parametrize("channels", [6, 88])
@pytest.mark.parametrize("dtype, rtol", [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_depthwise(
    k: int, stride: int, padding: int | None, size: int, channels: int, dtype: torch.dtype, rtol: float
) -> None:
    one = conv(k, stride, padding, channels, channels)
    with torch.no_grad():  # weights that bf16 holds exactly
        for value in one.parameters():
            value.copy_(value.bfloat16())
    same_as(one, Depthwise(one), size, dtype, rtol)


@pytest.fixture
def wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor where it was measured to pay."""
    if winograd.library() is None:
        pytest.skip("no C++ compiler here")
    monkeypatch.setattr(winograd, "widest_is_avx2", lambda: True)


@pytest.mark.usefixtures("wins")
@pytest.mark.parametrize("size, padding", [(s, p) for s in (*range(1, 14), 32) for p in (0, 1, 2) if s + 2 * p > 2])
@pytest.mark.parametrize("channels, out", [(16, 16), (32, 48), (48, 16), (128, 144)])
def test_winograd(
    size: int, padding: int, channels: int, out: int, threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel takes a size or leaves it to torch; here it takes all."""
    monkeypatch.setattr(winograd, "_halves", lambda rows, columns: True)
    torch.set_num_threads(1 + size % 3)
    torch.manual_seed(0)
    one = nn.Conv2d(channels, out, 3, 1, padding, bias=size % 2 == 0)
    same_as(one, Winograd(one), size, torch.float32, 4e-6)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("wins")
@pytest.mark.parametrize("dtype, rtol", [(torch.float64, 1e-12), (torch.bfloat16, 1e-2)])
def test_winograd_in_other_precisions_is_torchs(dtype: torch.dtype, rtol: float) -> None:
    one = nn.Conv2d(16, 32, 3, 1, 1)
    with torch.no_grad():  # weights that bf16 holds exactly
        for value in one.parameters():
            value.copy_(value.bfloat16())
    same_as(one, Winograd(one), 8, dtype, rtol)


@pytest.mark.usefixtures("wins")
def test_what_winograd_cannot_read_fails_as_torchs_does() -> None:
    conv = nn.Conv2d(16, 16, 3, 1, 1)
    with pytest.raises(RuntimeError, match="type"):
        Winograd(conv).bfloat16()(torch.randn(2, 16, 8, 8))
    with pytest.raises(RuntimeError, match="channels"):
        Winograd(conv)(torch.randn(2, 32, 8, 8))
    x = torch.randn(16, 8, 8)
    torch.testing.assert_close(Winograd(conv)(x), conv(x))
    assert Winograd(conv)(torch.randn(0, 16, 8, 8)).shape == (0, 16, 8, 8)


class Computed(nn.Conv2d):
    """A convolution of a class of its own may do anything."""


@pytest.mark.parametrize(
    "layer, kind",
    [
        (nn.Conv2d(3, 6, 7, 2, 3, bias=False), SpaceToDepthConv),
        (Conv2dSame(3, 6, 3, 2), SpaceToDepthConv),
        (nn.Conv2d(6, 6, 3, 2, 1, groups=6), Depthwise),
        (Conv2dSame(6, 6, 5, 2, groups=6), Depthwise),
        (nn.Conv2d(3, 6, 3, 1, 1), None),
        (nn.Conv2d(3, 6, 2, 2), None),  # patches: no overlap, nothing to win
        (nn.Conv2d(3, 6, 3, 2, dilation=2), None),
        (nn.Conv2d(3, 6, 3, 2, 1, groups=3), None),
        (nn.Conv2d(3, 6, 3, 2, 1, padding_mode="reflect"), None),
        (nn.Conv2d(3, 6, (3, 5), 2, 1), None),
        (nn.Conv2d(64, 64, 3, 1, 1, groups=64), Depthwise),
        (nn.Conv2d(64, 64, 5, 1, 2, groups=64), None),
        (nn.Conv2d(72, 72, 3, 1, 1, groups=72), None),
        (nn.Conv2d(32, 32, 3, 1, 1, groups=32), None),
        (nn.Conv2d(6, 6, 3, 1, 1, 2, groups=6), None),
        (nn.Conv2d(6, 6, 1, 1, groups=6), None),
        (nn.Conv2d(6, 12, 3, 2, 1, groups=6), None),
        (nn.Conv2d(16, 48, 3, 1, 1), Winograd),
        (nn.Conv2d(512, 512, 3, 1, 0), Winograd),
        (nn.Conv2d(512, 528, 3, 1, 1), None),  # its filters would take much memory
        (nn.Conv2d(16, 24, 3, 1, 1), None),
        (nn.Conv2d(16, 16, 3, 2, 1), None),
        (nn.Conv2d(16, 16, 5, 1, 2), None),
        (nn.Conv2d(16, 16, 3, 1, 3), None),
        (nn.Conv2d(32, 32, 3, 1, 1, groups=2), None),
        (Computed(3, 6, 3, 2, 1), None),
        (nn.utils.spectral_norm(nn.Conv2d(3, 6, 3, 2, 1)), None),
    ],
)
@pytest.mark.usefixtures("wins")
def test_which_are_replaced(layer: nn.Conv2d, kind: type[nn.Module] | None) -> None:
    net = nn.Sequential(layer)
    assert replace_convolutions(net, torch.float32) == (kind is not None)
    assert type(net[0]) is (kind or type(layer))


class Untraceable(nn.Module):
    """Its control flow depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.linear = nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.Linear(6, 5)

    def forward(self, x):
        x = self.bn(self.conv(x if x.mean() > -100 else -x))
        return self.linear(x.relu().mean((2, 3)))


def test_what_cannot_be_traced_still_loses_its_strides() -> None:
    card = ModelCard("tiny", "tiny", input_size=16, num_classes=5, mean=(0.5,) * 3, std=(0.25,) * 3)
    teacher = Teacher("tiny", Untraceable().eval().requires_grad_(False), card)
    before = teacher.observe(torch.full((1, 3, 16, 16), 0.3)).logits
    teacher.rewrite()
    assert any(isinstance(m, SpaceToDepthConv) for m in teacher.net.modules())
    torch.testing.assert_close(teacher.observe(torch.full((1, 3, 16, 16), 0.3)).logits, before)


@pytest.mark.parametrize("name, stems, depthwise", [("efficientnet_lite0", 1, 8), ("mobilenet_v2", 1, 16)])
def test_what_is_replaced_of_mobile_networks(name: str, stems: int, depthwise: int) -> None:
    teacher = Teacher(name, *create_model(f"{name}:input_size=64@random"))
    teacher.rewrite()
    kinds = [type(module) for module in teacher.net.modules()]
    assert kinds.count(SpaceToDepthConv) == stems and kinds.count(Depthwise) == depthwise


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_depthwise_is_the_same_on_any_number_of_threads_and_past_the_caches(stride: int, dtype: torch.dtype) -> None:
    one = Depthwise(conv(3, stride, 1, 64, 64)).to(dtype)
    x = torch.randn(8, 64, 96, 96, generator=torch.Generator().manual_seed(0)).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            y = one(x)
            found.append([y, *torch.autograd.grad(y, x, torch.ones_like(y))])
    finally:
        torch.set_num_threads(before)
    small = [one(x[i : i + 1]) for i in range(8)]  # written into the caches
    found.append([torch.cat(small), *torch.autograd.grad(small, x, [torch.ones_like(y) for y in small])])
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("padding", [1, None])
def test_depthwise_without_a_compiler(padding: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ensemble.teachers.kernels.depthwise.library", lambda: None)
    one = conv(3, 2, padding, 6, 6)
    same_as(one, Depthwise(one), 17, torch.float32, 1e-6)


def test_depthwise_refuses_an_image_smaller_than_its_filter() -> None:
    one = Depthwise(conv(5, 1, 0, 6, 6))
    with pytest.raises(RuntimeError, match="Kernel size"):
        one(torch.zeros(1, 6, 4, 4))


@pytest.mark.parametrize("padding", [1, None])
def test_depthwise_compiled_is_depthwise(padding: int | None) -> None:
    if not can_compile(torch.device("cpu")):
        pytest.skip("nothing to compile with")
    one = Depthwise(conv(3, 2, padding, 6, 6))
    x = torch.randn(2, 6, 12, 12, generator=torch.Generator().manual_seed(0)).requires_grad_()
    dy = torch.randn(2, 6, 6, 6, generator=torch.Generator().manual_seed(1))
    plain, compiled = one(x), torch.compile(one, fullgraph=True)(x)
    assert torch.equal(plain, compiled)
    assert torch.equal(*torch.autograd.grad(plain, x, dy), *torch.autograd.grad(compiled, x, dy))


@pytest.mark.usefixtures("wins")
def test_winograd_is_the_same_compiled() -> None:
    if not can_compile(torch.device("cpu")):
        pytest.skip("nothing to compile with")
    one = Winograd(nn.Conv2d(16, 32, 3, 1, 0))
    x = torch.randn(2, 16, 10, 12, generator=torch.Generator().manual_seed(0)).requires_grad_()
    plain, compiled = one(x), torch.compile(one, fullgraph=True)(x)
    assert torch.equal(plain, compiled)
    dy = torch.ones_like(plain)
    assert torch.equal(*torch.autograd.grad(plain, x, dy), *torch.autograd.grad(compiled, x, dy))


@pytest.mark.usefixtures("wins", "threads")
@pytest.mark.parametrize("channels", [32, 128])
def test_winograd_is_the_same_on_any_number_of_threads_and_of_images(channels: int) -> None:
    torch.manual_seed(0)
    one = Winograd(nn.Conv2d(channels, 144, 3, 1, 1))
    x = torch.randn(9, channels, 14, 18, requires_grad=True)
    found = []
    for count in (1, 2, 3, 7, 200):
        torch.set_num_threads(count)
        y = one(x)
        found.append([y, *torch.autograd.grad(y, x, torch.ones_like(y))])
    singly = [one(x[i : i + 1]) for i in range(len(x))]
    found.append([torch.cat(singly), *torch.autograd.grad(singly, x, [torch.ones_like(y) for y in singly])])
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.usefixtures("wins")
def test_where_winograd_would_not_halve_the_products_it_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "_convolve", lambda *given: pytest.fail("the kernel was called"))
    one = Winograd(nn.Conv2d(16, 16, 3, 1, 1))
    for size in (1, 2, 5):
        one(torch.randn(2, 16, size, size))
    with pytest.raises(RuntimeError):  # torch's own words for an image smaller than the filter
        Winograd(nn.Conv2d(16, 16, 3))(torch.randn(2, 16, 2, 9))
    monkeypatch.setattr(winograd, "_convolve", lambda *given: torch.zeros(1))
    assert all(one(torch.randn(2, 16, size, size)).numel() == 1 for size in (3, 4, 6, 7, 8, 32))


def test_winograd_is_left_out_where_it_was_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "widest_is_avx2", lambda: False)
    assert not replace_convolutions(nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1)), torch.float32)


@pytest.mark.usefixtures("wins")
def test_winograd_is_for_fp32_and_one_for_a_layer_of_two_names() -> None:
    conv = nn.Conv2d(16, 16, 3, 1, 1)
    net = nn.ModuleDict({"one": conv, "same": conv})
    assert not replace_convolutions(net, torch.bfloat16)
    assert replace_convolutions(net, torch.float32) == 2 and net["one"] is net["same"]


@pytest.mark.parametrize(
    "capability, limit, wide, alone",
    [
        ("AVX2", "", False, True),
        ("AVX512", "", True, False),
        ("AVX2", "", True, False),  # torch's own limit, not oneDNN's
        ("AVX512", "AVX2", True, True),
        ("AVX2", "AVX2_VNNI", False, True),
        ("AVX2", "AVX", False, False),
        ("DEFAULT", "", False, False),
        ("DEFAULT", "AVX2", False, False),
    ],
)
def test_where_avx2_is_the_widest(
    capability: str, limit: str, wide: bool, alone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(hardware, "_processor_has", lambda *flags: wide)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert hardware.widest_is_avx2() == alone


@pytest.mark.usefixtures("wins")
@pytest.mark.parametrize("name, count", [("resnet20_cifar", 16), ("vgg16_bn_slim_cifar", 12), ("wrn16_2_cifar", 10)])
def test_what_is_replaced_of_the_quickstarts_networks(name: str, count: int) -> None:
    """All but stems, those with a stride and those of 1 x 1; the teacher says what it said."""
    teacher = Teacher(name, *create_model(name))
    view = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    before = teacher.observe(view)
    teacher.rewrite()
    after = teacher.observe(view)
    assert sum(isinstance(module, Winograd) for module in teacher.net.modules()) == count
    assert (after.logits - before.logits).norm() <= 1e-4 * before.logits.norm()
    assert after.moments is not None and before.moments is not None
    assert (after.moments - before.moments).norm() <= 1e-4 * before.moments.norm()
