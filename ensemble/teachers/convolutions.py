"""Convolutions in forms that CPUs compute faster: stems without their stride, depthwise ones and those of 3 x 3 by
kernels of our own."""

from __future__ import annotations

import sys

import torch
import torch.nn.functional as F
from torch import nn

from ensemble.teachers.kernels import (
    BLOCK,
    depthwise_conv,
    gradient_filters,
    winograd_conv,
    winograd_filters,
    winograd_pays,
)

_LARGEST = 512 * 512
"""Channels in times channels out, up to which 3 x 3 convolutions are replaced."""


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


class Depthwise(nn.Module):
    """A depthwise convolution, one filter a channel, of zero or TensorFlow's padding: `depthwise_conv`."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.stride, self.padding = conv.stride[0], _padding(conv)
        self.kernel_size = conv.kernel_size[0]
        self.weight = nn.Parameter(conv.weight.detach().clone(), requires_grad=False)
        self.bias = None if conv.bias is None else nn.Parameter(conv.bias.detach().clone(), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, columns = (_around(size, self.kernel_size, self.stride, self.padding) for size in x.shape[2:])
        return depthwise_conv(x, self.weight, self.bias, self.stride, (*rows, *columns))


class Winograd(nn.Module):
    """A convolution of 3 x 3 without stride, of 16 channels or a multiple: `winograd_conv`."""

    filters: torch.Tensor
    back: torch.Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.padding = int(conv.padding[0])
        self.weight = nn.Parameter(conv.weight.detach(), requires_grad=False)
        self.bias = None if conv.bias is None else nn.Parameter(conv.bias.detach(), requires_grad=False)
        self.register_buffer("filters", winograd_filters(self.weight), persistent=False)
        self.register_buffer("back", gradient_filters(self.weight), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return winograd_conv(x, self.weight, self.bias, self.padding, self.filters, self.back)


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
        and module.stride[0] == module.stride[1]
        and module.kernel_size[0] == module.kernel_size[1] > module.stride[0]
        and not isinstance(module.padding, str)
        and module.padding[0] == module.padding[1]
    )


def _is_stem(conv: nn.Conv2d) -> bool:
    return conv.in_channels <= 4 and conv.groups == 1 and conv.stride[0] in (2, 4)


def _is_depthwise(conv: nn.Conv2d) -> bool:
    """Whether it is one that the kernel computes faster: without stride, torch is at larger filters, few channels."""
    channels, k = conv.out_channels, conv.kernel_size[0]
    gains = conv.stride[0] > 1 or (k == 3 and channels >= 64 and channels % 16 == 0)
    return gains and conv.groups == conv.in_channels == channels and int(conv.padding[0]) < k


def _is_winograd(conv: nn.Conv2d) -> bool:
    """Whether the kernel takes it; its filters take eight times the weight's memory more."""
    out, channels, k, _ = conv.weight.shape
    plain = k == 3 and conv.stride[0] == 1 and conv.groups == 1 and int(conv.padding[0]) < k and not _is_same(conv)
    whole = out % BLOCK == 0 and channels % BLOCK == 0
    return plain and whole and out * channels <= _LARGEST


def _replacement(conv: nn.Conv2d, winograd: bool) -> nn.Module | None:
    if _is_stem(conv):
        return SpaceToDepthConv(conv)
    if _is_depthwise(conv):
        return Depthwise(conv)
    return Winograd(conv) if winograd and _is_winograd(conv) else None


def replace_convolutions(net: nn.Module, dtype: torch.dtype) -> int:
    """Replace strided stems of at most 4 channels, depthwise convolutions and those of 3 x 3, where it pays, in place;
    how many there were. `dtype` is that in which the network is to compute.
    """
    found = [(n, m) for n, m in net.named_modules(remove_duplicate=False) if n and _is_square(m)]
    winograd = dtype == torch.float32 and winograd_pays()
    count = 0
    others: dict[nn.Module, nn.Module | None] = {}
    for name, conv in found:
        assert isinstance(conv, nn.Conv2d)
        if conv not in others:  # under two names it is one
            others[conv] = _replacement(conv, winograd)
        if (other := others[conv]) is not None:
            net.set_submodule(name, other)
            count += 1
    return count
