"""The C++ kernel against the definition in float64, and what must not change its result."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from ensemble.teachers.kernels import Form, affine_with_moments, channel_moments
from ensemble.teachers.kernels.build import library
from ensemble.teachers.kernels.moments import kernel_applies
from ensemble.teachers.teacher import Teacher
from models import ModelCard

CHANNELS = [1, 3, 7, 16, 20, 64, 100]
SHAPES = [(4, 9, 11), (1, 1, 1), (6, 32, 32)]
DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture
def built() -> None:
    if library() is None:
        pytest.skip("no C++ compiler here")


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def draw(channels: int, shape: tuple[int, int, int], dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """x and residual (N, C, H, W) channels_last, scale, shift, mean (C,), dy like x, dmoments (2, C)."""
    rng = torch.Generator().manual_seed(channels)
    n, height, width = shape
    x = (torch.randn(n, channels, height, width, generator=rng) * 2 + 0.5).to(dtype)
    dy, residual = torch.randn(2, n, channels, height, width, generator=rng).to(dtype)
    scale, shift, mean = torch.randn(3, channels, generator=rng)
    dmoments = torch.randn(2, channels, generator=rng)
    x, residual, dy = (t.contiguous(memory_format=torch.channels_last) for t in (x, residual, dy))
    return x, residual, scale, shift, mean, dy, dmoments


ACTIVATIONS = {
    Form.AFFINE: nn.Identity(),
    Form.RELU: nn.ReLU(),
    Form.ADD_RELU: nn.ReLU(),
    Form.RELU6: nn.ReLU6(),
    Form.LEAKY_RELU: nn.LeakyReLU(0.2),
    Form.HARDSWISH: nn.Hardswish(),
    Form.SILU: nn.SiLU(),
    Form.GELU: nn.GELU(),
}


def run(
    x: torch.Tensor,
    residual: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    mean: torch.Tensor,
    dy: torch.Tensor,
    dm: torch.Tensor,
    form: Form = Form.AFFINE,
) -> list[torch.Tensor]:
    """y, moments, dx, and dresidual for ADD_RELU."""
    x = x.detach().requires_grad_()
    leaves = [x]
    if form == Form.ADD_RELU:
        residual = residual.detach().requires_grad_()
        leaves.append(residual)
    y, moments = affine_with_moments(x, scale, shift, mean, form, *leaves[1:], parameter=0.2)
    return [y.detach(), moments.detach(), *torch.autograd.grad((y, moments), leaves, (dy, dm))]


@pytest.mark.parametrize("form", Form)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_matches_the_definition(
    built: None, dtype: torch.dtype, channels: int, shape: tuple[int, int, int], form: Form
) -> None:
    x, residual, scale, shift, mean, dy, dm = draw(channels, shape, dtype)
    assert kernel_applies(x, scale, shift, mean)
    y, moments, dx, *dresidual = run(x, residual, scale, shift, mean, dy, dm, form)
    wide = [v.double() for v in (x, residual, scale[:, None, None], shift[:, None, None], mean[:, None, None], dy)]
    centred, a = wide[0] - wide[4], (wide[0] * wide[2] + wide[3]).requires_grad_()
    expected_y = ACTIVATIONS[form](a + wide[1] if form == Form.ADD_RELU else a)
    (g,) = torch.autograd.grad(expected_y, a, wide[5])
    d0, d1 = dm.double()[:, :, None, None]
    expected_dx = g * wide[2] + d0 + 2 * d1 * centred
    assert y.dtype == dx.dtype == dtype
    assert moments.dtype == torch.float32
    # bf16 has 8 significant bits: rounding to nearest errs by at most 2^-8, truncation by twice that.
    rtol = 2.0**-8 * 1.01 if dtype == torch.bfloat16 else 1e-6
    torch.testing.assert_close(y.double(), expected_y.detach(), rtol=rtol, atol=2e-6)
    torch.testing.assert_close(dx.double(), expected_dx, rtol=rtol, atol=5e-6)
    if form == Form.ADD_RELU:
        assert torch.equal(dresidual[0].double(), g)
    sums, squares = centred.sum((0, 2, 3)), centred.square().sum((0, 2, 3))
    # A thousand additions in fp32, one after the other, before fp64 takes over; on bf16 inputs errors align.
    assert ((moments[0] - sums).abs() <= 3e-5 * centred.abs().sum((0, 2, 3))).all()
    assert ((moments[1] - squares).abs() <= 3e-5 * squares).all()


@pytest.mark.parametrize("form", Form)
@pytest.mark.parametrize("dtype", DTYPES)
def test_other_layouts_take_the_plain_path(dtype: torch.dtype, form: Form) -> None:
    x, *others = draw(20, (3, 8, 8), dtype)
    rows = x.contiguous()
    assert not kernel_applies(rows, *others[1:4])
    for kernel, plain in zip(run(x, *others, form), run(rows, *others, form), strict=True):
        rtol = 2.0**-7 if plain.dtype == torch.bfloat16 else 2e-5
        torch.testing.assert_close(kernel, plain, rtol=rtol, atol=2e-5)


@pytest.mark.parametrize("form", Form)
def test_gradient_and_residual_in_another_layout(built: None, form: Form) -> None:
    """They have to be brought into x's order."""
    x, residual, *frozen, dy, dm = draw(7, (3, 5, 6), torch.float32)
    expected = run(x, residual, *frozen, dy, dm, form)
    for found, wanted in zip(run(x, residual.contiguous(), *frozen, dy.contiguous(), dm, form), expected, strict=True):
        assert torch.equal(found, wanted)
    expanded = dy[:1, :, :1, :1].expand_as(dy)
    dense = expanded.contiguous(memory_format=torch.channels_last)
    assert torch.equal(run(x, residual, *frozen, expanded, dm, form)[2], run(x, residual, *frozen, dense, dm, form)[2])


@pytest.mark.parametrize("form", Form)
@pytest.mark.parametrize("channels", [16, 48, 100])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_large_map_is_its_images_one_by_one(built: None, dtype: torch.dtype, channels: int, form: Form) -> None:
    """What is written past the caches is what is written into them."""
    side = int(((2 << 20) / channels / dtype.itemsize) ** 0.5)  # an image of 2 MiB
    x, residual, *frozen, dy, dm = draw(channels, (3, side, side), dtype)
    y, moments, *gradients = run(x, residual, *frozen, dy, dm, form)
    singly = [run(x[i : i + 1], residual[i : i + 1], *frozen, dy[i : i + 1], dm, form) for i in range(3)]
    for found, parts in zip([y, *gradients], zip(*[(one[0], *one[2:]) for one in singly], strict=True), strict=True):
        assert torch.equal(found, torch.cat(parts))
    torch.testing.assert_close(moments, torch.stack([one[1] for one in singly]).sum(0), rtol=1e-4, atol=1.0)


@pytest.mark.parametrize("form", Form)
@pytest.mark.parametrize("channels", [7, 16, 100])
@pytest.mark.parametrize("dtype", DTYPES)
def test_independent_of_the_number_of_threads(
    built: None, threads: None, dtype: torch.dtype, channels: int, form: Form
) -> None:
    inputs = draw(channels, (10, 31, 33), dtype)
    torch.set_num_threads(1)
    one = run(*inputs, form)
    for count in (2, 3):
        torch.set_num_threads(count)
        for first, second in zip(one, run(*inputs, form), strict=True):
            assert torch.equal(first, second)


@pytest.mark.parametrize("channels", [7, 20])
@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_and_inf_propagate(built: None, dtype: torch.dtype, channels: int) -> None:
    x, residual, scale, shift, mean, dy, dm = draw(channels, (2, 5, 5), dtype)
    y, moments, dx = run(x, residual, scale, shift, mean, dy, dm)
    x[1, 2, 3, 4], x[0, 4, 0, 0], x[0, 5, 0, 1] = float("nan"), float("inf"), -float("inf")
    y_bad, moments_bad, dx_bad = run(x, residual, scale, shift, mean, dy, dm)
    assert y_bad[1, 2, 3, 4].isnan() and dx_bad[1, 2, 3, 4].isnan()
    assert y_bad[0, 4, 0, 0] == scale[4].sign() * float("inf")
    assert dx_bad[0, 5, 0, 1] == -dm[1, 5].sign() * float("inf")
    assert moments_bad[:, 2].isnan().all()
    assert moments_bad[:, 4].tolist() == [float("inf")] * 2
    assert moments_bad[:, 5].tolist() == [-float("inf"), float("inf")]
    healthy = [c for c in range(channels) if c not in (2, 4, 5)]
    assert torch.equal(moments_bad[:, healthy], moments[:, healthy])
    untouched = torch.isfinite(x)
    assert torch.equal(y_bad[untouched], y[untouched]) and torch.equal(dx_bad[untouched], dx[untouched])
    for form in Form:
        assert run(x, residual, scale, shift, mean, dy, dm, form)[0][1, 2, 3, 4].isnan()


@pytest.mark.parametrize("form", [f for f in Form if f not in (Form.AFFINE, Form.ADD_RELU)])
def test_far_from_zero_as_torch(built: None, form: Form) -> None:
    """Where an exponential leaves fp32's range, and around the kinks."""
    a = torch.cat([torch.linspace(-120, 120, 481), torch.linspace(-7, 7, 1401), torch.tensor([-3.0, 0.0, 3.0, 6.0])])
    x = a[:, None, None, None].contiguous(memory_format=torch.channels_last)
    one, zero = torch.ones(1), torch.zeros(1)
    y, _, dx = run(x, x, one, zero, zero, torch.ones_like(x), torch.zeros(2, 1), form)
    wide = a.double().requires_grad_()
    expected = ACTIVATIONS[form](wide)
    torch.testing.assert_close(y.flatten().double(), expected.detach(), rtol=1e-6, atol=1e-6)
    (slope,) = torch.autograd.grad(expected.sum(), wide)
    torch.testing.assert_close(dx.flatten().double(), slope, rtol=1e-6, atol=1e-6)


def test_every_nan_survives_rounding_to_bf16(built: None) -> None:
    """The NaN of all ones would be rounded up to zero."""
    x, residual, scale, shift, mean, dy, dm = draw(20, (2, 5, 5), torch.bfloat16)
    scale[3] = torch.tensor(0x7FFFFFFF, dtype=torch.int32).view(torch.float32)
    y, _, dx = run(x, residual, scale, shift, mean, dy, dm)
    assert y[:, 3].isnan().all() and dx[:, 3].isnan().all()
    assert int(y.isnan().sum()) == y[:, 3].numel()


def test_variance_far_from_zero_does_not_cancel(built: None) -> None:
    rng = torch.Generator().manual_seed(0)
    x = (1000 + torch.randn(8, 16, 16, 16, generator=rng)).to(memory_format=torch.channels_last)
    ones = torch.ones(16)
    moments = affine_with_moments(x, ones, ones, 1000 * ones)[1].double() / (8 * 256)
    var = x.double().var((0, 2, 3), unbiased=False)
    torch.testing.assert_close(moments[1] - moments[0].square(), var, rtol=1e-5, atol=0)


@pytest.mark.parametrize("form", Form)
@pytest.mark.parametrize("channels", [2, 5])
def test_gradcheck(channels: int, form: Form) -> None:
    rng = torch.Generator().manual_seed(1)
    leaves = torch.randn(2, 2, channels, 3, 4, generator=rng, dtype=torch.float64).requires_grad_().unbind()
    frozen = torch.randn(3, channels, generator=rng, dtype=torch.float64)
    used = leaves if form == Form.ADD_RELU else leaves[:1]
    assert torch.autograd.gradcheck(
        lambda x, *residual: affine_with_moments(x, *frozen, form, *residual, parameter=0.2), used
    )


@pytest.mark.parametrize("form", [f for f in Form if f not in (Form.AFFINE, Form.ADD_RELU)])
def test_plain_operations_are_exact_and_let_no_overflow_through_a_closed_gate(form: Form) -> None:
    a = torch.linspace(-8, 8, 41, dtype=torch.float64)[:, None, None, None].requires_grad_()
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    dy = torch.randn(a.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    slope = nn.LeakyReLU(0.1) if form == Form.LEAKY_RELU else ACTIVATIONS[form]
    y, _ = affine_with_moments(a, one, zero, zero, form, parameter=0.1)
    (found,), (expected,) = torch.autograd.grad(y, a, dy), torch.autograd.grad(slope(a), a, dy)
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=1e-15)
    if form in (Form.RELU, Form.RELU6, Form.HARDSWISH):
        overflown = torch.where(a < -4, torch.inf, dy)
        y, _ = affine_with_moments(a, one, zero, zero, form, parameter=0.1)
        assert torch.autograd.grad(y, a, overflown)[0].isfinite().all()


def test_without_a_compiler_plain_operations_take_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = draw(7, (3, 5, 6), torch.float32)
    with_kernel = run(*inputs)
    monkeypatch.setenv("CXX", str(tmp_path / "no-such-compiler"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library.cache_clear()
    try:
        with pytest.warns(UserWarning, match=r"no C\+\+ compiler"):
            assert library() is None
        plain = run(*inputs)
    finally:
        library.cache_clear()
    for first, second in zip(with_kernel, plain, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-5)
    assert torch.equal(plain[1], channel_moments(inputs[0], inputs[4]))


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, built: None) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # no folder can be made below a file
    library.cache_clear()
    try:
        assert library() is not None
        assert kernel_applies(torch.rand(1, 16, 4, 4).to(memory_format=torch.channels_last))
    finally:
        library.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_compiled_equals_eager(dtype: torch.dtype) -> None:
    """In fp64 by the plain operations, which a GPU compiles: there is no kernel for it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(3, 7, 3),
            nn.BatchNorm2d(7),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(7, 4),
        )
        view = torch.rand(3, 3, 8, 8)
        weights = torch.randn(3, 4), torch.randn(2, 7)
    teacher = Teacher("tiny", net, ModelCard("tiny", "test", 8, 4), dtype=dtype)
    weights = tuple(w.to(dtype) for w in weights)

    def both() -> tuple[torch.Tensor, ...]:
        leaf = view.to(dtype).requires_grad_()
        logits, moments, *_ = teacher.observe(leaf)
        (gradient,) = torch.autograd.grad((logits, moments), leaf, weights)
        return logits.detach(), moments.detach(), gradient

    eager = both()
    teacher.compile()
    for first, second in zip(eager, both(), strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)


def test_nothing_falls_back_to_eager_silently(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three teachers, two passes, three batch sizes: 18 variants of one code object, each a compiled graph."""
    compiled: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., object]:
        compiled.append(len(inputs))
        return graph.forward

    original = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **options: original(f, **options, backend=backend))
    torch._dynamo.reset()
    calls = 0
    for i in range(3):
        net = nn.Sequential(nn.Conv2d(3, 4 + i, 3), nn.BatchNorm2d(4 + i), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        teacher = Teacher(f"{i}", net, ModelCard("tiny", "test", 8, 4 + i))
        teacher.compile()
        for images in (2, 3, 5):
            for gradient in (False, True):
                for _ in range(2):  # the second time nothing is left to compile
                    teacher.observe(torch.rand(images, 3, 8, 8, requires_grad=gradient))
                calls += 1
    assert len(compiled) == calls == 18
    assert torch._dynamo.config.fail_on_recompile_limit_hit
    assert not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.parametrize("part", ["scale", "shape", "dtype", "form"])
def test_what_does_not_fit_is_refused(part: str) -> None:
    """The kernel itself trusts its pointers."""
    x, residual, scale, shift, mean, _, _ = draw(20, (3, 8, 8), torch.float32)
    form = Form.ADD_RELU
    if part == "scale":
        scale = scale[:16]
    elif part == "shape":
        residual = residual[:, :, :1]
    elif part == "dtype":
        residual = residual.double()
    else:
        form = Form.RELU
    with pytest.raises((RuntimeError, ValueError)):
        affine_with_moments(x, scale, shift, mean, form, residual)
