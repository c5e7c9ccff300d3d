"""Equivalent, faster forms of a frozen network: what follows a BatchNorm becomes part of it, convolutions become cheap.

Exact up to the order of roundings, and compared with the original before they are used. Measured on CPUs only.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import nn
from torch.fx.passes.shape_prop import ShapeProp

from ensemble.machine.rng import generator
from ensemble.teachers.convolutions import Depthwise, SpaceToDepthConv, Winograd, has_hooks, replace_convolutions
from ensemble.teachers.copying import copied
from ensemble.teachers.kernels import Activation, Form, activation_of
from ensemble.teachers.observing import Beside, EmittingBatchNorm
from models import network_logits

_FUNCTIONS: dict[Any, Form] = {
    F.relu: Form.RELU,
    torch.relu: Form.RELU,
    torch.relu_: Form.RELU,
    F.relu6: Form.RELU6,
    F.hardswish: Form.HARDSWISH,
    F.silu: Form.SILU,
    F.gelu: Form.GELU,
}
"""Called with their input alone; LeakyReLU as a function has a slope that is no part of the call."""
_SUMS = (operator.add, operator.iadd, torch.add)


def rewritten(
    net: nn.Module, examples: Sequence[torch.Tensor], sink: list[torch.Tensor], dtype: torch.dtype
) -> nn.Module | None:
    """A network that says what `net` says, faster; None where there is nothing to gain or it cannot be had.

    `f(bn(x))`, f an activation that the kernel knows, and `relu(bn(x) + residual)` become one call of the
    EmittingBatchNorm each, where torch.fx can trace the network, and stems, depthwise and 3 x 3 convolutions are
    replaced where that pays in `dtype`, the network's later one (`ensemble.teachers.convolutions`). Layers keep their
    names and their order of execution. `net` stays as it is and shares its parameters with the result, but for replaced
    convolutions. None is also the answer where the result differs from it: on each batch of `examples` (n, 3, H, H),
    logits, moments (in `sink`) and their gradients at the batch are compared. `examples` and weights are at least fp32.
    """
    shared = {id(tensor): tensor for tensor in [*net.parameters(), *net.buffers()]}
    try:
        expected = [_observed(net, example, sink) for example in examples]
        candidate = copied(net, {id(sink): sink, **shared})
        replaced = replace_convolutions(candidate, dtype)
        fused = _fuse_all(candidate, examples[0])
        if not replaced and fused is None:
            return None
        candidate = candidate if fused is None else fused
        found = [_observed(candidate, example, sink) for example in examples]
        pairs = [pair for both in zip(expected, found, strict=True) for pair in zip(*both, strict=True)]
        # A relu's gate that flips by rounding moves a gradient more than rounding does.
        tolerance = 1e-9 if examples[0].dtype == torch.float64 else 1e-2
        return candidate if all((x - y).norm() <= tolerance * y.norm() for y, x in pairs) else None
    except Exception:  # fx's own forward, and the shapes in it, may fail in any way
        return None
    finally:
        sink.clear()


def entry(net: nn.Module) -> Callable[[torch.Tensor], Any]:
    """How to call `net`: a GraphModule prints a traceback of its own when it is called and fails."""
    return net.forward if isinstance(net, torch.fx.GraphModule) else net


def _observed(net: nn.Module, example: torch.Tensor, sink: list[torch.Tensor]) -> list[torch.Tensor]:
    """Logits, moments, and the gradients at the example of each of the two, for cotangents that are drawn."""
    leaf = example.clone().requires_grad_()
    sink.clear()
    logits = network_logits(entry(net)(leaf), len(leaf))
    moments = list(sink)
    rng = generator(0, "cotangents")
    gradients: list[torch.Tensor] = []
    for outputs in filter(None, ([logits], moments)):
        cotangents = [torch.randn(o.shape, generator=rng, dtype=o.dtype) for o in outputs]
        gradients += torch.autograd.grad(outputs, leaf, cotangents, retain_graph=True)
    return [logits.detach(), *(m.detach() for m in moments), *gradients]


# --- what follows a BatchNorm ---------------------------------------------------------------------------------


class _Tracer(torch.fx.Tracer):
    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        whole = isinstance(module, nn.Conv2d | SpaceToDepthConv | Depthwise | Winograd)
        return _emits(module) or whole or super().is_leaf_module(module, qualified_name)


def _emits(module: nn.Module) -> bool:
    beside = any(isinstance(hook, Beside) for hook in module._forward_pre_hooks.values())
    return beside or isinstance(module, EmittingBatchNorm)


def _fuse_all(net: nn.Module, example: torch.Tensor) -> torch.fx.GraphModule | None:
    """`net`, traced, its activations and residual sums fused; None where there are none. Changes `net`'s modules.

    None, too, where it cannot be traced, as with control flow that depends on values.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of hooks, about proxies
            traced = torch.fx.GraphModule(net, _Tracer().trace(net))
    except Exception:  # fx runs the network's own code on proxies, which may fail in any way
        return None
    for node in traced.graph.nodes:
        if node.op == "call_module" and _is_identity(traced.get_submodule(str(node.target))):
            node.replace_all_uses_with(node.args[0])
            traced.graph.erase_node(node)
    traced.recompile()
    with torch.no_grad():
        ShapeProp(traced).propagate(example)
    norms = {node: module for node in traced.graph.nodes if (module := _norm(traced, node)) is not None}
    calls = [node.target for node in norms]
    fused = False
    for node, norm in norms.items():
        if calls.count(node.target) == 1 and norm.form == Form.AFFINE and isinstance(norm.activation, nn.Identity):
            fused |= _fuse(traced, node, norm)
    traced.graph.lint()
    traced.recompile()
    return traced if fused else None


def _norm(traced: torch.fx.GraphModule, node: torch.fx.Node) -> EmittingBatchNorm | None:
    if node.op != "call_module" or len(node.args) != 1 or node.kwargs:
        return None
    module = traced.get_submodule(str(node.target))
    return module if isinstance(module, EmittingBatchNorm) else None


def _fuse(traced: torch.fx.GraphModule, node: torch.fx.Node, norm: EmittingBatchNorm) -> bool:
    follower = _only_user(node)
    if follower is None:
        return False
    activation = _activation(traced, follower)
    if activation is not None:
        norm.form, norm.parameter = activation
        follower.replace_all_uses_with(node)
        traced.graph.erase_node(follower)
        return True
    residual = _other_summand(follower, node)
    relu = _only_user(follower)
    if residual is None or relu is None or _activation(traced, relu) != Activation(Form.RELU):
        return False
    # The call moves down to the sum; the order in which the layers run is that of the packed moments.
    between = [other.target for other in _between(node, follower) if other.op == "call_module"]
    if any(_emits(traced.get_submodule(str(target))) for target in between):
        return False
    norm.form = Form.ADD_RELU
    with traced.graph.inserting_before(follower):
        fused = traced.graph.call_module(str(node.target), (node.args[0], residual))
    fused.meta = dict(relu.meta)
    relu.replace_all_uses_with(fused)
    for old in (relu, follower, node):
        traced.graph.erase_node(old)
    return True


def _only_user(node: object) -> torch.fx.Node | None:
    return next(iter(node.users)) if isinstance(node, torch.fx.Node) and len(node.users) == 1 else None


def _activation(traced: torch.fx.GraphModule, node: torch.fx.Node) -> Activation | None:
    """What the node is to the kernel: an activation as a module without hooks, a method, or a function."""
    if node.op == "call_module":
        module = traced.get_submodule(str(node.target))
        return None if has_hooks(module) else activation_of(module)
    if len(node.args) != 1 or not node.kwargs.keys() <= {"inplace"}:
        return None
    if node.op == "call_method":
        return Activation(Form.RELU) if node.target in ("relu", "relu_") else None
    form = _FUNCTIONS.get(node.target) if node.op == "call_function" else None
    return None if form is None else Activation(form)


def _is_identity(module: nn.Module) -> bool:
    return type(module) is nn.Identity and not has_hooks(module)


def _other_summand(node: torch.fx.Node, norm: torch.fx.Node) -> torch.fx.Node | None:
    """What `node` adds to `norm`; None where it is no plain sum of two results of one shape and dtype."""
    is_sum = (node.op == "call_function" and node.target in _SUMS) or (
        node.op == "call_method" and node.target in ("add", "add_")
    )
    if not is_sum or len(node.args) != 2 or node.kwargs:
        return None
    if node.target in (operator.iadd, "add_") and node.args[0] is not norm:
        return None  # changes the other summand, which may have further users
    others = [argument for argument in node.args if argument is not norm]
    if len(others) != 1 or not isinstance(others[0], torch.fx.Node):
        return None
    return others[0] if _kind(others[0]) == _kind(norm) else None


def _kind(node: torch.fx.Node) -> tuple[object, object]:
    """Shape and dtype of a node's result on the example; None for what is no tensor."""
    seen = node.meta.get("tensor_meta")
    return getattr(seen, "shape", None), getattr(seen, "dtype", None)


def _between(first: torch.fx.Node, last: torch.fx.Node) -> Sequence[torch.fx.Node]:
    found, node = [], first.next
    while node is not last:
        found.append(node)
        node = node.next
    return found
