"""From cells to findings: the declared contrasts first, then detectors, controls, arms, ensembles and members."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ensemble.evaluation.estimate import t_interval
from ensemble.privacy.findings import Finding, Table
from ensemble.privacy.pictures import Strip
from ensemble.privacy.study.cells import CANDIDATES, Cells
from ensemble.privacy.study.contrasts import Detector, Scores, Swap, swap_of, swap_p
from ensemble.privacy.study.controls import FIRES, Control, controls
from ensemble.privacy.study.inference import (
    auroc,
    fixed_sequence,
    holm,
    page_p,
    paired_auroc_difference,
    splits,
)
from ensemble.privacy.study.memberships import attacked, membership_findings, membership_tables
from ensemble.privacy.study.recipe import LEVEL
from ensemble.privacy.verdicts import lower_bound_word, sequence_word, unless_blind

_SHOWN = 8
_STATISTICS = "the weights file with its BatchNorm statistics"


@dataclass(frozen=True)
class Concluded:
    """All that a finished study says."""

    findings: tuple[Finding, ...]
    tables: tuple[Table, ...]
    pictures: tuple[Strip, ...]
    figures: dict[str, Any]
    """Of leakage.json, by name."""


def conclude(cells: Cells) -> Concluded:
    """What the study says; every cell is there."""
    scores = Scores(cells)
    recipe = cells.bank.recipe
    checks = controls(cells, scores)
    swap = swap_of(scores)
    secondary = _secondary(scores, swap)
    corrected = holm(secondary)
    p = {arm: scores.p(scores.seams, arm) for arm in recipe.sequence}
    fallen = fixed_sequence(p, LEVEL)
    around = _Around(
        checks,
        chance=_quantiles(splits(scores.values(scores.seams, recipe.plain))),
        planted=auroc(swap.seam["plain", "cutmix"], swap.seam["plain", "plain"]),
        exchanged=auroc(swap.seam["mixed", "plain"], swap.seam["plain", "plain"]),
    )
    members = attacked(cells)
    findings = [_sequence(scores, arm, i, p[arm], fallen[arm], around) for i, arm in enumerate(recipe.sequence)]
    findings += _swapped(swap, corrected, around)
    findings += _specific(scores, around)
    findings += membership_findings(cells, members)
    tables = [
        _detectors(scores),
        _secondaries(secondary, corrected),
        _controls(around),
        _swap_table(swap),
        _doses(scores),
        _confusion(scores),
        *_ensembles(cells),
        *membership_tables(cells, members),
        _accuracies(scores),
    ]
    tested = {arm: value if fallen[arm] is not None else None for arm, value in p.items()}
    figures = {
        "primary": {"arm": recipe.sequence[0], "auroc": findings[0].value, "interval": findings[0].interval},
        "p": tested,
        "sequence": fallen,
        "secondary": {name: {"p": secondary[name], "holm": corrected[name]} for name in secondary},
        "controls": {f"{c.name}: {c.detector}": [*c.value, c.kept] for c in checks},
    }
    return Concluded(tuple(findings), tuple(tables), _pictures(cells, scores), figures)


@dataclass(frozen=True)
class _Around:
    """What stands beside the seams of an arm."""

    checks: list[Control]
    chance: str
    """The middle 95 % of AUROCs of halves of one arm of so many networks."""
    planted: float
    """AUROC of plain weights with CutMix statistics against plain weights with plain ones."""
    exchanged: float
    """AUROC of the mixed arm's weights with plain statistics against plain weights with plain ones."""

    @property
    def fired(self) -> bool:
        """Whether what was planted was found between networks; else the score is blind."""
        return self.planted >= FIRES


def _sequence(scores: Scores, arm: str, place: int, p: float, fallen: bool | None, around: _Around) -> Finding:
    value = scores.auroc(scores.seams, arm)
    seams = [check for check in around.checks if check.detector == "I1"]
    real = next(check for check in seams if check.fires)
    loud = [other for other in scores.without_mixes() if scores.auroc(scores.seams, other).low > 0.5]
    kept = around.fired and all(check.kept for check in seams)
    reading = f"AUROCs above {value.high:.2f} are excluded."
    if not around.fired:
        reading += " Planted CutMix statistics were not found between networks either: the score is blind here."
    if fallen is None:
        reading = "The sequence ended before it; the figure is shown without a test."
    elif fallen:
        reading = "The seams follow the arm."
        if loud:
            reading = f"So they do in {', '.join(loud)}, which had no CutMix: the score does not tell CutMix alone."
        if not kept:
            reading += " Not all controls did as they must."
    n = len(scores.teachers(arm)), len(scores.teachers(scores.cells.bank.recipe.plain))
    tested = "not tested" if fallen is None else f"exact one-sided p = {p:.3g}, number {place + 1} at {LEVEL}"
    turned = scores.auroc(scores.turned, arm).value
    return Finding(
        question=f"{'Primary: do' if place == 0 else 'Do'} inversions of statistics as trained show more seams in "
        f"{arm}?",
        word=sequence_word(fallen, value.low, kept, alone=not loud, fired=around.fired),
        evidence=f"AUROC of {n[0]} against {n[1]} networks, BN matching alone; {tested}; turned control: {turned:.2f}",
        figure=value,
        null=f"plain statistics in both arms' weights: {around.exchanged:.2f}; what chance allows for halves of the "
        f"plain arm, whatever the data: {around.chance}",
        control=f"planted CutMix statistics in plain weights: {around.planted:.2f}; real CutMix images: "
        f"{real.value.value:.2f}",
        access=_STATISTICS,
        reading=reading,
    )


def _quantiles(null: np.ndarray) -> str:
    cut = int(0.025 * (len(null) - 1))  # as many on either side
    ordered = sorted(null)
    return f"[{ordered[cut]:.2f}, {ordered[-1 - cut]:.2f}]"


def _secondary(scores: Scores, swap: Swap) -> dict[str, float]:
    """p-values of at most ten named contrasts, one-sided, in the recipe's mixed arm unless they say another."""
    recipe = scores.cells.bank.recipe
    found = {f"swap, {name}": p for name, p in swap_p(swap).items()}
    named = [(arm.dose, arm.name) for arm in recipe.arms if arm.dose or arm.name == recipe.plain]
    doses = sorted({**dict(named), recipe.arm(recipe.mixed).dose: recipe.mixed}.items())  # others may share its dose
    rows = _by_dose(scores, [name for _, name in doses])
    if len(doses) > 2 and len(rows) > 1:
        found["dose-response of seams (Page)"] = page_p(rows)
    for detector in scores.detectors():
        if detector.name != scores.seams.name:  # the primary
            found[detector.name] = scores.p(detector, recipe.mixed)
    for ridge in scores.ridges() if len(scores.pairs(recipe.mixed)) > 2 else ():
        found[ridge.name] = scores.ridge_p(ridge, recipe.mixed)
    return found


def _by_dose(scores: Scores, arms: list[str]) -> list[list[float]]:
    """Seams of the seeds that all these arms have, a row a seed."""
    columns = [scores.values(scores.seams, arm) for arm in arms]
    return [list(row) for row in zip(*columns, strict=False)]


def _swapped(swap: Swap, corrected: dict[str, float], around: _Around) -> list[Finding]:
    found = []
    for name, values in (("statistics", swap.of_statistics()), ("weights", swap.of_weights())):
        added = t_interval(values)
        p = corrected[f"swap, {name}"]
        word = lower_bound_word(added.low if p <= LEVEL else 0.0, 0.0, null=None, fired=None)
        found.append(
            Finding(
                question=f"Do seams follow the {name} when weights and statistics are exchanged?",
                word=unless_blind(word, around.fired),
                evidence=f"mean over {len(values)} seeds of what CutMix {name} add to the seam score; Holm p = {p:.3g}",
                figure=added,
                null="0",
                control=f"planted CutMix statistics in plain weights, AUROC: {around.planted:.2f}",
                access=_STATISTICS,
                reading="Statistics were re-estimated on images that networks of that seed did not learn, with the "
                "same crops.",
            )
        )
    return found


def _specific(scores: Scores, around: _Around) -> list[Finding]:
    """Arms without CutMix: their seams are not CutMix's."""
    found = []
    for arm in scores.without_mixes():
        value = scores.auroc(scores.seams, arm)
        found.append(
            Finding(
                question=f"Do seams appear in {arm}, which has no CutMix?",
                word=unless_blind(lower_bound_word(value.low, 0.5, null=None, fired=None), around.fired),
                evidence=f"AUROC against the plain arm, {len(scores.teachers(arm))} networks",
                figure=value,
                access=_STATISTICS,
                reading=f"AUROCs outside [{value.low:.2f}, {value.high:.2f}] are excluded.",
            )
        )
    return found


def _detectors(scores: Scores) -> Table:
    recipe = scores.cells.bank.recipe
    arms = [arm.name for arm in recipe.arms if arm.name != recipe.plain]

    def mixed_and_plain(detector: Detector) -> tuple[list[float], list[float]]:
        return scores.values(detector, recipe.mixed), scores.values(detector, recipe.plain)

    rows = []
    for d in scores.detectors():
        cells = [f"{scores.auroc(d, arm):.2f}" if d.arms is None or arm in d.arms else "–" for arm in arms]
        beside = "–"
        if d.name[:2] in ("S1", "B1"):
            both = mixed_and_plain(scores.seams), mixed_and_plain(d)
            if not all(auroc(*each) == 1 for each in both):  # where both are perfect, draws of seeds cannot differ
                beside = f"{paired_auroc_difference(*both, recipe.seed):+.2f}"
        rows.append((d.name, d.access, *cells, beside))
    for ridge in scores.ridges():
        cells = [f"{scores.ridge(ridge, arm):.2f}" if len(scores.pairs(arm)) > 2 else "–" for arm in arms]
        rows.append((ridge.name, ridge.access, *cells, "–"))
    title = "Detectors: AUROC of each arm against the plain one [95 %, Newcombe]"
    return Table(title, ("detector", "access", *arms, f"I1 less it, {recipe.mixed} [bootstrap of seeds]"), tuple(rows))


def _secondaries(p: dict[str, float], corrected: dict[str, float]) -> Table:
    rows = tuple((name, f"{p[name]:.4f}", f"{corrected[name]:.4f}") for name in p)
    return Table("Secondary contrasts, one-sided", ("contrast", "p", "Holm p"), rows)


def _controls(around: _Around) -> Table:
    must = f"fire: at least {FIRES}"
    rows = [
        (check.name, check.detector, must if check.fires else "be silent", f"{check.value:.2f}", _yes(check.kept))
        for check in around.checks
    ]
    planted = "plain weights with planted CutMix statistics"
    rows.append((planted, "I1", must, f"{around.planted:.2f}", _yes(around.fired)))
    rows.append(("all halvings of the plain arm", "I1", "show how wide chance is", f"0.50 {around.chance}", "–"))
    return Table("Controls: AUROC", ("comparison", "detector", "it must", "AUROC [95 %]", "it did"), tuple(rows))


def _yes(holds: bool) -> str:
    return "yes" if holds else "no"


def _swap_table(swap: Swap) -> Table:
    rows = []
    for cell, seams in swap.seam.items():
        accuracy = t_interval(swap.accuracy[cell]).value
        rows.append((", ".join(cell), f"{t_interval(seams):.4f}", f"{accuracy:.2%}"))
    rows.append(("interaction", f"{t_interval(swap.interaction()):.4f}", "–"))
    return Table(
        "The swap: seam score, and accuracy", ("weights, statistics", "seam score [95 %]", "accuracy"), tuple(rows)
    )


def _doses(scores: Scores) -> Table:
    recipe = scores.cells.bank.recipe
    rows = []
    for arm in recipe.arms:
        shares = [float(scores.read(t)["share"]) for t in scores.teachers(arm.name)]
        spread = f"{min(shares):.2f} to {max(shares):.2f}"
        rows.append((arm.name, arm.dose, f"{t_interval(shares):.2f}", spread))
    title = "Share of batches with CutMix, estimated by re-estimation (S1)"
    return Table(title, ("arm", "true share", "mean over networks [95 %]", "range"), tuple(rows))


def _confusion(scores: Scores) -> Table:
    recipe = scores.cells.bank.recipe
    columns = (*CANDIDATES, "undecided")
    rows = []
    for arm in recipe.arms:
        said: Counter[str] = Counter()
        for teacher in scores.teachers(arm.name):
            found = scores.read(teacher)
            clear = found["explained"] and len(found["alike"]) == 1
            said[found["best"] if clear else "undecided"] += 1
        rows.append((arm.name, *(said[name] for name in columns)))
    return Table(
        "Which augmentation? Networks by arm, and by the candidate that explains their statistics best",
        ("arm", *columns),
        tuple(rows),
    )


def _ensembles(cells: Cells) -> list[Table]:
    """Seams of k of K networks with CutMix, beside the straight line from none to all."""
    asked = cells.bank.recipe.ensembles
    if not asked.each:
        return []
    seams = {
        k: [float(cells.folder.figures(f"seen_ensemble_{k}_{i:02d}")["seam"]) for i in range(asked.each)]
        for k in range(asked.size + 1)
    }
    rows = []
    for k, values in seams.items():
        ends = zip(values, seams[0], seams[asked.size], strict=True)
        beyond = [seam - ((asked.size - k) * none + k * full) / asked.size for seam, none, full in ends]
        mean = sum(values) / len(values)
        apart = "–" if k in (0, asked.size) else _beyond(beyond)
        rows.append((f"{k} of {asked.size}", len(values), f"{mean:.4f}", apart))
    title = "Ensembles of the same seeds: below the line consensus suppresses seams, above it lets them through"
    heads = ("with CutMix", "ensembles", "seam score", "less the line from none to all [95 % over ensembles]")
    return [Table(title, heads, tuple(rows))]


def _beyond(values: list[float]) -> str:
    found = t_interval(values)
    return f"{found:+.4f}" if len(values) > 2 else f"{found.value:+.4f}"


def _accuracies(scores: Scores) -> Table:
    rows = []
    for arm in scores.cells.bank.recipe.arms:
        found = [scores.cells.folder.figures(f"bank_{t.name}")["accuracy"] for t in scores.teachers(arm.name)]
        said = (f"{t_interval([row[split] for row in found]):.2%}" for split in ("test", "train"))
        rows.append((arm.name, len(found), *said))
    return Table("The bank", ("arm", "networks", "accuracy, test [95 %]", "accuracy on what it learned"), tuple(rows))


def _pictures(cells: Cells, scores: Scores) -> tuple[Strip, ...]:
    """The first images of the first networks, not chosen."""
    recipe = cells.bank.recipe

    def first(name: str) -> torch.Tensor:
        return cells.folder.tensors(name)["images"][:_SHOWN]

    rows = [
        Strip(
            f"{arm.name}: inversions of statistics as trained",
            first(f"images_{scores.teachers(arm.name)[0].name}_stored"),
        )
        for arm in recipe.arms
    ]
    plain = scores.teachers(recipe.plain)[0].name
    rows.append(Strip("planted: plain weights with re-estimated CutMix statistics", first(f"images_{plain}_cutmix")))
    rows.append(Strip("null: plain weights with re-estimated plain statistics", first(f"images_{plain}_plain")))
    return tuple(rows)
