"""Strided convolutions in forms that CPUs compute faster: stems without their stride, depthwise ones without a trap."""

from __future__ import annotations

import sys
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


class SpaceToDepthConv(nn.Module):
    """A strided convolution of few channels as an equal one without stride.

    With stride s, blocks of s x s pixels become channels: (N, C, H, W) -> (N, s s C, H / s, W / s), and a k x k kernel
    becomes ceil(k / s) x ceil(k / s). The sums are the same, with zeros where k is no multiple of s. CPU convolutions
    compute 16 channels at a time, and 3 take them as long: the stem of a ResNet is 2.4 times faster this way.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.stride, self.padding = conv.stride[0], _padding(conv)
        out, channels, k, _ = conv.weight.shape
        self.taps = -(-k // self.stride)
        short = self.taps * self.stride - k
        weight = F.pad(conv.weight.detach(), (0, short, 0, short))
        weight = weight.reshape(out, channels, self.taps, self.stride, self.taps, self.stride)
        weight = weight.permute(0, 3, 5, 1, 2, 4).reshape(out, -1, self.taps, self.taps)
        self.kernel_size = k
        self.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
        self.bias = None if conv.bias is None else nn.Parameter(conv.bias.detach().clone(), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, c, height, width = x.shape
        s = self.stride
        (top, rows), (left, columns) = (self._blocks(size) for size in (height, width))
        x = F.pad(x, (left, columns * s - width - left, top, rows * s - height - top))  # crops what no output sees
        x = x.permute(0, 2, 3, 1).reshape(n, rows, s, columns, s, c)
        x = x.permute(0, 1, 3, 2, 4, 5).reshape(n, rows, columns, s * s * c)
        return F.conv2d(x.permute(0, 3, 1, 2), self.weight, self.bias)

    def _blocks(self, size: int) -> tuple[int, int]:
        """Padding before a side, and how many blocks of s pixels it has."""
        before, after = _around(size, self.kernel_size, self.stride, self.padding)
        return before, (size + before + after - self.kernel_size) // self.stride + self.taps


class StridedDepthwise(nn.Module):
    """A strided depthwise convolution, one filter a channel.

    oneDNN's gradient of it in bf16 takes ten to forty times as long as without stride; there the gradient is that of
    the convolution without stride, at an output with zeros between. Padding of one pixel more behind than before, as
    TensorFlow's `same` has it, is not written to memory: the filter gets one more tap, a zero in front.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.stride, self.padding = conv.stride[0], _padding(conv)
        self.kernel_size = conv.kernel_size[0]
        self.weight = nn.Parameter(conv.weight.detach().clone(), requires_grad=False)
        self.bias = None if conv.bias is None else nn.Parameter(conv.bias.detach().clone(), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        around = [_around(size, self.kernel_size, self.stride, self.padding) for size in x.shape[2:]]
        if x.dtype == torch.bfloat16 and x.device.type == "cpu":
            y = _WithoutStride.apply(x, self.weight, self.stride, around)
            return y if self.bias is None else y + self.bias[:, None, None]
        weight, padding = _even(self.weight, around)
        return F.conv2d(x, weight, self.bias, self.stride, padding, groups=len(self.weight))


class _WithoutStride(torch.autograd.Function):
    """The convolution; its gradient at the image by the transposed filters, without stride."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, stride: int, around: list[tuple[int, int]]) -> Any:
        ctx.save_for_backward(weight)
        ctx.stride, ctx.around, ctx.size = stride, around, x.shape
        padded, padding = _even(weight, around)
        return F.conv2d(x, padded, None, stride, padding, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        (weight,) = ctx.saved_tensors
        n, c, height, width = ctx.size
        k, s = weight.shape[2], ctx.stride
        spread = dy.new_zeros((n, height + k - 1, width + k - 1, c)).permute(0, 3, 1, 2)
        first = [k - 1 - before for before, _ in ctx.around]
        last = [start + s * (outputs - 1) for start, outputs in zip(first, dy.shape[2:], strict=True)]
        spread[:, :, first[0] : last[0] + 1 : s, first[1] : last[1] + 1 : s] = dy
        return F.conv2d(spread, weight.flip(2, 3), None, groups=c), None, None, None


def _even(weight: torch.Tensor, around: list[tuple[int, int]]) -> tuple[torch.Tensor, list[int]]:
    """An equal filter for padding that is the same before and behind, and that padding."""
    more = [after - before for before, after in around]
    if any(more):
        weight = F.pad(weight, (more[1], 0, more[0], 0))
    return weight, [after for _, after in around]


def _around(size: int, k: int, stride: int, padding: int | None) -> tuple[int, int]:
    """Padding before and behind a side; None is TensorFlow's `same`: ceil(size / stride) outputs."""
    if padding is not None:
        return padding, padding
    whole = max((-(-size // stride) - 1) * stride + k - size, 0)
    return whole // 2, whole - whole // 2


def _padding(conv: nn.Conv2d) -> int | None:
    return None if _is_same(conv) else int(conv.padding[0])


def _is_same(module: nn.Module) -> bool:
    """Whether it is timm's convolution with TensorFlow's padding: a network that has one has imported it."""
    return type(module) is getattr(sys.modules.get("timm.layers"), "Conv2dSame", None)


def has_hooks(module: nn.Module) -> bool:
    return any((module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks))


def _is_square(module: nn.Module) -> bool:
    """A convolution of that very class, without hooks, of equal sides, whose weight is its own."""
    if not isinstance(module, nn.Conv2d) or not (type(module) is nn.Conv2d or _is_same(module)):
        return False
    return (
        not has_hooks(module)
        and "weight" in module._parameters  # else it is computed from others
        and module.padding_mode == "zeros"
        and module.dilation == (1, 1)
        and module.stride[0] == module.stride[1] > 1
        and module.kernel_size[0] == module.kernel_size[1] > module.stride[0]
        and not isinstance(module.padding, str)
        and module.padding[0] == module.padding[1]
    )


def _is_stem(conv: nn.Conv2d) -> bool:
    return conv.in_channels <= 4 and conv.groups == 1 and conv.stride[0] in (2, 4)


def _is_depthwise(conv: nn.Conv2d) -> bool:
    return conv.groups == conv.in_channels == conv.out_channels and int(conv.padding[0]) < conv.kernel_size[0]


def replace_strided(net: nn.Module) -> int:
    """Replace strided stems of at most 4 channels and strided depthwise convolutions, in place; how many there were."""
    found = [(n, m) for n, m in net.named_modules(remove_duplicate=False) if n and _is_square(m)]
    count = 0
    for name, conv in found:
        assert isinstance(conv, nn.Conv2d)
        if _is_stem(conv) or _is_depthwise(conv):
            net.set_submodule(name, SpaceToDepthConv(conv) if _is_stem(conv) else StridedDepthwise(conv))
            count += 1
    return count
