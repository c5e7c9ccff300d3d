"""timm's networks, as `timm/NAME` and `timm/NAME.TAG`; weights tags are timm's."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import timm
from timm.data import infer_imagenet_subset
from timm.models import get_arch_pretrained_cfgs, split_model_name_tag
from torch import nn

from models._card import ModelCard, Weights
from models._table import Entry
from models.torchvision_zoo import imagenet_class_names

PREFIX = "timm/"


def names() -> list[str]:
    """All networks without their tags: `timm/resnet18`."""
    return [PREFIX + arch for arch in timm.list_models()]


def cards(names: Iterable[str]) -> Iterator[ModelCard]:
    """The cards of these networks (without tags) with their default weights; the other tags are on them."""
    return (_card(name.removeprefix(PREFIX), "", "default") for name in names)


def find(name: str, weights: str) -> Entry | None:
    """The entry of `timm/NAME[.TAG]`, its card for the tag `weights` where NAME has no tag; None: not here.

    Raises ValueError for an unknown tag in the name, and for networks whose images are not square.
    """
    arch, tag = split_model_name_tag(name.removeprefix(PREFIX))
    if not timm.is_model(arch):
        return None
    tags = _tags(arch)
    if tag and tag not in tags:
        near = difflib.get_close_matches(tag, tags, n=3) or list(tags)
        raise ValueError(f"{PREFIX}{arch} has no weights {tag!r}; its tags: {', '.join(near) or 'none'}")
    card = _card(arch, tag, weights)
    height, width = _config(arch, card.default_weights).input_size[1:]
    if height != width:
        raise ValueError(f"{name} takes images of {height} x {width}; only square ones are supported")
    build = partial(_build, arch, card.default_weights)
    return Entry(card, build, {"num_classes": card.num_classes}, partial(_fetch, card.name, arch))


def _tags(arch: str) -> dict[str, Any]:
    return {cfg.tag or "": cfg for cfg in get_arch_pretrained_cfgs(arch).values() if cfg.has_weights}


def _config(arch: str, tag: str | None) -> Any:
    return timm.get_pretrained_cfg(f"{arch}.{tag}" if tag else arch)


def _card(arch: str, name_tag: str, weights: str) -> ModelCard:
    tags = _tags(arch)
    default = _config(arch, None).tag
    tag = name_tag or (weights if weights in tags else default if default in tags else None)
    config = _config(arch, tag)
    space = _label_space(config)
    return ModelCard(
        PREFIX + (f"{arch}.{name_tag}" if name_tag else arch),
        family=timm.model_entrypoint(arch).__module__.rpartition(".")[2],
        input_size=config.input_size[1],
        num_classes=config.num_classes,
        mean=tuple(config.mean),
        std=tuple(config.std),
        class_names=imagenet_class_names() if space == "imagenet1k" else (),
        label_space=space,
        weights={key: _record(tags[key]) for key in ([name_tag] if name_tag else tags)},
        default_weights=tag,
        citation=_paper(config),
    )


def _label_space(config: Any) -> str:
    """What timm infers from the number of classes: `imagenet1k`, `imagenet12k`, `imagenet22k`, ...

    A tag that does not name ImageNet-1k (fb_dino) belongs to weights without a trained classifier.
    """
    subset = infer_imagenet_subset({"num_classes": config.num_classes})
    if not subset or (subset == "imagenet-1k" and config.tag and "in1k" not in config.tag):
        return ""
    return subset.replace("-", "", 1)


def _record(config: Any) -> Weights:
    return Weights(source="timm", licence=config.license, trained_on=_label_space(config) or None)


def _paper(config: Any) -> str:
    papers = config.paper_ids or config.paper_name or ""
    return papers if isinstance(papers, str) else ", ".join(papers)


def _build(arch: str, tag: str | None, num_classes: int) -> nn.Module:
    return timm.create_model(f"{arch}.{tag}" if tag else arch, pretrained=False, num_classes=num_classes)


@contextmanager
def _quiet_hub() -> Iterator[None]:
    """The hub's warnings about each of its retries are not shown; the failure at the end is."""
    loggers = [logging.getLogger(name) for name in ("huggingface_hub", "urllib3", "timm.models", "httpx")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _fetch(name: str, arch: str, tag: str) -> nn.Module:
    try:
        with _quiet_hub():
            return timm.create_model(f"{arch}.{tag}", pretrained=True)
    except Exception as error:  # the network, the hub's own errors, a damaged cache: all the same to the user
        hub = _config(arch, tag).hf_hub_id or "its source"
        reason = " ".join(str(error).split())
        raise ValueError(
            f"cannot download the weights {tag!r} of {name} from {hub} ({type(error).__name__}: {reason});"
            f" pass a file as {name}@/path"
        ) from error
