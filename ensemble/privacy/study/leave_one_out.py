"""Attacks on membership over networks of one recipe: each is the target once, the others are its shadows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ensemble.evaluation.estimate import Estimate, t_interval
from ensemble.machine.rng import generator
from ensemble.privacy.membership import tail_share
from ensemble.privacy.rates import LEAST_EXPECTED, auc, tpr_at, tprs
from ensemble.privacy.shadows import lira, lira_offline, rmia

REFERENCES = (1, 2, 4, 11)
"""Numbers of reference networks that RMIA is tried with."""
_RATES = {"tpr_1pct": 0.01, "tpr_0_1pct": 0.001}
_CANARY_RATES = {"tpr_1pct": 0.01}


@dataclass(frozen=True)
class _Target:
    """A network, who is said to be inside it, and the networks that the attacker has."""

    number: int
    members: torch.Tensor
    """(N,) bool."""
    scores: dict[str, torch.Tensor]
    """(N,) by attack, larger for members."""


def attacks(
    margins: torch.Tensor,
    inside: torch.Tensor,
    canaries: torch.Tensor,
    references: Sequence[int] = REFERENCES,
    seed: int = 0,
    right: torch.Tensor | None = None,
) -> list[dict[str, Any]]:
    """A row for each target and attack, from margins (K, N), who is inside (K, N) and which are canaries (N,).

    Attacks: `gap` (the label is what the network reads; only with `right`, (K, N), who reads which), `loss` (the
    margin), `lira` and `lira_offline` (one deviation for all images, canaries with their own), `rmia_n` with n of the
    shadows, which the seed draws, against images that are no canaries; numbers above K - 1 are left out, and `lira` for
    one shadow. Each row: `target`, `attack`, `auc`, `tpr_1pct`, `tpr_0_1pct` of images that are no canaries,
    `canary_auc` and `canary_tpr_1pct` of canaries, each with its 95 % `..._interval` over images; None by `tpr_at`'s
    rule, or where a set is empty. `tail` has `tail_tnr` alone.

    Sources: Carlini et al. (2022); Zarifzadeh et al. (2024); Yeom et al. (2018) for gap and loss. ValueError for fewer
    than two networks or shapes that differ.
    """
    return _rows(_targets(margins, inside, canaries, references, seed, right, null=False), canaries)


def null_rows(
    margins: torch.Tensor,
    inside: torch.Tensor,
    canaries: torch.Tensor,
    references: Sequence[int] = REFERENCES,
    seed: int = 0,
    right: torch.Tensor | None = None,
) -> list[dict[str, Any]]:
    """`attacks` with the next network's memberships in place of the target's: AUCs of 0.5 on average.

    The next network is no shadow then, since its own margins know its memberships; an attack with K - 1 references has
    K - 2 here. Off 0.5 where memberships of networks hang together, which would flatter the attacks. ValueError as
    there, and for fewer than three networks.
    """
    return _rows(_targets(margins, inside, canaries, references, seed, right, null=True), canaries)


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Estimate | None]]:
    """By attack and figure: the mean over targets and its 95 % interval (Student's t), None where no target has one.

    Targets share images and are each other's shadows, so intervals are of this bank's images.
    """
    by_attack: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_attack.setdefault(row["attack"], []).append(row)
    found: dict[str, dict[str, Estimate | None]] = {}
    for attack, each in by_attack.items():
        figures = [name for name in each[0] if name not in ("target", "attack") and not name.endswith("_interval")]
        values = {name: [row[name] for row in each if row[name] is not None] for name in figures}
        found[attack] = {name: t_interval(part) if part else None for name, part in values.items()}
    return found


@dataclass(frozen=True)
class Band:
    """True positive rates at false positive rates (F,), each (F,)."""

    fpr: torch.Tensor
    mean: torch.Tensor
    """Over targets, each with a threshold of its own."""
    low: torch.Tensor
    high: torch.Tensor
    """Of the mean's 95 % interval over targets (Student's t), in [0, 1]; NaN for one target."""


def roc_band(
    margins: torch.Tensor,
    inside: torch.Tensor,
    canaries: torch.Tensor,
    attack: str,
    of_canaries: bool = False,
    points: int = 60,
    seed: int = 0,
) -> Band:
    """The ROC of an attack (`attacks`' names) on images that are no canaries, or on canaries.

    False positive rates lie evenly on a log scale from where each target lets one expect LEAST_EXPECTED false positives
    (`tpr_at`'s rule) to 1. ValueError as `attacks`, for an attack that these networks do not allow, or too few images.
    """
    name, _, number = attack.rpartition("_")
    counts = (int(number),) if name == "rmia" and number.isdigit() else ()
    group = canaries if of_canaries else ~canaries
    pairs = []
    for target in _targets(margins, inside, canaries, counts, seed, None, null=False):
        if attack not in target.scores:
            names = ", ".join(target.scores)
            raise ValueError(f"{attack} is none of the attacks of {len(margins)} networks, which are {names}, rmia_n")
        pairs.append(_parted(target.scores[attack], target.members, group))
    fewest = min(len(others) for _, others in pairs)
    if fewest <= LEAST_EXPECTED or not all(len(members) for members, _ in pairs):
        raise ValueError(f"a ROC takes members and more than {LEAST_EXPECTED} others of each network")
    fpr = torch.logspace(torch.tensor(LEAST_EXPECTED / fewest).log10().item(), 0, points, dtype=torch.float64)
    curves = torch.stack([tprs(members, others, fpr) for members, others in pairs])
    mean, low, high = torch.tensor([t_interval(column) for column in curves.T.tolist()], dtype=torch.float64).T
    return Band(fpr, mean, low.clamp(0, 1), high.clamp(0, 1))


def _targets(
    margins: torch.Tensor,
    inside: torch.Tensor,
    canaries: torch.Tensor,
    references: Sequence[int],
    seed: int,
    right: torch.Tensor | None,
    null: bool,
) -> list[_Target]:
    count = len(margins)
    if margins.shape != inside.shape or margins.shape[1:] != canaries.shape:
        raise ValueError(
            f"margins {tuple(margins.shape)} and inside {tuple(inside.shape)} are (K, N), canaries (N,), not "
            f"{tuple(canaries.shape)}"
        )
    if count < 2 + null:
        raise ValueError(f"{count} networks leave no shadow; give at least {2 + null}")
    found = []
    for k in range(count):
        judged = (k + 1) % count if null else k
        others = torch.tensor([i for i in range(count) if i not in (k, judged)])
        order = others[torch.randperm(len(others), generator=generator(seed, "references", k))]
        chosen = {n: order[:n] for n in references if n < count}
        scores = {} if right is None else {"gap": right[k].double()}
        scores |= _scores(margins[k], margins[others], inside[others], canaries)
        population = ~inside[judged] & ~canaries
        if population.any():  # RMIA takes images that the target did not learn
            for n, index in chosen.items():
                scores[f"rmia_{n}"] = rmia(margins[k], margins[index], inside[index], population)
        found.append(_Target(k, inside[judged], scores))
    return found


def _scores(
    target: torch.Tensor, shadows: torch.Tensor, inside: torch.Tensor, canaries: torch.Tensor
) -> dict[str, torch.Tensor]:
    found = {"loss": target.double()}
    ratios = {"lira": lira, "lira_offline": lira_offline} if len(shadows) > 1 else {"lira_offline": lira_offline}
    for name, ratio in ratios.items():
        found[name] = torch.empty(len(target), dtype=torch.float64)
        for group in (canaries, ~canaries):
            found[name][group] = ratio(target[group], shadows[:, group], inside[:, group])
    return found


def _rows(targets: list[_Target], canaries: torch.Tensor) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for target in targets:
        for attack, scores in target.scores.items():
            row = {"target": target.number, "attack": attack, **_figures(scores, target.members, ~canaries, _RATES)}
            among = _figures(scores, target.members, canaries, _CANARY_RATES)
            rows.append(row | {f"canary_{name}": value for name, value in among.items()})
        pair = _parted(target.scores["loss"], target.members, ~canaries)
        tail = tail_share(*pair) if all(map(len, pair)) else None
        rows.append({"target": target.number, "attack": "tail", "tail_tnr": tail})
    return rows


def _parted(scores: torch.Tensor, members: torch.Tensor, group: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return scores[members & group], scores[~members & group]


def _figures(
    scores: torch.Tensor, members: torch.Tensor, group: torch.Tensor, rates: dict[str, float]
) -> dict[str, float | list[float] | None]:
    """AUC and true positive rates among the images of a group, with intervals."""
    pair = _parted(scores, members, group)
    both = all(map(len, pair))
    found: dict[str, Estimate | None] = {"auc": auc(*pair) if both else None}
    found |= {name: tpr_at(*pair, rate) if both else None for name, rate in rates.items()}
    values: dict[str, float | list[float] | None] = {}
    for name, figure in found.items():
        values[name] = None if figure is None else figure.value
        values[f"{name}_interval"] = None if figure is None else [*figure.interval]
    return values
