"""Equivalent, faster forms of a frozen network: what follows a BatchNorm becomes part of it, stems lose their stride.

Exact up to the order of roundings. Measured on CPUs only, so `Teacher` rewrites only there.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
import torch.fx
import torch.nn.functional as F
from torch import nn

from ensemble.kernels import Form
from ensemble.statistics import EmittingBatchNorm

_RELU_FUNCTIONS = (F.relu, torch.relu, torch.relu_)
_SUMS = (operator.add, operator.iadd, torch.add)


class _Tracer(torch.fx.Tracer):
    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        return isinstance(module, (EmittingBatchNorm, SpaceToDepthConv)) or super().is_leaf_module(
            module, qualified_name
        )


def fuse_activations(net: nn.Module, example: torch.Tensor) -> nn.Module:
    """`net` with `relu(bn(x))` and `relu(bn(x) + residual)` as one call of the EmittingBatchNorm each.

    The layers keep their names and their order of execution. `net` itself is returned where torch.fx cannot trace it
    (control flow that depends on values) or traces it wrongly: on the batch `example` both must say the same. A layer
    that is called more than once, or whose result has other users, is left alone. The result shares `net`'s modules.
    """
    alone = [m for m in net.modules() if isinstance(m, EmittingBatchNorm) and m.form == Form.AFFINE]
    try:
        traced = torch.fx.GraphModule(net, _Tracer().trace(net))
        with torch.no_grad():
            expected = net(example)
            _fuse_all(traced)
            found = traced(example)
        same = bool((found - expected).norm() <= 1e-3 * expected.norm())
    except Exception:  # fx runs the network's own code on proxies, which may fail in any way
        same = False
    if same and any(norm.form != Form.AFFINE for norm in alone):
        return traced
    for norm in alone:
        norm.form = Form.AFFINE
    return net


def _fuse_all(traced: torch.fx.GraphModule) -> None:
    for node in traced.graph.nodes:
        if node.op == "call_module" and type(traced.get_submodule(str(node.target))) is nn.Identity:
            node.replace_all_uses_with(node.args[0])
            traced.graph.erase_node(node)
    norms = {node: module for node in traced.graph.nodes if (module := _norm(traced, node)) is not None}
    calls = [node.target for node in norms]
    for node, norm in norms.items():
        if calls.count(node.target) == 1 and norm.form == Form.AFFINE and isinstance(norm.activation, nn.Identity):
            _fuse(traced, node, norm)
    traced.graph.lint()
    traced.recompile()


def _norm(traced: torch.fx.GraphModule, node: torch.fx.Node) -> EmittingBatchNorm | None:
    if node.op != "call_module" or len(node.args) != 1 or node.kwargs:
        return None
    module = traced.get_submodule(str(node.target))
    return module if isinstance(module, EmittingBatchNorm) else None


def _fuse(traced: torch.fx.GraphModule, node: torch.fx.Node, norm: EmittingBatchNorm) -> None:
    follower = _only_user(node)
    if follower is None:
        return
    if _is_relu(traced, follower):
        norm.form = Form.RELU
        follower.replace_all_uses_with(node)
        traced.graph.erase_node(follower)
        return
    residual = _other_summand(follower, node)
    relu = _only_user(follower)
    if residual is None or relu is None or not _is_relu(traced, relu):
        return
    # The call moves down to the sum; the order in which the layers run is that of the packed moments.
    if any(_norm(traced, other) is not None for other in _between(node, follower)):
        return
    norm.form = Form.ADD_RELU
    with traced.graph.inserting_before(follower):
        fused = traced.graph.call_module(str(node.target), (node.args[0], residual))
    relu.replace_all_uses_with(fused)
    for old in (relu, follower, node):
        traced.graph.erase_node(old)


def _only_user(node: object) -> torch.fx.Node | None:
    return next(iter(node.users)) if isinstance(node, torch.fx.Node) and len(node.users) == 1 else None


def _is_relu(traced: torch.fx.GraphModule, node: torch.fx.Node) -> bool:
    if node.op == "call_module":
        return type(traced.get_submodule(str(node.target))) is nn.ReLU
    if node.op == "call_method":
        return node.target in ("relu", "relu_")
    return node.op == "call_function" and node.target in _RELU_FUNCTIONS


def _other_summand(node: torch.fx.Node, norm: torch.fx.Node) -> torch.fx.Node | None:
    """What `node` adds to `norm`; None where it is no plain sum of two results."""
    is_sum = (node.op == "call_function" and node.target in _SUMS) or (
        node.op == "call_method" and node.target in ("add", "add_")
    )
    if not is_sum or len(node.args) != 2 or node.kwargs:
        return None
    if node.target in (operator.iadd, "add_") and node.args[0] is not norm:
        return None  # changes the other summand, which may have further users
    others = [argument for argument in node.args if argument is not norm]
    return others[0] if len(others) == 1 and isinstance(others[0], torch.fx.Node) else None


def _between(first: torch.fx.Node, last: torch.fx.Node) -> Sequence[torch.fx.Node]:
    found, node = [], first.next
    while node is not last:
        found.append(node)
        node = node.next
    return found


# --- the stem -------------------------------------------------------------------------------------------------


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
        s, p = self.stride, self.padding
        rows, columns = ((size + 2 * p - self.kernel_size) // s + self.taps for size in (height, width))
        x = F.pad(x, (p, columns * s - width - p, p, rows * s - height - p))  # crops what no output sees
        x = x.permute(0, 2, 3, 1).reshape(n, rows, s, columns, s, c)
        x = x.permute(0, 1, 3, 2, 4, 5).reshape(n, rows, columns, s * s * c)
        return F.conv2d(x.permute(0, 3, 1, 2), self.weight, self.bias)


def _padding(conv: nn.Conv2d) -> int:
    return int(conv.padding[0])


def _is_stem(module: nn.Module) -> bool:
    return (
        type(module) is nn.Conv2d
        and module.in_channels <= 4
        and module.groups == 1
        and module.padding_mode == "zeros"
        and module.dilation == (1, 1)
        and module.stride in ((2, 2), (4, 4))
        and module.kernel_size[0] == module.kernel_size[1] > module.stride[0]
        and not isinstance(module.padding, str)
        and module.padding[0] == module.padding[1]
    )


def unstride_stems(net: nn.Module) -> None:
    """Replace, in place, strided convolutions of at most 4 input channels (see `SpaceToDepthConv`)."""
    for name, module in list(net.named_modules(remove_duplicate=False)):
        if name and _is_stem(module):
            net.set_submodule(name, SpaceToDepthConv(module))  # type: ignore[arg-type]
