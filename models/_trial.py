"""Whether a network can read images at all, told in one line before work begins."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from models._card import ModelCard
from models._checkpoint import unfit_values
from models._convention import are_of_sigmoid, network_input, network_logits


def reason_of(error: BaseException) -> str:
    """What an error of a network's own code says, on one line; its kind where that says more."""
    text = " ".join(str(error).split())[:300]
    if "to have 1 channels, but got 3 channels" in text:
        text += "; one that takes grey images has one mean and one std on its card"
    return text if isinstance(error, RuntimeError | ValueError) and text else f"{type(error).__name__} {text}".strip()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it is no fault of the network's; torch says so of the machine's memory in words alone.

    `ensemble.machine.errors` has one of its own: this package stands alone, and that module loads without torch.
    """
    names = {base.__name__ for base in type(error).__mro__}
    said = ("can't allocate memory", "Storage size calculation overflowed")
    return bool(names & {"OutOfMemoryError", "MemoryError"}) or any(text in str(error) for text in said)


@contextmanager
def retold(text: str) -> Iterator[None]:
    """What a network's own code raises inside is told as a ValueError, `text: reason`; a lack of memory stays one."""
    try:
        yield
    except Exception as error:  # a network may be anybody's
        if is_out_of_memory(error):
            raise
        raise ValueError(f"{text}: {reason_of(error)}") from error


@contextmanager
def evaluating(net: nn.Module, *, gradients: bool = False) -> Iterator[None]:
    """Eval mode inside, by default without gradients; afterwards every module is in the mode it was in."""
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        with torch.set_grad_enabled(gradients):
            yield
    finally:
        for module, training in modes:
            module.training = training


_QUANTISED = ("torch.ao.nn.quantized.modules", "torch.ao.nn.quantized.dynamic", "torch.ao.nn.intrinsic.quantized")
"""Where modules are whose weights are integers, but for `FloatFunctional`."""


def usable(name: str, net: nn.Module) -> nn.Module:
    """The network, or of a compiled one what was compiled: a run compiles what it makes of it.

    ValueError for a module whose layers cannot be observed, or through which no gradient reaches an image.
    """
    if not isinstance(net, nn.Module):
        raise ValueError(f"{name}: expected a torch.nn.Module, got {type(net).__name__}")
    net = getattr(net, "_orig_mod", net)
    for layer, module in net.named_modules():
        kind, what = type(module), f"its layer {layer}" if layer else "it"
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(f"{name}: {what} is TorchScript, which cannot be observed; give the nn.Module itself")
        if kind.__module__.startswith(_QUANTISED) and "Float" not in kind.__name__:
            raise ValueError(
                f"{name}: {what} is quantised ({kind.__name__}), so no gradient reaches an image; give the network as "
                "it was before"
            )
    if any(part.device.type == "meta" for part in (*net.parameters(), *net.buffers())):
        raise ValueError(f"{name} is on the device meta, where weights have no values; load them first")
    for key, value in (*net.named_parameters(), *net.named_buffers()):
        known = isinstance(value, nn.Parameter) or key.endswith(("running_mean", "running_var"))  # masks hold -inf
        if known and not is_lazy(value) and (held := unfit_values(key, value.detach())) is not None:
            raise ValueError(f"{name}: {key} holds {held}; no image can be made with such a network")
    return net


def has_lazy_layers(net: nn.Module) -> bool:
    """Whether a layer waits for an image to have its shape."""
    return any(is_lazy(part) for part in (*net.parameters(), *net.buffers()))


def settle_lazy(net: nn.Module, card: ModelCard) -> None:
    """Gives lazy layers their shapes, which they take from the first image that they see."""
    if not has_lazy_layers(net):
        return
    weight = next((part for part in net.parameters() if part.is_floating_point()), torch.empty(0))
    with evaluating(net):
        net(network_input(torch.full((2, 3, card.input_size, card.input_size), 0.5), card).to(weight.dtype))


def cautions(net: nn.Module, logits: torch.Tensor) -> list[str]:
    """What to know of a network that said these logits of some images, in a line each that follows its name."""
    found = []
    if are_of_sigmoid(logits):
        found.append(
            "all that it returns lies between 0 and 1 for what was tried; if it ends in a sigmoid, let it return the "
            "logits"
        )
    norms = ((name, module) for name, module in net.named_modules() if isinstance(module, _BatchNorm))
    if (layer := next((name or "itself" for name, module in norms if module.running_mean is None), None)) is not None:
        found.append(
            f"BatchNorm {layer} keeps no statistics and takes those of each batch, so what it says of an image depends "
            "on those beside it: on batches, micro-batches and ranks"
        )
    return found


def check_reads(name: str, net: nn.Module, card: ModelCard, *, learns: bool = False) -> None:
    """ValueError where the network cannot read two images as its card says, in eval mode.

    `learns`: nor give its weights a gradient. The network is left in the mode it was in. One in fp16 on the CPU is not
    tried: it may be meant for a GPU.
    """
    weight = next((p for p in net.parameters() if p.is_floating_point()), torch.empty(0))
    if weight.dtype == torch.float16 and weight.device.type == "cpu":
        return
    size = card.input_size
    with (
        retold(f"{name}: its forward pass fails on images of {size} x {size}"),
        evaluating(net, gradients=learns),
    ):
        blank = torch.full((2, 3, size, size), 0.5, device=weight.device)
        logits = network_logits(net(network_input(blank, card).to(weight.dtype)), len(blank))
    if tuple(logits.shape) != (2, card.num_classes):
        raise ValueError(
            f"{name}: its card says {card.num_classes} classes, its output for 2 images has shape {tuple(logits.shape)}"
        )
    for text in () if learns else cautions(net, logits):
        warnings.warn_explicit(f"{name}: {text}", UserWarning, f"<{card.name}>", 1)
    if learns and not logits.requires_grad:
        raise ValueError(f"{name}: no gradient reaches its weights (no_grad, detach or numpy in its forward?)")
