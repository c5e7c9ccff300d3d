"""Attacks on single images that read the network's answers: loss thresholds, and their tail."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from ensemble.training.reading import forward_logits, inputs_of
from models import ModelCard


class Answers(NamedTuple):
    """What a network says of labelled images."""

    margins: torch.Tensor
    """(N,), float64: log(p_y / (1 - p_y)) of each image and its mirror image, averaged: large where the label is
    believed. The logit-scaled confidence of Carlini et al. (2022, section IV.C), which is nearly normal over networks,
    and as a threshold attack orders images as the loss does."""
    right: torch.Tensor
    """(N,), bool: of the image itself no class is more likely than the label."""


@torch.no_grad()
def answers(net: nn.Module, card: ModelCard, images: torch.Tensor, labels: torch.Tensor) -> Answers:
    """Of images uint8 (N, 3, H, W)."""
    net.eval()
    rows, right = [], []
    for part, classes in zip(images.split(500), labels.split(500), strict=True):
        x = inputs_of(part, card, torch.device("cpu"))
        own, mirrored = (forward_logits(net, view, card) for view in (x, x.flip(3)))
        rows.append((margin(own, classes) + margin(mirrored, classes)) / 2)
        right.append(own.argmax(1) == classes)
    return Answers(torch.cat(rows), torch.cat(right))


def margin(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """(N,): z_y - logsumexp of the other classes' z, which is log(p_y / (1 - p_y))."""
    z = logits.double()
    chosen = z.gather(1, labels[:, None])
    others = z.scatter(1, labels[:, None], -torch.inf)
    return chosen[:, 0] - others.logsumexp(1)


def tail_share(members: torch.Tensor, others: torch.Tensor, quantile: float = 0.01) -> float:
    """Of non-members, the share with a smaller margin than all but `quantile` of the members: TNR at a low FNR.

    Images that are surely none of the members. It needs no other network.
    """
    return float((others < members.double().quantile(quantile)).double().mean())
