"""The frozen affine map of a BatchNorm, what the network does next with it, and the moments of its input.

Two forms of one thing. Plain torch operations: the definition, for every device and dtype; on a GPU torch.compile
fuses them. On a CPU in fp32 or bf16, a C++ kernel that passes over memory once forward and once backward; to
torch.compile it is one operation.
"""

from __future__ import annotations

from typing import Any

import torch

from ensemble.teachers.kernels.build import library, takes
from ensemble.teachers.kernels.form import Form, activate, through

Pair = tuple[torch.Tensor, torch.Tensor]


def channel_moments(x: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """Sums over (N, H, W) of (x - mean) and of (x - mean)^2, stacked: (2, C), in the dtype of `mean`."""
    centred = x.to(mean.dtype) - mean[:, None, None]
    return torch.stack([centred.sum((0, 2, 3)), centred.square().sum((0, 2, 3))])


def kernel_applies(x: torch.Tensor, *per_channel: torch.Tensor) -> bool:
    """Whether the C++ kernel takes `x` (N, C, H, W): on a CPU, fp32 or bf16, channels_last, and there is one."""
    return (
        takes(x)
        and all(v.dtype == torch.float32 and v.is_contiguous() for v in per_channel)
        and x.is_contiguous(memory_format=torch.channels_last)
        and library() is not None
    )


def _forward(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    scale: torch.Tensor,
    shift: torch.Tensor,
    mean: torch.Tensor,
    form: int,
    parameter: float,
) -> Pair:
    """y and moments: by the kernel, or by plain operations."""
    if kernel_applies(x, scale, shift, mean):
        y, moments = torch.empty_like(x), mean.new_empty((2, x.shape[1]))
        z = residual.contiguous(memory_format=torch.channels_last) if residual is not None else None
        _call("forward", form, parameter, x, x, z, y, mean, scale, shift, moments)
        return y, moments
    y = x.to(scale.dtype) * scale[:, None, None] + shift[:, None, None]
    if residual is not None:
        y = y + residual.to(scale.dtype)
    y = activate(y, Form(form), parameter)
    # Up to torch 2.11 a traced autograd.Function loses the gradient of an output that `to` leaves as it is.
    return y if y.dtype == x.dtype else y.to(x.dtype), channel_moments(x, mean)


def _gradient(
    dy: torch.Tensor,
    x: torch.Tensor,
    y: torch.Tensor | None,
    scale: torch.Tensor,
    shift: torch.Tensor,
    slope: torch.Tensor,
    offset: torch.Tensor,
    form: int,
    parameter: float,
) -> Pair:
    """dx, and dresidual (empty without a residual): by the kernel, or by plain operations."""
    if kernel_applies(x, scale, shift, slope, offset) and dy.dtype == x.dtype:
        dy = dy.contiguous(memory_format=torch.channels_last)
        y = None if y is None else y.contiguous(memory_format=torch.channels_last)
        dx = torch.empty_like(x)
        dz = torch.empty_like(x) if form == Form.ADD_RELU else x.new_empty(0)
        _call("gradient", form, parameter, x, dy, x, y, dx, dz, scale, shift, slope, offset)
        return dx, dz
    g, wide = dy.to(scale.dtype), x.to(scale.dtype)
    if y is not None:
        g = torch.where(y > 0, g, 0)
    elif form != Form.AFFINE:
        g = through(wide * scale[:, None, None] + shift[:, None, None], g, Form(form), parameter)
    dx = g * scale[:, None, None] + (wide * slope[:, None, None] + offset[:, None, None])
    return dx.to(x.dtype), g.to(x.dtype) if form == Form.ADD_RELU else x.new_empty(0)


def _call(name: str, form: int, parameter: float, like: torch.Tensor, *tensors: torch.Tensor | None) -> None:
    """The C++ function on tensors of the dtype and shape of `like` and on per-channel ones."""
    n, channels, height, width = like.shape
    pointers = [None if tensor is None else tensor.data_ptr() for tensor in tensors]
    half = int(like.dtype == torch.bfloat16)
    getattr(library(), name)(form, parameter, half, *pointers, n * height * width, channels, torch.get_num_threads())


_forward_op = torch.library.custom_op("ensemble::affine_with_moments", _forward, mutates_args=())
_gradient_op = torch.library.custom_op("ensemble::affine_with_moments_gradient", _gradient, mutates_args=())


@_forward_op.register_fake
def _(
    x: torch.Tensor, residual: object, scale: object, shift: object, mean: torch.Tensor, form: int, parameter: float
) -> Pair:
    return torch.empty_like(x), mean.new_empty((2, x.shape[1]))


@_gradient_op.register_fake
def _(
    dy: object,
    x: torch.Tensor,
    y: object,
    scale: object,
    shift: object,
    slope: object,
    offset: object,
    form: int,
    parameter: float,
) -> Pair:
    return torch.empty_like(x), torch.empty_like(x) if form == Form.ADD_RELU else x.new_empty(0)


class _AffineWithMoments(torch.autograd.Function):
    """One backward for both outputs: the gradient is rounded to x's dtype once, and needs no reduction."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        residual: torch.Tensor | None,
        scale: torch.Tensor,
        shift: torch.Tensor,
        mean: torch.Tensor,
        form: int,
        parameter: float,
    ) -> Pair:
        run = _forward_op if _is_one_operation(x) else _forward
        y, moments = run(x, residual, scale, shift, mean, form, parameter)
        # The gate of an activation follows from x; that of ADD_RELU would need the residual, so the output is kept.
        ctx.save_for_backward(x, y if form == Form.ADD_RELU else None, scale, shift, mean)
        ctx.form, ctx.parameter = form, parameter
        return y, moments

    @staticmethod
    def backward(
        ctx: Any, dy: torch.Tensor, dmoments: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None, None, None, None, None, None]:
        x, y, scale, shift, mean = ctx.saved_tensors
        # d/dx [sum (x - m), sum (x - m)^2] = [1, 2 (x - m)], folded into slope * x + offset per channel
        slope = 2 * dmoments[1]
        offset = dmoments[0] - slope * mean
        run = _gradient_op if _is_one_operation(x) else _gradient
        dx, dz = run(dy, x, y, scale, shift, slope, offset, ctx.form, ctx.parameter)
        return dx, dz if ctx.form == Form.ADD_RELU else None, None, None, None, None, None


def _is_one_operation(x: torch.Tensor) -> bool:
    """Whether torch.compile is at work and must not look inside: it cannot trace a call through ctypes."""
    return torch.compiler.is_compiling() and takes(x)


def affine_with_moments(
    x: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    mean: torch.Tensor,
    form: Form = Form.AFFINE,
    residual: torch.Tensor | None = None,
    parameter: float = 0.0,
) -> Pair:
    """y in x's dtype, which is `form` of scale * x + shift per channel, and `channel_moments(x, mean)`.

    `x` is (N, C, H, W); `scale`, `shift`, `mean` are frozen (C,) tensors, at least fp32. `residual`, for
    `Form.ADD_RELU` alone, has the shape and dtype of `x`. `parameter` is the form's. Differentiable in x and the
    residual: with g = f'(a) dy, dx = scale * g + dm[0] + 2 dm[1] (x - mean) and dresidual = g. Everything is
    computed in the dtype of `scale` and rounded once; torch would round between the operations. RuntimeError where
    shapes or dtypes do not fit.
    """
    if (form == Form.ADD_RELU) != (residual is not None):
        raise ValueError(f"{form.name} and residual: one needs the other")
    if any(values.shape != (x.shape[1],) for values in (scale, shift, mean)):
        raise RuntimeError(f"{x.shape[1]} channels, but {len(scale)}, {len(shift)} and {len(mean)} values for them")
    if residual is not None and (residual.shape != x.shape or residual.dtype != x.dtype):
        raise RuntimeError(f"residual {residual.dtype} {tuple(residual.shape)} beside {x.dtype} {tuple(x.shape)}")
    return _AffineWithMoments.apply(x, residual, scale, shift, mean, form, parameter)
