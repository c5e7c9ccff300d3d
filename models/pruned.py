"""Networks that lost channels: the same modules, narrower."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

METADATA = "pruned"
"""Key of a safetensors file's metadata, which says that the network is narrower than its name's."""


def narrow(net: nn.Module, tensors: Mapping[str, torch.Tensor], source: str) -> None:
    """Gives the modules of `net` the shapes that the state `tensors` has; their values are to be loaded.

    A depthwise convolution stays one. Raises ValueError that names the first tensor which is wider than the network's
    own, or has other dimensions.
    """
    for name, module in net.named_modules():
        prefix = f"{name}." if name else ""
        own = {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
        changed = False
        for key, value in own.items():
            given = tensors.get(prefix + key)
            if given is None or given.shape == value.shape:
                continue
            fits = given.ndim == value.ndim and all(a <= b for a, b in zip(given.shape, value.shape, strict=True))
            if not fits:
                raise ValueError(
                    f"{source}: {prefix}{key} has shape {list(given.shape)}, which pruning does not make of "
                    f"{list(value.shape)}; give the name of the network that was pruned"
                )
            blank = torch.empty(given.shape, dtype=value.dtype, device=value.device)
            setattr(module, key, nn.Parameter(blank) if isinstance(value, nn.Parameter) else blank)
            changed = True
        if changed:
            _describe(module)
    mark(net)


def mark(net: nn.Module) -> None:
    """Remember that the network is narrower than its name's."""
    net.is_pruned = True  # type: ignore[assignment]


def is_pruned(net: nn.Module) -> bool:
    return bool(getattr(net, "is_pruned", False))


def _describe(module: nn.Module) -> None:
    """What a layer of torch's says of its own shape, after its tensors'."""
    if isinstance(module, _NormBase):
        module.num_features = len(module.running_mean if module.running_mean is not None else module.weight)
    elif isinstance(module, nn.GroupNorm):
        module.num_channels = len(module.weight)
    elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
        module.normalized_shape = tuple(module.weight.shape)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(module.weight)
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, _ConvNd):
        depthwise = module.groups == module.in_channels and module.groups > 1
        module.out_channels = module.weight.shape[0]
        module.groups = module.out_channels if depthwise else module.groups
        module.in_channels = module.weight.shape[1] * module.groups
