"""A depthwise convolution of frozen weights: by a C++ kernel on a CPU in fp32 or bf16, else by torch.

In bf16, with a stride, torch's gradient took ten times as long where it was measured; in fp32 up to one and a half. To
torch.compile the kernel is one operation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.grad import conv2d_input

from ensemble.teachers.kernels.build import library, takes


def depthwise_conv(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, stride: int, around: Sequence[int]
) -> torch.Tensor:
    """`F.conv2d` of x (N, C, H, W) with weight (C, 1, k, k), bias (C,) and groups = C, in x's dtype.

    `around` is the padding with zeros: top, bottom, left, right. The kernel adds in fp32, in the order of the taps, and
    rounds once. Differentiable once, in x alone. RuntimeError where the padded image is smaller than the filter. In
    bf16 without a stride it is torch's, which has vectors for that.
    """
    if takes(x) and (stride > 1 or x.dtype != torch.bfloat16):
        return _Depthwise.apply(x, weight, bias, stride, list(around))
    return _plain(x, weight, bias, stride, around)


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, stride: int, around: list[int]
    ) -> torch.Tensor:
        ctx.save_for_backward(weight)
        ctx.size, ctx.stride, ctx.around = list(x.shape[2:]), stride, around
        return (_forward_op if torch.compiler.is_compiling() else _forward)(x, weight, bias, stride, around)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor, None, None, None, None]:
        (weight,) = ctx.saved_tensors
        run = _gradient_op if torch.compiler.is_compiling() else _gradient
        return run(dy, weight, ctx.size, ctx.stride, ctx.around), None, None, None, None


def _plain(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, stride: int, around: Sequence[int]
) -> torch.Tensor:
    even, padding = _even(weight, around)
    return F.conv2d(x, even, bias, stride, padding, groups=len(weight))


def _even(weight: torch.Tensor, around: Sequence[int]) -> tuple[torch.Tensor, list[int]]:
    """An equal filter for padding that is the same before and behind, and that padding."""
    top, bottom, left, right = around
    if bottom != top or right != left:
        weight = F.pad(weight, (right - left, 0, bottom - top, 0))
    return weight, [bottom, right]


def _outputs(x: torch.Tensor, weight: torch.Tensor, stride: int, around: Sequence[int]) -> list[int]:
    """Rows and columns."""
    padded = x.shape[2] + around[0] + around[1], x.shape[3] + around[2] + around[3]
    return [(side - weight.shape[2]) // stride + 1 for side in padded]


def _forward(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, stride: int, around: Sequence[int]
) -> torch.Tensor:
    size = _outputs(x, weight, stride, around)
    if library() is None or min(size) < 1:
        return _plain(x, weight, bias, stride, around)
    y = torch.empty((*x.shape[:2], *size), dtype=x.dtype, memory_format=torch.channels_last)
    _call(False, x, weight, None if bias is None else bias.float().contiguous(), y, stride, around)
    return y


def _gradient(
    dy: torch.Tensor, weight: torch.Tensor, size: Sequence[int], stride: int, around: Sequence[int]
) -> torch.Tensor:
    shape = (*dy.shape[:2], *size)
    if library() is None:
        even, padding = _even(weight, around)
        return conv2d_input(shape, even, dy, stride, padding, groups=len(weight))
    dx = torch.empty(shape, dtype=dy.dtype, memory_format=torch.channels_last)
    _call(True, dy, weight, None, dx, stride, around)
    return dx


def _call(
    gradient: bool,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    y: torch.Tensor,
    stride: int,
    around: Sequence[int],
) -> None:
    kernels = library()
    assert kernels is not None
    x = x.contiguous(memory_format=torch.channels_last)
    taps = weight.float().flatten(1).t().contiguous()  # (k k, C)
    pointers = [None if tensor is None else tensor.data_ptr() for tensor in (x, taps, bias, y)]
    sizes = (len(x), *x.shape[2:], *y.shape[2:], x.shape[1], weight.shape[2], stride, around[0], around[2])
    kernels.depthwise(int(gradient), int(x.dtype == torch.bfloat16), *pointers, *sizes, torch.get_num_threads())


_forward_op = torch.library.custom_op("ensemble::depthwise", _forward, mutates_args=())
_gradient_op = torch.library.custom_op("ensemble::depthwise_gradient", _gradient, mutates_args=())


@_forward_op.register_fake
def _(x: torch.Tensor, weight: torch.Tensor, bias: object, stride: int, around: Sequence[int]) -> torch.Tensor:
    y = x.new_empty((*x.shape[:2], *_outputs(x, weight, stride, around)))
    return y.contiguous(memory_format=torch.channels_last)


@_gradient_op.register_fake
def _(dy: torch.Tensor, weight: object, size: Sequence[int], stride: int, around: Sequence[int]) -> torch.Tensor:
    return dy.new_empty((*dy.shape[:2], *size)).contiguous(memory_format=torch.channels_last)
