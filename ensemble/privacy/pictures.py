"""Inversions of a network's statistics beside those of statistics in which nothing, or CutMix, is to be found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from ensemble.evaluation.estimate import Z95, Estimate
from ensemble.machine.rng import generator
from ensemble.privacy.augmentation import Explanation
from ensemble.privacy.candidates import Candidate, cut_and_mixed
from ensemble.privacy.findings import Finding, Part
from ensemble.privacy.inversions import bn_inversions
from ensemble.privacy.moments import Moments, bn_layers, stored, with_stored
from ensemble.privacy.rates import auc
from ensemble.privacy.seams import seam_scores, turned_control
from ensemble.privacy.verdicts import seams_word
from models import ModelCard

QUESTION = "Do images inverted from the statistics show seams?"


@dataclass(frozen=True)
class Strip:
    """Pictures under one heading: the first of all, not chosen."""

    title: str
    images: torch.Tensor


@dataclass(frozen=True)
class Pictures:
    part: Part
    rows: tuple[Strip, ...]


def shuffled(moments: Moments, seed: int) -> Moments:
    """Each layer's channels exchanged: statistics of the same sizes that mean nothing."""
    rng = generator(seed, "shuffle")
    order, start = [], 0
    for _, n in moments.layers:
        order.append(start + torch.randperm(n, generator=rng))
        start += n
    index = torch.cat(order)
    return Moments(moments.layers, moments.mean[:, index], moments.var[:, index])


def pictures(
    net: nn.Module,
    card: ModelCard,
    found: Explanation | None,
    reference: torch.Tensor | None,
    images: int,
    steps: int,
    seed: int,
    mark: Callable[[str], None],
) -> Pictures:
    """Inversions, and where reference images explain the statistics, the seam score of them."""

    def made(title: str, moments: Moments) -> Strip:
        mark(f"inverting {title}")
        return Strip(title, bn_inversions([(with_stored(net, moments), card)], images, steps, seed))

    own = made("the stored statistics", stored(net, bn_layers(net)))
    if found is None or found.best is None or reference is None:
        reading = "Not scored: a matching null takes reference images that explain the statistics."
        rows = [own]
        try:
            rows.append(made("shuffled statistics (null)", shuffled(stored(net, bn_layers(net)), seed)))
        except ValueError as error:  # exchanged channels can make a deep network's values overflow
            reading += f" Shuffled statistics could not be inverted as a null for the eye: {error}."
        return Pictures(Part((Finding(question=QUESTION, word="not tested", reading=reading),)), tuple(rows))
    plain = found.found[Candidate(found.best.crop).name]
    mixed = found.found[found.best.with_mix("cutmix").name]
    null = made("plain statistics, re-estimated (null)", plain[::2].average())
    other = made("plain statistics of other images (null)", plain[1::2].average())
    planted = made("CutMix statistics, re-estimated (planted)", mixed.average())
    real = _real(reference[: 2 * images].float() / 255, seed)
    finding = _seams(own.images, null.images, other.images, planted.images, real)
    shown = (own, null, planted, Strip("real reference images", reference[:images].float() / 255))
    return Pictures(Part((finding,), {"seam_difference": finding.measured}), shown)


def _real(images: torch.Tensor, seed: int) -> Estimate:
    """How well the score tells real images with a rectangle of another from plain ones."""
    rng = generator(seed, "real seams")
    mixed = torch.cat([cut_and_mixed(part, 0.7, rng) for part in images.split(8)])
    return auc(seam_scores(mixed), seam_scores(images))


def _difference(a: torch.Tensor, b: torch.Tensor) -> Estimate:
    """The mean difference of pairs of images (interval: normal)."""
    each = seam_scores(a) - seam_scores(b)
    mean, half = float(each.mean()), Z95 * float(each.std()) / len(each) ** 0.5
    return Estimate(mean, mean - half, mean + half)


def _seams(
    own: torch.Tensor, null: torch.Tensor, other: torch.Tensor, planted: torch.Tensor, real: Estimate
) -> Finding:
    value, blank, control = _difference(own, null), _difference(other, null), _difference(planted, null)
    turned = float((turned_control(own) - turned_control(null)).mean())
    fired = control.low > 0
    word = seams_word(value.low, turned, blank, fired)
    reading = f"A difference above {value.width:.3g} would have been seen."
    as_well = f"those of other images do so as well ({blank.value:+.3g})"
    if word in ("shown", "indicated"):
        reading = "Lines are sharper than plain statistics make them" + (f"; {as_well}." if blank.low > 0 else ".")
    elif value.low > 0 and blank.low > 0:
        reading = f"Lines are sharper than plain statistics make them ({value.value:+.3g}), but {as_well}."
    if not fired:
        reading = "Planted CutMix statistics make no seams that the score sees in this network: it is blind here."
    reading += " Intervals are over images of one network, not over networks."
    return Finding(
        question=QUESTION,
        word=word,
        evidence=f"mean seam score less that of re-estimated plain statistics; turned control {turned:+.3g}",
        figure=value,
        null=f"other plain statistics: {blank:+.3g}",
        control=f"planted CutMix statistics: {control:+.3g}; real CutMix images against plain: AUC {real:.2f}",
        access="the weights file; for the score reference images, too",
        reading=reading,
    )
