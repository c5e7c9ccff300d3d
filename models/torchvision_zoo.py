"""torchvision's classification networks, under their own names; weights tags are torchvision's."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

from torch import nn
from torchvision import models as zoo

from models._card import IMAGENET_MEAN, IMAGENET_STD, ModelCard, Weights
from models._loading import fit
from models._table import Entry, Tensors

_WITH_AUXILIARY_HEADS = ("googlenet", "inception_v3")


def names() -> list[str]:
    """All names, in torchvision's spelling."""
    return list(zoo.list_models(module=zoo))


def cards(names: Iterable[str]) -> Iterator[ModelCard]:
    """The cards of these networks with their default weights."""
    return (_card(name, "default") for name in names)


def find(name: str, weights: str) -> Entry | None:
    """The entry of `name`, its card for the tag `weights` (default where it is no tag); None: not here."""
    if name not in names():
        return None
    card = _card(name, weights)
    build = partial(_build, name, card.input_size)
    return Entry(card, build, {"num_classes": card.num_classes}, partial(_fetch, card), partial(_adapt, name))


def imagenet_class_names() -> tuple[str, ...]:
    """The 1000 English names of ImageNet-1k's classes, in label order."""
    return tuple(zoo.ResNet18_Weights.DEFAULT.meta["categories"])


def _card(name: str, tag: str) -> ModelCard:
    enum = zoo.get_model_weights(name)
    # vgg16 has weights of the feature extractor alone: their accuracy is NaN, their classifier is missing
    usable = {w.name: w for w in enum if not math.isnan(_accuracy(w))}
    chosen = usable.get(tag, enum.DEFAULT)
    classes = imagenet_class_names()
    assert tuple(chosen.meta["categories"]) == classes
    transforms: dict[str, Any] = chosen.transforms.keywords
    if name in _WITH_AUXILIARY_HEADS:
        # Trained on inputs in [-1, 1]; torchvision's `transform_input`, which we leave off, undoes ImageNet's
        # normalisation inside the network to get there.
        mean: tuple[float, ...] = (0.5, 0.5, 0.5)
        std: tuple[float, ...] = (0.5, 0.5, 0.5)
    else:
        mean, std = transforms.get("mean", IMAGENET_MEAN), transforms.get("std", IMAGENET_STD)
    return ModelCard(
        name,
        family=zoo.get_model_builder(name).__module__.rpartition(".")[2],
        input_size=transforms["crop_size"],
        num_classes=len(classes),
        mean=tuple(mean),
        std=tuple(std),
        class_names=classes,
        label_space="imagenet1k",
        weights={key: _record(w) for key, w in usable.items()},
        default_weights=chosen.name,
        citation=f"torchvision.models.{name}",
    )


def _accuracy(weights: Any) -> float:
    return weights.meta["_metrics"]["ImageNet-1K"]["acc@1"] / 100


def _record(weights: Any) -> Weights:
    meta = weights.meta
    return Weights(
        source="torchvision",
        licence=meta.get("license"),
        trained_on="ImageNet-1k",
        accuracy=_accuracy(weights),
        command=meta.get("recipe"),
    )


def _build(name: str, input_size: int, num_classes: int) -> nn.Module:
    options: dict[str, Any] = {}
    if name in _WITH_AUXILIARY_HEADS:
        options = {"aux_logits": False, "transform_input": False, "init_weights": True}
    elif name.startswith("vit_"):
        options = {"image_size": input_size}  # its position embedding has one row per patch
    return zoo.get_model(name, weights=None, num_classes=num_classes, **options)


def _fetch(card: ModelCard, tag: str) -> nn.Module:
    weights = zoo.get_model_weights(card.name)[tag]
    try:
        state = weights.get_state_dict(map_location="cpu", progress=True, check_hash=True, weights_only=True)
    except Exception as error:  # the network, a proxy, a full disk, a damaged cache: all the same to the user
        raise ValueError(
            f"cannot download the weights {tag!r} of {card.name} from {weights.url}"
            f" ({type(error).__name__}: {error}); pass a file as {card.name}@/path"
        ) from error
    net = _build(card.name, card.input_size, card.num_classes)
    fit(net, _adapt(card.name, state), card, weights.url)
    return net


def _adapt(name: str, tensors: Tensors) -> Tensors:
    """Drops auxiliary heads, which do not run in eval mode; renames the keys of old DenseNet files."""
    if name in _WITH_AUXILIARY_HEADS:
        return {key: value for key, value in tensors.items() if not re.match(r"(AuxLogits|aux1|aux2)\.", key)}
    if name.startswith("densenet"):
        return {re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", key): v for key, v in tensors.items()}
    return tensors
