"""A 3 x 3 convolution of frozen weights with a quarter of the products: by a C++ kernel on a CPU in fp32, else torch's.

Winograd's F(4 x 4, 3 x 3): Lavin & Gray, Fast Algorithms for Convolutional Neural Networks, CVPR 2016. The filters'
part of the work is done once, since they are frozen. To torch.compile the kernel is one operation.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from ensemble.machine.hardware import widest_is_avx2
from ensemble.teachers.kernels.build import library, takes

BLOCK = 16
"""Channels come in multiples of this."""
_POINTS = 36
_G_TIMES_24 = ((6, 0, 0), (-4, -4, -4), (-4, 4, -4), (1, 2, 4), (1, -2, 4), (0, 0, 24))


def winograd_pays() -> bool:
    """Whether there is the kernel, and built for what it was faster on: x86 with AVX2, and no wider vectors."""
    kernels = library()
    return kernels is not None and bool(kernels.winograd_has_vectors()) and widest_is_avx2()


def winograd_filters(weight: torch.Tensor) -> torch.Tensor:
    """G w G^T of each filter of (out, in, 3, 3), as the kernel reads them: fp32 (36, out / 16, in * 16).

    Of three dimensions, since those of a network's tensors that have four are stored with the channels last.
    """
    g = torch.tensor(_G_TIMES_24, dtype=torch.float64) / 24
    values = torch.einsum("pi,ocij,qj->pqoc", g, weight.detach().double().cpu(), g)
    blocks = values.reshape(_POINTS, len(weight) // BLOCK, BLOCK, weight.shape[1])
    return blocks.transpose(2, 3).flatten(2).float().contiguous()


def gradient_filters(weight: torch.Tensor) -> torch.Tensor:
    """Those of the convolution that takes a gradient back to the image."""
    return winograd_filters(weight.flip(2, 3).transpose(0, 1))


def winograd_conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    padding: int,
    filters: torch.Tensor,
    back: torch.Tensor,
) -> torch.Tensor:
    """`F.conv2d` of x (N, C, H, W) with weight (O, C, 3, 3), bias (O,) and `padding` zeros (0, 1 or 2) on each side.

    `filters` and `back` are the weight's `winograd_filters` and `gradient_filters`. Rounding is some five times that of
    the definition: where channels are 64 and values normal, the relative error is 2e-6 instead of 4e-7. Differentiable
    once, in x alone. In another precision, on another device, and where it would take more than half of the products,
    as for sides of 1, 2 and 5, it is torch's.
    """
    if _fits(x, weight, bias, filters, back) and _halves(*(side + 2 * padding - 2 for side in x.shape[2:])):
        return _Winograd.apply(x, filters, back, bias, padding)
    return F.conv2d(x, weight, bias, 1, padding)


def _fits(x: torch.Tensor, weight: torch.Tensor, *others: torch.Tensor | None) -> bool:
    """Whether the kernel may read these; of what does not go together torch says what is wrong."""
    single = all(tensor is None or tensor.dtype == torch.float32 for tensor in (x, weight, *others))
    return single and takes(x) and x.ndim == 4 and x.shape[1] == weight.shape[1]


def _halves(rows: int, columns: int) -> bool:
    """Whether so many outputs take half of the products or fewer; false where there are none."""
    tiles = -(-rows // 4) * -(-columns // 4)
    return min(rows, columns) > 0 and 9 * rows * columns >= 2 * _POINTS * tiles


class _Winograd(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, filters: torch.Tensor, back: torch.Tensor, bias: torch.Tensor | None, padding: int
    ) -> torch.Tensor:
        ctx.save_for_backward(back)
        ctx.padding = padding
        return (_convolve_op if torch.compiler.is_compiling() else _convolve)(x, filters, bias, padding)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor, None, None, None, None]:
        (back,) = ctx.saved_tensors
        run = _convolve_op if torch.compiler.is_compiling() else _convolve
        return run(dy, back, None, 2 - ctx.padding), None, None, None, None


def _outputs(x: torch.Tensor, filters: torch.Tensor, padding: int) -> list[int]:
    rows, columns = (side + 2 * padding - 2 for side in x.shape[2:])
    return [len(x), filters.shape[1] * BLOCK, rows, columns]


def _convolve(x: torch.Tensor, filters: torch.Tensor, bias: torch.Tensor | None, padding: int) -> torch.Tensor:
    kernels = library()
    assert kernels is not None
    x = x.contiguous(memory_format=torch.channels_last)
    size, threads = _outputs(x, filters, padding), torch.get_num_threads()
    y = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    images, out, *sides = size
    channels = x.shape[1]
    scratch = x.new_empty(kernels.winograd_scratch(images, *sides, channels, out, threads))
    pointers = [None if tensor is None else tensor.data_ptr() for tensor in (x, filters, bias, y, scratch)]
    kernels.winograd(*pointers, images, *x.shape[2:], *sides, channels, out, padding, threads)
    return y


_convolve_op = torch.library.custom_op("ensemble::winograd", _convolve, mutates_args=())


@_convolve_op.register_fake
def _(x: torch.Tensor, filters: torch.Tensor, bias: object, padding: int) -> torch.Tensor:
    return x.new_empty(_outputs(x, filters, padding)).contiguous(memory_format=torch.channels_last)
