"""Layouts: how other projects name the tensors of a network that we have, and what they train it with."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from models._card import IMAGENET_MEAN, IMAGENET_STD
from models._checkpoint import below, prefixes

Tensors = dict[str, torch.Tensor]

_CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
_MEAN_STD = {
    "kuangliu": (_CIFAR10_MEAN, (0.2023, 0.1994, 0.2010)),
    "bearpaw": (_CIFAR10_MEAN, (0.2023, 0.1994, 0.2010)),
    "chenyaofo": (_CIFAR10_MEAN, (0.2023, 0.1994, 0.2010)),
    "huyvnphan": (_CIFAR10_MEAN, (0.2471, 0.2435, 0.2616)),
    "akamaster": (IMAGENET_MEAN, IMAGENET_STD),
}
_CIFAR100 = {"chenyaofo": ((0.5070, 0.4865, 0.4409), (0.2673, 0.2564, 0.2761))}
_PROJECTS = {
    "kuangliu": "kuangliu/pytorch-cifar",
    "bearpaw": "bearpaw/pytorch-classification",
    "chenyaofo": "chenyaofo/pytorch-cifar-models",
    "huyvnphan": "huyvnphan/PyTorch_CIFAR10",
    "akamaster": "akamaster/pytorch_resnet_cifar10",
}


def _no_options(_: Tensors) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Layout:
    """A project's names for one family: files that have all keys of `marks` and none of `absent` are of it."""

    project: str
    marks: tuple[str, ...]
    absent: tuple[str, ...] = ()
    rename: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = ()
    """Regular expressions for whole keys, and our keys (templates, or functions of the match); others keep theirs."""
    options: Callable[[Tensors], Mapping[str, Any]] = _no_options
    """The factory's options that the file's shapes, or the project's architecture, imply."""
    note: str = ""
    """What the warning says of it, where its names alone do not tell its architecture."""
    only_if: Callable[[Tensors], bool] = bool

    @property
    def name(self) -> str:
        return _PROJECTS[self.project]

    def mean_std(self, classes: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """What the project normalises RGB in [0, 1] with: CIFAR-100's where there are 100 classes."""
        return (_CIFAR100 if classes == 100 else _MEAN_STD).get(self.project, _MEAN_STD[self.project])

    def fits(self, tensors: Tensors) -> bool:
        """Whether these tensors, without a prefix, are named as the project does."""
        named = all(k in tensors for k in self.marks) and not any(k in tensors for k in self.absent)
        return named and self.only_if(tensors)

    def adapt(self, tensors: Tensors) -> Tensors:
        """`tensors` by our keys. Of two with the same key the second gets another, which does not fit."""
        adapted: Tensors = {}
        for key, value in tensors.items():
            new = self._renamed(key)
            adapted[f"{new} (again, as {key})" if new in adapted else new] = value
        return adapted

    def _renamed(self, key: str) -> str:
        for pattern, ours in self.rename:
            if match := re.fullmatch(pattern, key):
                return match.expand(ours) if isinstance(ours, str) else ours(match)
        return key


def recognised(layouts: tuple[Layout, ...], tensors: Tensors) -> tuple[Layout, Mapping[str, Any]] | None:
    """The layout of a file's tensors below the shortest prefix where one fits, and the options it implies."""
    if not layouts:
        return None
    fewest = max(prefixes(tensors).values(), default=0) // 8  # blocks are no networks
    for prefix, count in prefixes(tensors).items():
        if count < fewest:
            continue
        inner = below(tensors, prefix)
        for layout in layouts:
            if layout.fits(inner):
                return layout, layout.options(inner)
    return None


def without_conv_bias(tensors: Tensors) -> Tensors:
    """Biases of convolutions features.N that BatchNorm features.N+1 follows go into its running mean.

    BN(conv(x) + b) is BN(conv(x)) with the running mean less b.
    """
    made = dict(tensors)
    for key, weight in tensors.items():
        match = re.fullmatch(r"features\.(\d+)\.weight", key)
        if match is None or weight.ndim != 4:
            continue
        bias, mean = f"features.{match[1]}.bias", f"features.{int(match[1]) + 1}.running_mean"
        if bias in tensors and mean in tensors and tensors[bias].shape == tensors[mean].shape:
            made[mean] = tensors[mean].float() - made.pop(bias).float()
    return made
