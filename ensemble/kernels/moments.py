"""The frozen affine map of a BatchNorm and the moments of its input, with their joint gradient.

Three forms of one thing. Plain torch operations: the definition, for every device and dtype. On a CPU in fp32 or
bf16, a C++ kernel that passes over memory once forward and once backward. Under torch.compile in bf16 on a CPU, the
kernel for the moments alone: the code generator fuses the affine map with what follows it, and in fp32 and on a GPU
the moments as well, but makes a slow reduction of a bf16 tensor accumulated in fp32.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch

from ensemble.kernels.build import library


def channel_moments_plain(x: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """`channel_moments` by plain torch operations, in the dtype of `mean`."""
    centred = x.to(mean.dtype) - mean[:, None, None]
    return torch.stack([centred.sum((0, 2, 3)), centred.square().sum((0, 2, 3))])


def _kernel(name: str, x: torch.Tensor, *per_channel: torch.Tensor) -> Any:
    """The C++ function for x's dtype, or None where it does not apply."""
    if x.device.type != "cpu" or x.dtype not in (torch.bfloat16, torch.float32):
        return None
    if any(v.dtype != torch.float32 or not v.is_contiguous() for v in per_channel):
        return None
    if not x.is_contiguous(memory_format=torch.channels_last) or (loaded := library()) is None:
        return None
    return getattr(loaded, f"{name}_{'bf16' if x.dtype == torch.bfloat16 else 'f32'}")


def _call(function: Any, inputs: tuple[torch.Tensor, ...], x: torch.Tensor, out: torch.Tensor) -> None:
    n, channels, height, width = x.shape
    pointers = [ctypes.c_void_p(t.data_ptr()) for t in inputs]
    function(*pointers, n * height * width, channels, ctypes.c_void_p(out.data_ptr()), torch.get_num_threads())


@torch.library.custom_op("ensemble::channel_moments_cpu", mutates_args=())
def _channel_moments_cpu(x: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    function = _kernel("moments", x, mean)
    if function is None:
        return channel_moments_plain(x, mean)
    out = mean.new_empty((2, x.shape[1]))
    _call(function, (x, mean), x, out)
    return out


@_channel_moments_cpu.register_fake
def _(x: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    return mean.new_empty((2, mean.shape[0]))


def channel_moments(x: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """Sums over (N, H, W) of (x - mean) and of (x - mean)^2, stacked: (2, C), in the dtype of `mean`.

    `x` is (N, C, H, W), `mean` (C,) float32 or float64. bf16 values are accumulated in fp32 or better.
    """
    dtypes = (torch.bfloat16,) if torch.compiler.is_compiling() else (torch.bfloat16, torch.float32)
    fast = x.device.type == "cpu" and x.dtype in dtypes and mean.dtype == torch.float32
    return _channel_moments_cpu(x, mean) if fast else channel_moments_plain(x, mean)


class _AffineWithMoments(torch.autograd.Function):
    """One backward for both outputs: the gradient is rounded to x's dtype once, and needs no reduction."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, mean: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.save_for_backward(x, scale, mean)
        if not torch.compiler.is_compiling() and (function := _kernel("affine_moments", x, mean, scale, shift)):
            y, moments = torch.empty_like(x), mean.new_empty((2, x.shape[1]))
            _call(function, (x, y, mean, scale, shift), x, moments)
            return y, moments
        y = (x.to(scale.dtype) * scale[:, None, None] + shift[:, None, None]).to(x.dtype)
        return y, channel_moments(x, mean)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor, dmoments: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        x, scale, mean = ctx.saved_tensors
        # d/dx [sum (x - m), sum (x - m)^2] = [1, 2 (x - m)], folded into slope * x + offset per channel
        slope = 2 * dmoments[1]
        offset = dmoments[0] - slope * mean
        if not torch.compiler.is_compiling() and dy.dtype == x.dtype:
            dy = dy.contiguous(memory_format=torch.channels_last)
            if function := _kernel("gradient", x, scale, slope, offset):
                dx = torch.empty_like(x)
                _call(function, (dy, x, scale, slope, offset), x, dx)
                return dx, None, None, None
        wide = scale.dtype
        dx = dy.to(wide) * scale[:, None, None] + (x.to(wide) * slope[:, None, None] + offset[:, None, None])
        return dx.to(x.dtype), None, None, None


def affine_with_moments(
    x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, mean: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(scale * x + shift) per channel, in x's dtype, and `channel_moments(x, mean)`.

    `x` is (N, C, H, W); `scale`, `shift`, `mean` are frozen (C,) tensors, at least fp32. Differentiable in x:
    dx = scale * dy + dm[0] + 2 dm[1] (x - mean).
    """
    return _AffineWithMoments.apply(x, scale, shift, mean)
