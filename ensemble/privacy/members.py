"""The part of an audit on membership, from members and non-members."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from ensemble.data.labelled import LabelledImages
from ensemble.evaluation.estimate import Estimate
from ensemble.evaluation.intervals import clopper_pearson
from ensemble.machine.rng import generator
from ensemble.privacy.blind import blind_baseline
from ensemble.privacy.findings import Finding, Part, Word
from ensemble.privacy.membership import answers, tail_share
from ensemble.privacy.moments import running_layers, stored
from ensemble.privacy.rates import auc, tpr_at
from ensemble.privacy.shadows import lira, rmia
from ensemble.privacy.tracing import directions, expected_auc, image_moments, released, tracing_scores
from ensemble.privacy.verdicts import lower_bound_word
from models import ModelCard

_WHITENED_BY = 2000
_PLANTED = 250
_KNOWS = "Does the network know its members?"


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
    doubt: str = "",
) -> Part:
    """Findings on as many members as non-members; `trained_on` is the number of training images, where it is known.

    Where there is a `doubt` about labels, nothing is concluded that takes them.
    """
    blind = blind_baseline(members.images, others.images, seed)
    differ = blind.low > 0.5
    sizes = f"{len(members):,} members and {len(others):,} others"
    findings = [_blind(blind, sizes)]
    figures: dict[str, float | str | None] = {"blind_auc": blind.value}
    if differ:
        withheld = "Withheld: members and non-members differ in something else than membership."
        findings.append(Finding(question=_KNOWS, word="not tested", reading=withheld))
        return Part(tuple(findings), figures)
    scores: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    if doubt:
        findings.append(Finding(question=_KNOWS, word="not tested", reading=doubt))
    else:
        mark("reading members and non-members")
        by_label = _by_label(net, card, members, others, shadows, seed, sizes)
        findings += by_label.findings
        figures |= by_label.figures
        scores |= by_label.scores
    if reference is not None:
        mark("tracing released means")
        finding, traced = _tracing(net, card, members, others, reference[:_WHITENED_BY], trained_on, sizes)
        findings.append(finding)
        figures["tracing_auc"] = finding.measured
        scores["tracing"] = traced
    return Part(tuple(findings), figures, scores=scores)


def _by_label(
    net: nn.Module,
    card: ModelCard,
    members: LabelledImages,
    others: LabelledImages,
    shadows: Shadows | None,
    seed: int,
    sizes: str,
) -> Part:
    """What takes the labels: the loss, and where there are other networks, ratios."""
    said = [answers(net, card, part.images, part.labels) for part in (members, others)]
    a, b = (each.margins for each in said)
    loss, null = auc(a, b), _null(a, b, seed)
    rate = tpr_at(a, b, 0.01)
    right = [float(each.right.double().mean()) for each in said]
    gap = right[0] - right[1]
    tail = tail_share(a, b)
    figures: dict[str, float | str | None] = {"accuracy_gap": gap, "loss_auc": loss.value, "tail_tnr": tail}
    about = f"{sizes}; accuracy {right[0]:.1%} and {right[1]:.1%}, gap {gap:+.1%}"
    findings = [_loss(loss, null, rate, about, tail)]
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
            findings.append(_shadowed(name, value, _null(*scores[name], seed), found, len(shadows.margins), sizes))
            if found and best and found.value > best.value:
                best = found
    if best:
        figures["tpr_1pct"] = best.value
    return Part(tuple(findings), figures, scores=scores)


def _null(a: torch.Tensor, b: torch.Tensor, seed: int) -> Estimate:
    """The same with memberships drawn anew."""
    both = torch.cat([a, b])
    order = torch.randperm(len(both), generator=generator(seed, "null"))
    return auc(both[order[: len(a)]], both[order[len(a) :]])


def _blind(blind: Estimate, sizes: str) -> Finding:
    reading = f"A difference above AUC {_seen(blind):.2f} would have been seen by this test."
    word: Word = "not distinguishable here"
    if blind.low > 0.5:
        word, reading = "not consistent", "They differ: what follows would measure that, not membership."
    elif blind.high < 0.5:
        word = "undecided"
        reading = "Below chance, as where the sets hold nearly the same images: look at how they were drawn."
    return Finding(
        question="Are members and non-members from one distribution?",
        word=word,
        evidence=f"AUC of ridge regression on pixels, without the network; {sizes}",
        figure=blind,
        null="0.5",
        control="not run",
        access="images alone",
        reading=reading,
    )


def _at(rate: Estimate | None) -> str:
    if rate is None:
        return "true positives at 1 % false positives: not read, it takes 1,000 non-members"
    return f"true positives at 1 % false positives: {rate:.1%}"


def _seen(value: Estimate) -> float:
    """The AUC at which an interval of this width lies above chance in 39 of 40 draws, whatever this one's luck."""
    return min(0.5 + value.width, 1.0)


def seen_share(n: int) -> float:
    """The same of a share of n, whose intervals are Clopper and Pearson's; 1 where no share is seen so surely."""
    least = next((hits for hits in range(n + 1) if clopper_pearson(hits, n)[0] > 0.5), n + 1)
    return clopper_pearson(least - 1, n)[1]


def _answer(
    value: Estimate, seen: float, null: Estimate | None = None, what: str = "A leak above AUC", test: str = "attack"
) -> str:
    """What the word beside it says, in a sentence of its own: a page's summary takes the first."""
    if value.low > 0.5:
        if null is None or null.low <= 0.5:
            return f"Yes: {value.value:.2f}, where chance is 0.5."
        more = (
            "Yes, but its null fires as well" if value.low > null.high else "No more than its null, which fires as well"
        )
        return f"{more}: {value.value:.2f}, null {null.value:.2f}, where chance is 0.5."
    if value.high < 0.5:
        return f"No: {value.value:.2f}, below the 0.5 of chance, which no membership explains."
    return f"{what} {seen:.2f} would have been seen by this {test}."


def _word(value: Estimate, null: Estimate, fired: bool | None) -> Word:
    return lower_bound_word(value.low, 0.5, null, fired)


def _loss(value: Estimate, null: Estimate, rate: Estimate | None, about: str, tail: float) -> Finding:
    return Finding(
        question="Does the network know its members by their loss?",
        word=_word(value, null, fired=None),
        evidence=f"AUC of the margin, {about}; {_at(rate)}; {tail:.1%} of non-members are below the "
        "1st percentile of members",
        figure=value,
        null=f"memberships drawn anew: {null:.3f}",
        control="not run in an audit: it takes a network that is trained to know its members (the tests do that)",
        access="logits of the labelled image",
        reading=f"{_answer(value, _seen(value), null)} On average over images.",
    )


def _shadowed(name: str, value: Estimate, null: Estimate, rate: Estimate | None, networks: int, sizes: str) -> Finding:
    title = {"lira": "likelihood ratios (LiRA, fixed variance)", "rmia": "relative ratios (RMIA)"}[name]
    return Finding(
        question=f"Does the network know its members by {title}?",
        word=_word(value, null, fired=None),
        evidence=f"AUC with {networks} networks of the given recipe, {sizes}; {_at(rate)}",
        figure=value,
        null=f"memberships drawn anew: {null:.3f}",
        control="not run in an audit (the tests plant one)",
        access=f"logits, the recipe, such images, {networks} trainings",
        reading=f"{_answer(value, _seen(value), null)} A lower bound: with more networks the attack gains.",
    )


def _tracing(
    net: nn.Module,
    card: ModelCard,
    members: LabelledImages,
    others: LabelledImages,
    reference: torch.Tensor,
    trained_on: int | None,
    sizes: str,
) -> tuple[Finding, tuple[torch.Tensor, torch.Tensor]]:
    known = image_moments(net, card, reference)
    a, b = (image_moments(net, card, part.images) for part in (members, others))
    own = released(stored(net, running_layers(net, card)))
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
    reading = _answer(value, _seen(value), null)
    if not fired:
        reading = f"The positive control did not fire: the test is blind here, whatever it finds ({value.value:.2f})."
    finding = Finding(
        question="Do the BatchNorm statistics tell members?",
        word=_word(value, null, fired),
        evidence=f"AUC of the tracing statistic in {d} whitened directions, {sizes}{ceiling}",
        figure=value,
        null=f"halves of the non-members: {null:.3f}",
        control=f"statistics of {half} non-members, planted: {control:.3f}, theory {theory:.3f}",
        access="the weights file and such images",
        reading=reading,
    )
    return finding, scores


def closer_to_members(inversions: torch.Tensor, members: torch.Tensor, others: torch.Tensor) -> Finding:
    """Rows are `near_duplicates.thumbnails`; of as many members as non-members, ties counting half, rounded down."""
    n = min(len(members), len(others))
    near = (inversions @ members[:n].T).amax(1), (inversions @ others[:n].T).amax(1)
    hits = int((near[0] > near[1]).sum()) + int((near[0] == near[1]).sum()) // 2
    share = Estimate(hits / len(inversions), *clopper_pearson(hits, len(inversions)))
    reading = _answer(share, seen_share(len(inversions)), None, "A share above", "test")
    return Finding(
        question="Are inversions nearer to members than to non-members?",
        word=lower_bound_word(share.low, 0.5, None, None),
        evidence=f"share of {len(inversions)} inversions, by correlation at 16 x 16 pixels with {n} of each",
        figure=share,
        null="0.5",
        control="not run",
        access="the weights file; to check it, training images",
        reading=f"{reading} In pixels alone; other features may see more.",
    )
