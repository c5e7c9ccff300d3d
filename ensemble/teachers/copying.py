"""Copies of networks that people use otherwise too."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode


def copied(net: nn.Module, shared: Mapping[int, Any] | None = None) -> nn.Module:
    """A deep copy of `net`; `shared` holds, by id, what both are to have in common.

    A network that keeps an activation on itself, as most examples of hooks do, holds a tensor with a history, which
    torch refuses to copy: the copy gets its values. ValueError for one that holds what Python cannot copy.
    """
    with _Histories():
        try:
            return copy.deepcopy(net, dict(shared or {}))
        except TypeError as error:
            raise ValueError(f"a network is copied before it is watched, and this one cannot be: {error}") from error


class _Histories(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.Tensor.__deepcopy__ and not args[0].is_leaf:
            values = args[0].detach().clone()
            args[1][id(args[0])] = values
            return values
        return func(*args, **(kwargs or {}))
