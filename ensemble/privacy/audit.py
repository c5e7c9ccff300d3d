"""An audit: what is given decides what is asked; all of it is data until the page is drawn."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ensemble.data.labelled import LabelledImages
from ensemble.data.tree import few
from ensemble.evaluation.near_duplicates import thumbnails
from ensemble.machine.hardware import channels_last
from ensemble.machine.rng import generator
from ensemble.privacy.augmentation import Explanation, explained_by
from ensemble.privacy.content import Content
from ensemble.privacy.findings import FIGURES, OF_STATISTICS, Finding, Part, Table
from ensemble.privacy.labels import by_order, doubt
from ensemble.privacy.members import closer_to_members, membership
from ensemble.privacy.moments import bn_layers
from ensemble.privacy.overlap import apart
from ensemble.privacy.pictures import Pictures, pictures
from ensemble.privacy.remedy import remedy
from ensemble.privacy.training import train_shadows
from ensemble.training.recipe import TrainingRecipe
from ensemble.training.run import check_padding
from models import ModelCard, as_many_in_order, class_indices, create_model, model_card, parse_spec

UNTESTED = (
    "probes of logits with composites and blends, which take a bank of networks of known training as their null",
    "ridge regression on statistics relative to re-estimated ones, and on weights, which take such a bank",
    "a classifier of real mixes applied to inversions, and a second class in a window of them",
    "memberships of single images, of outliers and mislabelled images (canaries)",
    "inversions with classes, with priors, by generators; gradients; several networks together",
    "DP-SGD, fewer epochs or other trainings as remedies: only re-estimated statistics were measured",
    "augmentations that are no candidate: colour, rotation, RandAugment, mixes by image instead of by batch",
)


@dataclass(frozen=True)
class Given:
    """What is audited, and with what."""

    model: str
    reference: LabelledImages | None = None
    members: LabelledImages | None = None
    others: LabelledImages | None = None
    claimed: TrainingRecipe | None = None
    training: TrainingRecipe | None = None
    references: int = 0
    quick: bool = False
    seed: int = 0
    sources: tuple[tuple[str, str], ...] = ()
    """What was given, in words, and where from."""
    watched: tuple[str, ...] = ()
    """Figures that --fail-if names."""
    kept: Path | None = None
    """Where what reference networks say is kept, for an audit that was stopped, or for the next."""


def audit(given: Given, mark: Callable[[str], None] = lambda text: None) -> Content:
    """The audit of `given.model`; ValueError where the images do not fit the network."""
    began = time.perf_counter()
    net, card = create_model(given.model)
    net = channels_last(net.eval())
    _check_watched(given, net, card)
    _check_recipes(given, card)
    data, members, others, left_out = apart(given.reference, given.members, given.others)
    sources = (*given.sources, *([("left out", "; ".join(left_out))] if left_out else ()))
    given = replace(given, reference=data, members=members, others=others, sources=sources)
    parts: list[Part] = []
    tables: list[Table] = []
    untested = list(UNTESTED)
    found: Explanation | None = None
    drawn = Pictures(Part(), ())
    reference, labelled = _reference(given, card, left_out)
    pair: tuple[LabelledImages, LabelledImages] | None = None
    if given.members is not None and given.others is not None:
        pair = _paired(*_alike(given.members, given.others, card), given)
        if by_order(card, names := pair[0].class_names):
            order = f"the card names no classes, so {few(names)}, the folders' sorted order, are taken for 0 to "
            given = replace(given, sources=(*given.sources, ("labels", f"{order}{len(names) - 1}")))
    has_statistics = bool(bn_layers(net))
    if not has_statistics:
        untested.insert(0, "anything on statistics: the network keeps none (folded, or of another kind of norm)")
    elif reference is None:
        untested.insert(0, "preprocessing, augmentation, a claimed recipe: no reference images were given")
    else:
        found = explained_by(net, card, reference, given.claimed, given.seed, mark)
        parts.append(found.part)
        mark("measuring what re-estimation changes")
        tables.append(remedy(net, card, reference, labelled, found, given.seed))
    if has_statistics:
        images, steps = (16, 100) if given.quick else (32, 200)
        drawn = pictures(net, card, found, reference, images, steps, given.seed, mark)
        parts.append(drawn.part)
    if pair is not None and given.members is not None:
        doubted = doubt(net, card, pair[0])
        shadows = None
        if given.training is not None and not doubted:
            shadows = train_shadows(given.training, given.references, *pair, given, mark, given.kept)
        about = reference if has_statistics else None
        parts.append(membership(net, card, *pair, about, len(given.members), shadows, given.seed, mark, doubted))
        if drawn.rows:
            finding = closer_to_members(thumbnails(drawn.rows[0].images), *(thumbnails(one.images) for one in pair))
            parts.append(Part((finding,), {"closer_to_members": finding.value}))
        if given.training is None:
            untested.insert(0, "membership by networks of the same recipe (LiRA, RMIA): no --references were asked for")
    else:
        untested.insert(0, "membership: no members and non-members were given")
    findings = tuple(finding for part in parts for finding in part.findings)
    figures: dict[str, float | str | None] = dict.fromkeys(FIGURES)
    scores: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for part in parts:
        figures |= part.figures
        scores |= part.scores
    return Content(
        model=given.model,
        facts=_facts(given, net, card),
        sentences=_sentences(findings),
        findings=findings,
        figures=figures,
        tables=(*(table for part in parts for table in part.tables), *tables),
        pictures=drawn.rows,
        untested=tuple(untested),
        scores=scores,
        scored=(pair[0].files, pair[1].files) if pair is not None else ((), ()),
        seconds=time.perf_counter() - began,
    )


LEAST_REFERENCE = 64
_REFERENCES, _QUICK, _LABELLED = 1280, 768, 2000
_MEMBERS, _QUICK_MEMBERS = 2000, 500


def _check_watched(given: Given, net: torch.nn.Module, card: ModelCard) -> None:
    """ValueError where a figure is watched that this network cannot have."""
    lacking = [name for name in given.watched if name in OF_STATISTICS]
    if lacking and not bn_layers(net):
        raise ValueError(
            f"--fail-if: {lacking[0]} is read from BatchNorm statistics, and {card.name} keeps none; leave it out"
        )


def _check_recipes(given: Given, card: ModelCard) -> None:
    """ValueError where a recipe cannot be one of networks like the audited, or not be trained by."""
    if given.training is not None and parse_spec(given.training.model).weights != "random":
        raise ValueError(
            f"--training: {given.training.model} begins with weights that others trained, so its networks would not "
            "be as the audited one; give a recipe whose model ends in @random"
        )
    for option, recipe in (("claimed", given.claimed), ("training", given.training)):
        if recipe is None:
            continue
        other = model_card(recipe.model)
        size = recipe.data.size or other.input_size
        if (other.num_classes, size) != (card.num_classes, card.input_size):
            raise ValueError(
                f"--{option}: {recipe.model} has {other.num_classes} classes and sees {size} pixels, {card.name} "
                f"{card.num_classes} and {card.input_size}; give a recipe of the same"
            )
        if option == "claimed" and len(other.mean) != len(card.mean):
            raise ValueError(
                f"--claimed: {recipe.model} takes images of {len(other.mean)} channels, {card.name} of "
                f"{len(card.mean)}; give a recipe of the same"
            )
        try:
            check_padding(recipe.augmentation.crop_padding, size)
        except ValueError as error:
            raise ValueError(f"--{option}: {error}") from None


def _reference(
    given: Given, card: ModelCard, left_out: Sequence[str]
) -> tuple[torch.Tensor | None, LabelledImages | None]:
    """Images to estimate statistics by, and others with labels where their classes are the network's."""
    data = given.reference
    if data is None:
        return None, None
    most = _QUICK if given.quick else _REFERENCES
    if len(data) < LEAST_REFERENCE:
        why = f", after {'; '.join(left_out)} were left out" if left_out else ""
        raise ValueError(
            f"--reference: {len(data)} images{why}; give at least {LEAST_REFERENCE}, {_REFERENCES} are plenty"
        )
    order = torch.randperm(len(data), generator=generator(given.seed, "reference"))
    rest = order[most : most + _LABELLED]
    try:
        named = _labelled_by(data, card)
    except ValueError:
        return data.images[order[:most]], None
    return data.images[order[:most]], named.subset(rest) if len(rest) else None


def _labelled_by(data: LabelledImages, card: ModelCard) -> LabelledImages:
    """With the network's classes, by `class_indices`, else in their order where they are as many."""
    known = class_indices(card, data.class_names)
    if set(data.class_names) <= set(known):
        return replace(data, labels=data.numbered(known), class_names=card.class_names)
    if not as_many_in_order(card, data.class_names) or card.class_names:
        raise ValueError(
            f"members, non-members: their classes are not those of {card.name}; name the folders as its classes"
        )
    return data


def _alike(members: LabelledImages, others: LabelledImages, card: ModelCard) -> tuple[LabelledImages, LabelledImages]:
    """Both with the network's classes; where it has no names, one of the two may lack some that the other has."""
    if not card.class_names:
        names = max((members.class_names, others.class_names), key=len)
        if unknown := ({*members.class_names} | {*others.class_names}) - {*names}:
            raise ValueError(
                f"--members, --non-members: their classes differ ({few(sorted(unknown))} in one alone); name the "
                "folders of both alike"
            )
        members, others = members.ordered(names), others.ordered(names)
    return _labelled_by(members, card), _labelled_by(others, card)


def _paired(members: LabelledImages, others: LabelledImages, given: Given) -> tuple[LabelledImages, LabelledImages]:
    """As many of each, drawn."""
    n = min(len(members), len(others), _QUICK_MEMBERS if given.quick else _MEMBERS)
    if n < 50:
        raise ValueError(
            f"--members, --non-members: {n} images of each; give at least 50, 1,000 and more say something"
        )
    rng = generator(given.seed, "members")
    first, second = (data.subset(torch.randperm(len(data), generator=rng)[:n]) for data in (members, others))
    # a random half of both is learned; with three deviations to spare no draw of any network is too small
    fewest = int(n - 3 * (n / 2) ** 0.5)
    if given.training is not None and given.training.schedule.batch_size > fewest:
        raise ValueError(
            f"--training: batches of {given.training.schedule.batch_size} images, and a random half of these members "
            f"and non-members may hold {fewest}; give more images, or a recipe of smaller batches"
        )
    return first, second


def _facts(given: Given, net: torch.nn.Module, card: ModelCard) -> tuple[tuple[str, str], ...]:
    layers = bn_layers(net)
    channels = sum(layer.num_features for layer in layers.values())
    loaded = card.loaded
    tracked = {int(layer.num_batches_tracked) for layer in layers.values() if layer.num_batches_tracked is not None}
    facts = [("network", given.model)]
    if loaded is not None and loaded.sha256:
        facts.append(("SHA-256 of the weights", loaded.sha256))
    if loaded is not None and loaded.trained_on:
        facts.append(("trained on, by its card", loaded.trained_on))
    facts.append(("mean, std", f"{_numbers(card.mean)}; {_numbers(card.std)}" + (" (assumed)" if card.assumed else "")))
    facts.append(("BatchNorm layers with statistics", f"{len(layers)}, {channels} channels"))
    if max(tracked, default=0):
        facts.append(("batches they say they saw", ", ".join(map(str, sorted(tracked)))))
    facts += given.sources
    facts.append(("access", "weights and statistics; images below; no gradients, no training log"))
    return tuple(facts)


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def _sentences(findings: Sequence[Finding]) -> tuple[str, ...]:
    """Four: what is shown; what is indicated, or not as is said; what is as is said, or not seen; what is open."""

    def asked(*words: str) -> str:
        found = [f for f in findings if f.word in words]
        return "; ".join(f"“{f.question}”{' (blind here)' if 'blind here' in f.reading else ''}" for f in found)

    def answered(*words: str) -> str:
        found = [(f.question, f.reading.partition(". ")[0].rstrip(".")) for f in findings if f.word in words]
        return " ".join(f"“{question}” {reading}." for question, reading in found)

    silent, undecided = asked("not distinguishable here", "consistent"), asked("undecided", "not tested")
    unlike = answered("not consistent")
    return (
        f"Shown: {answered('shown') or 'nothing of what was asked.'}",
        f"Indicated, without a complete set of controls: {answered('indicated') or 'nothing.'}"
        + (f" Not as it is said of the network: {unlike}" if unlike else ""),
        f"Not distinguishable here (the table says why, or what would have been seen), or consistent: "
        f"{silent or 'nothing'}.",
        f"Undecided or not tested: {undecided or 'none of these'}; what was not asked at all is listed below.",
    )
