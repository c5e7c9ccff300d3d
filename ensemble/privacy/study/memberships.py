"""Membership over the bank: attacks with the other networks of an arm as shadows, stress and planted cases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from ensemble.evaluation.estimate import Estimate, t_interval
from ensemble.privacy.findings import Finding, Table
from ensemble.privacy.study.cells import Cells
from ensemble.privacy.study.contrasts import Scores
from ensemble.privacy.study.leave_one_out import attacks, null_rows, summary
from ensemble.privacy.verdicts import lower_bound_word

_LEAST = 4
"""Networks of an arm, for each to have two shadows where its memberships are another's."""


class Shadowed(NamedTuple):
    """An arm with enough networks for attacks, by network and image, (K, N) each."""

    margins: torch.Tensor
    inside: torch.Tensor
    right: torch.Tensor


def arms_with_shadows(cells: Cells) -> dict[str, Shadowed]:
    """By name."""
    scores, found = Scores(cells), {}
    for arm in cells.bank.recipe.arms:
        teachers = scores.teachers(arm.name)
        if len(teachers) >= _LEAST:
            said = [cells.folder.tensors(f"bank_{t.name}") for t in teachers]
            if not all("right" in each for each in said):
                raise ValueError(f"{cells.folder.path} holds a bank of an earlier version; pass --overwrite instead")
            margins, right = (torch.stack([each[key] for each in said]) for key in ("margins", "right"))
            found[arm.name] = Shadowed(margins, torch.stack([cells.bank.inside(t.seed) for t in teachers]), right)
    return found


Summary = Mapping[str, Mapping[str, Estimate | None]]
"""By attack and figure: means over targets (`leave_one_out.summary`)."""


@dataclass(frozen=True)
class Attacked:
    """What attacks find in an arm, and the same with memberships of other networks."""

    networks: int
    found: Summary
    null: Summary


def attacked(cells: Cells) -> dict[str, Attacked]:
    """Of the plain and of the mixed arm, where they have enough networks."""
    recipe = cells.bank.recipe
    made = {}
    for arm, each in arms_with_shadows(cells).items():
        if arm in (recipe.plain, recipe.mixed):
            rows, nulls = (
                attack(each.margins, each.inside, cells.bank.canaries, seed=recipe.seed, right=each.right)
                for attack in (attacks, null_rows)
            )
            made[arm] = Attacked(len(each.margins), summary(rows), summary(nulls))
    return made


def membership_tables(cells: Cells, arms: Mapping[str, Attacked]) -> list[Table]:
    """Attacks by arm, means over targets; tracing and recency by arm; what must fire."""
    tables = []
    columns = ("auc", "tpr_1pct", "tpr_0_1pct", "canary_auc", "tail_tnr")
    heads = ("AUC", "TPR at 1 %", "TPR at 0.1 %", "canaries: AUC", "tail TNR", "null: AUC")
    for arm, each in arms.items():
        body = tuple(
            (name, *(_said(figures.get(key)) for key in columns), _said(each.null.get(name, {}).get("auc")))
            for name, figures in each.found.items()
        )
        title = f"Membership in {arm}: each network is the target once, {each.networks - 1} others its shadows [95 %]"
        tables.append(Table(title, ("attack", *heads), body))
    tables += [_statistics(cells), _planted(cells)]
    if cells.bank.recipe.stress.networks:
        tables.append(_stress(cells))
    return tables


def _said(figure: Estimate | None) -> str:
    return "–" if figure is None else f"{figure:.3f}"


def _statistics(cells: Cells) -> Table:
    scores, rows = Scores(cells), []
    for arm in cells.bank.recipe.arms:
        found = [scores.read(t) for t in scores.teachers(arm.name)]
        parts = (
            [row["tracing"]["members"][0] for row in found],
            [row["tracing"]["null"][0] for row in found],
            [row["recency"]["stored"][0] for row in found],
            [row["recency"]["plain"][0] for row in found],
        )
        rows.append((arm.name, *(_said(t_interval(part)) for part in parts)))
    heads = (
        "arm",
        "members",
        "null: the next seed's members",
        "the last 20 batches, as trained",
        "the same, taken anew",
    )
    return Table("Released means, read through the network: AUC over networks [95 %]", heads, tuple(rows))


def _planted(cells: Cells) -> Table:
    """Tracing where it must work, beside theory."""
    rows = [
        (row["n"], row["d"], _said(Estimate(row["auc"], row["low"], row["high"])), row["of_lengths"], row["expected"])
        for row in cells.folder.figures("planted")["line"]
    ]
    heads = ("images", "directions", "AUC over draws [95 %]", "theory, of lengths like these", "theory, normal")
    return Table("Planted: released means of exactly so many images, and whether they tell them", heads, tuple(rows))


def _stressed(cells: Cells) -> list[dict[str, Any]]:
    return [cells.folder.figures(f"stress_{i}") for i in range(cells.bank.recipe.stress.networks)]


def _stress(cells: Cells) -> Table:
    found = _stressed(cells)
    names = ("train_accuracy", "other_accuracy", "loss_auc", "tracing_auc", "tracing_expected")
    rows = tuple(
        (f"network {i}", *(row[name] for name in names), "yes" if row["fires"] else "no") for i, row in enumerate(found)
    )
    title = f"Networks that learned {cells.bank.by_heart} images by heart: attacks must fire"
    return Table(title, ("", *(name.replace("_", " ") for name in names), "fires"), rows)


def membership_findings(cells: Cells, arms: Mapping[str, Attacked]) -> list[Finding]:
    """Of the plain arm: the strongest attack, with the stress case as its control."""
    if (plain := arms.get(cells.bank.recipe.plain)) is None:
        return []
    found = {name: value for name, figures in plain.found.items() if (value := figures.get("auc")) is not None}
    best = max(found, key=lambda name: found[name].value)
    value = found[best]
    null = plain.null[best]["auc"]
    stress = _stressed(cells)
    fired = bool(stress) and all(row["fires"] for row in stress)
    # the stress case is of the loss: of other attacks nothing is planted; and what misses its mark may still see
    word = lower_bound_word(value.low, 0.5, null, (fired and best == "loss") or None)
    least = f"{min(row['loss_auc'] for row in stress):.2f}" if stress else ""
    return [
        Finding(
            question="Do networks of the plain arm know their members?",
            word=word,
            evidence=f"AUC of {best}, the strongest of all attacks here, mean over {plain.networks} networks",
            figure=value,
            null=f"memberships of another seed: {_said(null)}",
            control=f"networks that learned by heart: loss AUC at least {least}" if stress else "not run",
            access="logits of the labelled image, and networks of the same recipe",
            reading="The strongest was chosen by the same figures, so it is flattered a little.",
        )
    ]
