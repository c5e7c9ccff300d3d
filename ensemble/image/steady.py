"""Layers whose gradients have the same bits on any number of CPU threads: ranks of one run may have different ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_input, conv2d_weight


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x W^T: (N, I) and (O, I) to (N, O)."""
    out: Tensor = _Linear.apply(x, weight)
    return out


def convolution(x: Tensor, weight: Tensor) -> Tensor:
    """The convolution of (N, I, H, W) with (O, I, 3, 3), padded with zeros: (N, O, H, W)."""
    out: Tensor = _Convolution.apply(x, weight)
    return out


def standardised(x: Tensor) -> Tensor:
    """(x - mean) / deviation over all numbers of each image, (N, ...); 0 where an image's deviation is 0."""
    out: Tensor = _Standardised.apply(x)
    return out


def in_one_thread(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """function(x), it and its gradient computed by one CPU thread: for what is not made of the layers here."""
    if torch.is_grad_enabled():
        out: Tensor = _InOneThread.apply(function, x)
        return out
    with _one_thread():
        return function(x)


def twice_as_large(maps: Tensor) -> Tensor:
    """(N, C, H, W) to (N, C, 2 H, 2 W), each pixel repeated: the gradient is a plain sum, deterministic on CUDA."""
    n, channels, height, width = maps.shape
    repeated = maps[:, :, :, None, :, None].expand(-1, -1, -1, 2, -1, 2)
    return repeated.reshape(n, channels, 2 * height, 2 * width)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        with _one_thread():
            return F.linear(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        with _one_thread():
            of_x = gradient @ weight if ctx.needs_input_grad[0] else None
            return of_x, gradient.T @ x if ctx.needs_input_grad[1] else None


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, padding=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None]:
        x, weight = ctx.saved_tensors
        of_x = conv2d_input(x.shape, weight, gradient, padding=1)
        if not ctx.needs_input_grad[1]:
            return of_x, None
        with _one_thread():  # threads share out the images, and each sums its own
            return of_x, conv2d_weight(x, weight.shape, gradient, padding=1)


class _Standardised(torch.autograd.Function):
    """y = (x - m) / s, so dL/dx = (g - mean g - y mean(g y)) / s of g = dL/dy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        with _one_thread():
            centred = x - _mean(x)
            deviation = _mean(centred.square()).sqrt()
            inverse = torch.where(deviation > 0, 1 / deviation, 0)
            y = centred * inverse
        ctx.save_for_backward(y, inverse)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        y, inverse = ctx.saved_tensors
        with _one_thread():
            return (gradient - _mean(gradient) - y * _mean(gradient * y)) * inverse


class _InOneThread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        with _one_thread(), torch.enable_grad():
            ctx.x = x.detach().requires_grad_()
            ctx.out = function(ctx.x)
        return ctx.out.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        with _one_thread():
            (of_x,) = torch.autograd.grad(ctx.out, ctx.x, gradient, retain_graph=True)
        return None, of_x


def _mean(x: Tensor) -> Tensor:
    return x.mean(tuple(range(1, x.ndim)), keepdim=True)


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
