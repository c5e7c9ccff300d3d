"""The part of an audit on membership, from members and non-members."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from ensemble.data.labelled import LabelledImages
from ensemble.evaluation.intervals import clopper_pearson
from ensemble.machine.rng import generator
from ensemble.privacy.blind import blind_baseline
from ensemble.privacy.findings import Finding, Part, Word
from ensemble.privacy.membership import answers, tail_share
from ensemble.privacy.moments import bn_layers, stored
from ensemble.privacy.rates import Auc, Rate, auc, tpr_at
from ensemble.privacy.shadows import lira, rmia
from ensemble.privacy.tracing import directions, expected_auc, image_moments, released, tracing_scores
from ensemble.privacy.verdicts import lower_bound_word
from models import ModelCard

_WHITENED_BY = 2000
_PLANTED = 250


@dataclass(frozen=True)
class Shadows:
    """Margins (K, N + M) of K networks of one recipe for members then non-members, and which each learned."""

    margins: torch.Tensor
    inside: torch.Tensor


def membership(
    net: nn.Module,
    card: ModelCard,
    members: LabelledImages,
    others: LabelledImages,
    reference: torch.Tensor | None,
    trained_on: int | None,
    shadows: Shadows | None,
    seed: int,
    mark: Callable[[str], None],
) -> Part:
    """Findings on as many members as non-members; `trained_on` is the number of training images, where it is known."""
    blind = blind_baseline(members.images, others.images, seed)
    differ = blind.low > 0.5
    findings = [_blind(blind)]
    figures: dict[str, float | str | None] = {"blind_auc": blind.value}
    if differ:
        withheld = "Withheld: members and non-members differ in something else than membership."
        findings.append(Finding("Does the network know its members?", "not tested", reading=withheld))
        return Part(tuple(findings), figures)
    mark("reading members and non-members")
    said = [answers(net, card, part.images, part.labels) for part in (members, others)]
    a, b = (each.margins for each in said)
    loss, null = auc(a, b), _null(a, b, seed)
    rate = tpr_at(a, b, 0.01)
    gap = float(said[0].right.double().mean() - said[1].right.double().mean())
    tail = tail_share(a, b)
    figures |= {"accuracy_gap": gap, "loss_auc": loss.value, "tail_tnr": tail}
    findings.append(_loss(loss, null, rate, gap, tail))
    scores = {"loss": (a, b)}
    best = rate
    if shadows is not None:
        target = torch.cat([a, b])
        outside = torch.cat([torch.zeros(len(a)), torch.ones(len(b))]).bool()
        attacks = {"lira": lira(target, shadows.margins, shadows.inside)}
        attacks["rmia"] = rmia(target, shadows.margins, shadows.inside, outside)
        for name, score in attacks.items():
            scores[name] = (score[: len(a)], score[len(a) :])
            value = auc(*scores[name])
            found = tpr_at(*scores[name], 0.01)
            figures[f"{name}_auc"] = value.value
            findings.append(_shadowed(name, value, _null(*scores[name], seed), found, len(shadows.margins)))
            if found and best and found.value > best.value:
                best = found
    if best:
        figures["tpr_1pct"] = best.value
    if reference is not None:
        mark("tracing released means")
        finding, traced = _tracing(net, card, members, others, reference[:_WHITENED_BY], trained_on)
        findings.append(finding)
        figures["tracing_auc"] = finding.value
        scores["tracing"] = traced
    return Part(tuple(findings), figures, scores=scores)


def _null(a: torch.Tensor, b: torch.Tensor, seed: int) -> Auc:
    """The same with memberships drawn anew."""
    both = torch.cat([a, b])
    order = torch.randperm(len(both), generator=generator(seed, "null"))
    return auc(both[order[: len(a)]], both[order[len(a) :]])


def _blind(blind: Auc) -> Finding:
    return Finding(
        "Are members and non-members from one distribution?",
        "not consistent" if blind.low > 0.5 else "not distinguishable here",
        "AUC of ridge regression on pixels, without the network",
        blind.value,
        (blind.low, blind.high),
        "0.5",
        "not run",
        "images alone",
        f"A difference above AUC {blind.high:.2f} would have been seen by this test."
        if blind.low <= 0.5
        else "They differ: what follows would measure that, not membership.",
    )


def _at(rate: Rate | None) -> str:
    if rate is None:
        return "true positives at 1 % false positives: not read, it takes 1,000 non-members"
    return f"true positives at 1 % false positives: {rate.value:.1%} [{rate.low:.1%}, {rate.high:.1%}]"


def _word(value: Auc, null: Auc, fired: bool) -> Word:
    return lower_bound_word(value.low, 0.5, null.low <= 0.5 <= null.high, fired)


def _loss(value: Auc, null: Auc, rate: Rate | None, gap: float, tail: float) -> Finding:
    return Finding(
        "Does the network know its members by their loss?",
        _word(value, null, fired=False),
        f"AUC of the margin; accuracy gap {gap:+.1%}; {_at(rate)}; {tail:.1%} of non-members are below the 1st "
        "percentile of members",
        value.value,
        (value.low, value.high),
        f"memberships drawn anew: {null.value:.3f} [{null.low:.3f}, {null.high:.3f}]",
        "not run in an audit: it takes a network that is trained to know its members (the tests do that)",
        "logits of the labelled image",
        f"On average over images. A leak above AUC {value.high:.2f} would have been seen by this attack.",
    )


def _shadowed(name: str, value: Auc, null: Auc, rate: Rate | None, networks: int) -> Finding:
    title = {"lira": "likelihood ratios (LiRA, fixed variance)", "rmia": "relative ratios (RMIA)"}[name]
    return Finding(
        f"Does the network know its members by {title}?",
        _word(value, null, fired=False),
        f"AUC with {networks} networks of the given recipe; {_at(rate)}",
        value.value,
        (value.low, value.high),
        f"memberships drawn anew: {null.value:.3f} [{null.low:.3f}, {null.high:.3f}]",
        "not run in an audit (the tests plant one)",
        f"logits, the recipe, such images, {networks} trainings",
        f"A lower bound: with more networks the attack gains. A leak above AUC {value.high:.2f} would have been seen.",
    )


def _tracing(
    net: nn.Module,
    card: ModelCard,
    members: LabelledImages,
    others: LabelledImages,
    reference: torch.Tensor,
    trained_on: int | None,
) -> tuple[Finding, tuple[torch.Tensor, torch.Tensor]]:
    known = image_moments(net, card, reference)
    a, b = (image_moments(net, card, part.images) for part in (members, others))
    own = released(stored(net, bn_layers(net)))
    scores = tracing_scores(a, own, known), tracing_scores(b, own, known)
    value = auc(*scores)
    d = directions(known)
    half = min(_PLANTED, len(b) // 2)
    mean = b[:half].mean(0)
    control = auc(tracing_scores(b[:half], mean, known), tracing_scores(b[half:], mean, known))
    theory = expected_auc(d, half, len(known))
    null = auc(tracing_scores(b[:half], own, known), tracing_scores(b[half:], own, known))
    fired = control.low > 0.5
    ceiling = ""
    if trained_on:
        most = expected_auc(d, trained_on, len(known))
        ceiling = f"; theory allows {most:.3f} of the mean of {trained_on} images, those given"
    reading = f"A leak above AUC {value.high:.2f} would have been seen." + (
        "" if fired else " The positive control did not fire: the test is blind here."
    )
    finding = Finding(
        "Do the BatchNorm statistics tell members?",
        _word(value, null, fired),
        f"AUC of the tracing statistic in {d} whitened directions{ceiling}",
        value.value,
        (value.low, value.high),
        f"halves of the non-members: {null.value:.3f} [{null.low:.3f}, {null.high:.3f}]",
        f"statistics of {half} non-members, planted: {control.value:.3f} [{control.low:.3f}, {control.high:.3f}], "
        f"theory {theory:.3f}",
        "the weights file and such images",
        reading,
    )
    return finding, scores


def closer_to_members(inversions: torch.Tensor, members: torch.Tensor, others: torch.Tensor) -> Finding:
    """Rows are `near_duplicates.thumbnails`; of as many members as non-members."""
    n = min(len(members), len(others))
    near = (inversions @ members[:n].T).amax(1), (inversions @ others[:n].T).amax(1)
    hits = int((near[0] > near[1]).sum())
    low, high = clopper_pearson(hits, len(inversions))
    return Finding(
        "Are inversions nearer to members than to non-members?",
        lower_bound_word(low, 0.5, silent=False, fired=False),
        f"share of {len(inversions)} inversions, by correlation at 16 x 16 pixels with {n} of each",
        hits / len(inversions),
        (low, high),
        "0.5",
        "not run",
        "the weights file; to check it, training images",
        f"A share above {high:.2f} would have been seen. In pixels alone; other features may see more.",
    )
