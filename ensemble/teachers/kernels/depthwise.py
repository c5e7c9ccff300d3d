"""A depthwise convolution of frozen weights: by a C++ kernel on a CPU in fp32 or bf16, else by torch.

Torch's own reads and writes at a third of what memory allows on a CPU with AVX2 alone, and takes forty times as long in
bf16 where it has no fast path for a stride. To torch.compile the kernel is one operation.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.grad import conv2d_input

from ensemble.teachers.kernels.build import library, takes

Around = tuple[tuple[int, int], tuple[int, int]]
"""Padding before and behind, of rows and of columns."""


def depthwise_conv(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, stride: int, around: Around
) -> torch.Tensor:
    """`F.conv2d` of x (N, C, H, W) zero-padded by `around`, with weight (C, 1, k, k), bias (C,) and groups = C.

    In x's dtype; the kernel adds in fp32, in the order of the taps, and rounds once. Differentiable once, in x alone.
    """
    (top, bottom), (left, right) = around
    if takes(x):
        return _Depthwise.apply(x, weight, bias, stride, top, bottom, left, right)
    return _plain(x, weight, bias, stride, top, bottom, left, right)


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *geometry: int) -> Any:
        ctx.save_for_backward(weight)
        ctx.size, ctx.geometry = x.shape[2:], geometry
        return (_forward_op if torch.compiler.is_compiling() else _forward)(x, weight, bias, *geometry)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> Any:
        (weight,) = ctx.saved_tensors
        run = _gradient_op if torch.compiler.is_compiling() else _gradient
        return run(dy, weight, *ctx.size, *ctx.geometry), None, None, None, None, None, None, None


def _plain(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: int,
    top: int,
    bottom: int,
    left: int,
    right: int,
) -> torch.Tensor:
    even, padding = _even(weight, top, bottom, left, right)
    return F.conv2d(x, even, bias, stride, padding, groups=len(weight))


def _even(weight: torch.Tensor, top: int, bottom: int, left: int, right: int) -> tuple[torch.Tensor, list[int]]:
    """An equal filter for padding that is the same before and behind, and that padding."""
    if bottom != top or right != left:
        weight = F.pad(weight, (right - left, 0, bottom - top, 0))
    return weight, [bottom, right]


def _forward(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: int,
    top: int,
    bottom: int,
    left: int,
    right: int,
) -> torch.Tensor:
    n, c, height, width = x.shape
    k = weight.shape[2]
    rows, columns = (height + top + bottom - k) // stride + 1, (width + left + right - k) // stride + 1
    if library() is None or min(rows, columns) < 1:
        return _plain(x, weight, bias, stride, top, bottom, left, right)
    y = torch.empty((n, c, rows, columns), dtype=x.dtype, memory_format=torch.channels_last)
    _call(False, x, weight, None if bias is None else bias.float().contiguous(), y, stride, top, left)
    return y


def _gradient(
    dy: torch.Tensor,
    weight: torch.Tensor,
    height: int,
    width: int,
    stride: int,
    top: int,
    bottom: int,
    left: int,
    right: int,
) -> torch.Tensor:
    size = (*dy.shape[:2], height, width)
    if library() is None:
        even, padding = _even(weight, top, bottom, left, right)
        return conv2d_input(size, even, dy, stride, padding, groups=len(weight))
    dx = torch.empty(size, dtype=dy.dtype, memory_format=torch.channels_last)
    _call(True, dy, weight, None, dx, stride, top, left)
    return dx


def _call(
    gradient: bool,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    y: torch.Tensor,
    stride: int,
    top: int,
    left: int,
) -> None:
    x = x.contiguous(memory_format=torch.channels_last)
    taps = weight.float().flatten(1).t().contiguous()  # (k k, C)
    n, c, *size = x.shape
    pointers = [None if tensor is None else tensor.data_ptr() for tensor in (x, taps, bias, y)]
    sizes = (n, *size, *y.shape[2:], c, weight.shape[2], stride, top, left)
    getattr(library(), "depthwise")(  # noqa: B009
        int(gradient), int(x.dtype == torch.bfloat16), *pointers, *sizes, torch.get_num_threads()
    )


_forward_op = torch.library.custom_op("ensemble::depthwise", _forward, mutates_args=())
_gradient_op = torch.library.custom_op("ensemble::depthwise_gradient", _gradient, mutates_args=())


@_forward_op.register_fake
def _(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: object,
    stride: int,
    top: int,
    bottom: int,
    left: int,
    right: int,
) -> torch.Tensor:
    k = weight.shape[2]
    rows, columns = (x.shape[2] + top + bottom - k) // stride + 1, (x.shape[3] + left + right - k) // stride + 1
    return x.new_empty((*x.shape[:2], rows, columns)).contiguous(memory_format=torch.channels_last)


@_gradient_op.register_fake
def _(dy: torch.Tensor, weight: object, height: int, width: int, *geometry: int) -> torch.Tensor:
    return dy.new_empty((*dy.shape[:2], height, width)).contiguous(memory_format=torch.channels_last)
