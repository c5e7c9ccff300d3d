"""What the stored statistics say of preprocessing and augmentation, beside nulls and planted statistics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ensemble.evaluation.estimate import Estimate
from ensemble.privacy.candidates import CLAIMED, MIXES, Candidate, Claimed, candidates
from ensemble.privacy.findings import Finding, Part, Table, Word
from ensemble.privacy.moments import Moments, moments_of, stored
from ensemble.privacy.reestimation import (
    UNEXPLAINED,
    Explained,
    all_mixed,
    distances,
    early,
    explain,
    floors,
    recovered,
    share,
    unmixed,
)
from ensemble.privacy.verdicts import candidate_word, mix_word
from ensemble.training.recipe import TrainingRecipe
from models import ModelCard, model_card

BATCH = 128
_ACCESS = "the weights file with its BatchNorm statistics, and images like the training images; no training image"
Mark = Callable[[str], None]


@dataclass(frozen=True)
class Explanation:
    """What other parts go on from."""

    part: Part
    explained: Explained
    found: Mapping[str, Moments]
    stored: Moments
    best: Candidate | None
    """Of the candidates with the card's normalisation; None where nothing explains the statistics."""


def explained_by(
    net: nn.Module, card: ModelCard, images: torch.Tensor, claim: TrainingRecipe | None, seed: int, mark: Mark
) -> Explanation:
    """The part on preprocessing, crops, mixes and a claim, from reference images uint8 (N, 3, H, W)."""
    tried: list[Candidate | Claimed] = [*candidates(card)]
    trains = ""
    if claim is not None:
        model = model_card(claim.model)
        trains = model.name if model.name != card.name else ""
        tried.append(Claimed(claim, model))
    found = {}
    for k, candidate in enumerate(tried, start=1):
        mark(f"re-estimating statistics, {k} of {len(tried)}: {candidate.name}")
        batches = candidate.batches(images, card, min(BATCH, len(images) // 4), seed)
        found[candidate.name] = moments_of(net, batches)
    constant = set().union(*(each.constant() for each in found.values()))
    found = {name: each.without(constant) for name, each in found.items()}
    layers = [name for name, _ in next(iter(found.values())).layers]
    if not layers:
        raise ValueError(f"reference: {card.name} has constant inputs at every BatchNorm layer, whatever the image")
    known = {c.name: c for c in tried if isinstance(c, Candidate)}
    return explanation(
        *(stored(net, layers), found, known, seed),
        constant=tuple(sorted(constant)),
        trains=trains,
    )


def explanation(
    own: Moments,
    found: Mapping[str, Moments],
    known: Mapping[str, Candidate],
    seed: int,
    *,
    constant: Sequence[str] = (),
    trains: str = "",
) -> Explanation:
    """The same from moments: `own`, what is stored, and those under each candidate; `known` are not the claim, and
    `constant` layers that were left out, since their inputs never vary. `trains`: the network that the claimed recipe
    is of, where it is another."""
    plain = {name: each for name, each in found.items() if name in known}
    said = explain(own, plain, seed)
    truths = [name for name, c in known.items() if c.as_carded]
    as_carded = _as_carded(said, known)
    best = known[as_carded or said.best]
    usable = said.explained and as_carded is not None and said.fit[as_carded] < UNEXPLAINED
    control = recovered(plain, truths, seed, said.wider)
    findings = [_preprocessing(said, as_carded, known)]
    figures: dict[str, float | str | None] = {"augmentation": "undecided"}
    if usable and len({(known[name].crop, known[name].mix) for name in said.alike}) == 1:
        figures["augmentation"] = best.name
    elif said.explained and as_carded is None:
        figures["augmentation"] = "preprocessing"
    if usable:
        findings.append(_crops(said, best, known, control))
    else:
        findings.append(_withheld("Were images cropped or padded?", said))
    for mix, title in MIXES.items():
        question = f"Were images mixed by {title}?" if mix != "cutout" else "Were squares cut out of images?"
        if not usable:
            findings.append(_withheld(question, said))
            continue
        base, mixed = Candidate(best.crop), best.with_mix(mix)
        estimate = share(own, found[base.name], found[mixed.name], seed, said.wider)
        findings.append(_mix(question, estimate, found[base.name], found[mixed.name], said, known, mix, seed))
        figures[f"{mix}_share"] = findings[-1].measured
    if CLAIMED in found:
        with_claim = explain(own, found, seed)
        findings.append(_claim(with_claim, usable, trains))
        figures["claim"] = findings[-1].word
    rows = tuple(
        (name, said.fit[name], said.score[name], "yes" if name in said.alike else "no", control.get(name))
        for name in said.names
    )
    table = Table(
        "Candidates: how far the stored statistics are from those re-estimated",
        ("candidate", "distance / noise floor", "score", "not told from the best", "planted ones recovered"),
        rows,
    )
    part = Part(tuple(findings), figures, (table, _layers(own, found[said.best], constant)))
    return Explanation(part, said, found, own, best if usable else None)


def _as_carded(said: Explained, known: Mapping[str, Candidate]) -> str | None:
    """The first candidate of the card's preparation that cannot be told from the best; None where there is none.

    Behind a best one that is prepared otherwise only those without mixes count: a mix may only look like that.
    """
    theirs = [name for name in said.alike if known[name].as_carded]
    if not known[said.best].as_carded:
        theirs = [name for name in theirs if known[name].mix == "none"]
    return next(iter(theirs), None)


def _layers(own: Moments, best: Moments, constant: Sequence[str]) -> Table:
    """Every layer, also those that are not read."""
    ratio = (distances(own, best)[0] / floors(best)).tolist()
    read = early(len(ratio))
    rows: tuple[tuple[str, float | None, str], ...] = tuple(
        (name, x, "yes" if i < read else "no") for i, ((name, _), x) in enumerate(zip(own.layers, ratio, strict=True))
    )
    rows += tuple((name, None, "no: its input never varies") for name in constant)
    return Table("Layers: the best candidate's distance", ("layer", "distance / noise floor", "read"), rows)


def _fits(said: Explained, name: str) -> str:
    return f"{name}: {said.fit[name]:.2f} times the noise floor"


def _preprocessing(said: Explained, as_carded: str | None, known: Mapping[str, Candidate]) -> Finding:
    """`as_carded`: the best of the card's preparation, where it cannot be told from the best of all."""
    own = as_carded or next(name for name in said.names if known[name].as_carded)
    other = next((name for name in said.names if known[name].normalisation), None)
    evidence = f"by their scores, best of the card's: {_fits(said, own)}" + (
        f"; best of others: {_fits(said, other)}" if other else ""
    )
    word: Word = "consistent"
    reading = "The card's mean and std explain the statistics better than other usual ones."
    if rivals := [name for name in said.alike if not known[name].as_carded]:
        reading = f"The card's mean and std explain the statistics; so would: {'; '.join(rivals[:4])}."
    if not said.explained:
        word = "undecided"
        reading = (
            f"Nothing that was tried comes within {UNEXPLAINED:g} noise floors: the preprocessing is another, or the "
            "reference images are of another kind than the training images. Nothing below is concluded from statistics."
        )
    elif as_carded is not None and said.fit[as_carded] >= UNEXPLAINED:
        word = "undecided"
        reading = (
            f"Of what the card says nothing comes within {UNEXPLAINED:g} noise floors, but it cannot be told from "
            f"{said.best}, which does. Nothing below is concluded from statistics."
        )
    elif as_carded is None:
        word = "not consistent"
        reading = (
            f"Preprocessing: {said.best} explains the statistics better than what the card says. Check mean and std "
            "before anything else; what is wrong there looks like augmentation, so nothing below is concluded."
        )
    return Finding(
        question="Are images prepared as the card says?",
        word=word,
        evidence=evidence,
        figure=said.fit[as_carded or said.best],
        null="1 is expected where a candidate is true",
        control="statistics planted under the card's own: see the table",
        access=_ACCESS,
        reading=reading,
    )


def _withheld(question: str, said: Explained) -> Finding:
    why = f"preprocessing comes first ({said.best})" if said.explained else "no candidate explains the statistics"
    return Finding(
        question=question,
        word="undecided",
        evidence=why,
        access=_ACCESS,
        reading="Not concluded; see the first question.",
    )


def _crops(said: Explained, found: Candidate, known: Mapping[str, Candidate], control: Mapping[str, float]) -> Finding:
    """`found`: the best candidate of the card's preparation."""
    crops = list(dict.fromkeys((found.crop, *(known[name].crop for name in said.alike))))
    names = [Candidate(crop).name for crop in crops]
    fired = min(control[Candidate(crop).name] for crop in crops)
    best = Candidate(crops[0])
    told = len(crops) == 1
    planted = [candidate.name for candidate in (Candidate("none"), Candidate("mirrored"), Candidate("black"))]
    other = next(name for name in said.names if known[name].crop != crops[0] and known[name].as_carded)
    return Finding(
        question="Were images cropped or padded?",
        word=candidate_word(len(crops) - 1, fired),
        evidence=f"{_fits(said, found.name)}; best of other crops: {_fits(said, other)}; scores rank candidates, which "
        "weigh layers otherwise than these distances do",
        figure=said.fit[found.name],
        null=f"planted {best.name}: recovered in {control[best.name]:.0%}",
        control=", ".join(f"{name}: {control[name]:.0%}" for name in planted),
        access=_ACCESS,
        reading=(
            f"The statistics are those of images with {names[0]}."
            if told
            else f"Cannot be told apart: {'; '.join(names)}."
        )
        + (
            " Statistics that were re-estimated on plain images after training are like that, too, and say nothing of "
            "the training."
            if crops[0] == "none"
            else ""
        )
        + ("" if control[other] else f" Planted statistics of {other} are never named: such images do not show them."),
    )


def _mix(
    question: str,
    estimate: Estimate,
    base: Moments,
    mixed: Moments,
    said: Explained,
    known: Mapping[str, Candidate],
    mix: str,
    seed: int,
) -> Finding:
    silent, fired = (_middle(part(base, mixed, seed, said.wider)) for part in (unmixed, all_mixed))
    alike = {known[name].mix for name in said.alike}
    blind = ""
    if fired.low <= 0:
        blind = "The positive control did not fire"
    elif estimate.width >= 1:
        blind = "The interval is as wide as all shares there are"
    reading = f"A share above {estimate.width:.0%} would have been seen."
    if blind:
        reading = f"{blind}: with so few images, or layers, the test is blind here."
    elif 0 < estimate.low <= silent.high and silent.low > 0:
        reading = f"No more than its null: planted unmixed statistics give a share as well ({silent.value:.0%})."
    elif estimate.low > 0 and mix in alike:
        also = f"; planted unmixed statistics give a share as well ({silent.value:.0%})" if silent.low > 0 else ""
        reading = f"About {min(estimate.value, 1.0):.0%} of the batches{also}."
        if alike != {mix}:
            reading += f" Other candidates explain the statistics as well ({', '.join(sorted(said.alike)[:4])})."
    elif estimate.low > 0:
        reading = (
            "The share differs from 0, but candidates without this mix explain the statistics better: something else "
            f"moves them the same way. {reading}"
        )
    return Finding(
        question=question,
        word=mix_word(estimate.low, mix, alike, silent, not blind),
        evidence="share of mixed batches that explains the statistics best",
        figure=estimate,
        null=f"planted unmixed: {silent:.2f}",
        control=f"planted in every batch: {fired:.2f}",
        access=_ACCESS,
        reading=reading,
    )


def _middle(values: torch.Tensor) -> Estimate:
    """The mean, and between what the middle 95 % lie."""
    low, high = values.quantile(torch.tensor([0.025, 0.975], dtype=values.dtype)).tolist()
    return Estimate(float(values.mean()), low, high)


def _claim(said: Explained, usable: bool, trains: str) -> Finding:
    word: Word
    others = [name for name in said.alike if name != CLAIMED]
    if CLAIMED in said.alike and said.fit[CLAIMED] < UNEXPLAINED:
        word = "consistent"
        reading = "The statistics are what the recipe would leave."
        if others:
            reading += f" So would: {'; '.join(others[:4])}."
    elif said.explained and usable:
        word, reading = "not consistent", f"{said.best} explains the statistics better than what is claimed."
    else:
        word, reading = "undecided", "Nothing explains the statistics well enough, or preprocessing comes first."
    if trains:
        reading += f" The recipe is of another network, {trains}: its preparation of images alone was compared."
    return Finding(
        question="Is the claimed recipe consistent with the statistics?",
        word=word,
        evidence=f"{_fits(said, CLAIMED)}; best: {_fits(said, said.best)}",
        figure=said.fit[CLAIMED],
        null="1 is expected where the claim is true",
        control="see the table of candidates",
        access=_ACCESS,
        reading=reading,
    )
