"""Membership attacks over networks of one recipe: each is the target once, the others are its shadows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ensemble.machine.rng import generator
from ensemble.privacy.membership import tail_share
from ensemble.privacy.rates import auc, tpr_at
from ensemble.privacy.shadows import lira, offline_lira, rmia

Rows = list[dict[str, Any]]


def attacks(
    margins: torch.Tensor,
    inside: torch.Tensor,
    canaries: torch.Tensor,
    references: Sequence[int] = (1, 2, 4, 11),
    seed: int = 0,
) -> Rows:
    """A row a target and attack, of margins (K, N) of K > 2 networks, who learned what (K, N), and canaries (N,) bool.

    Keys: target, attack, auc, tpr_1pct, tpr_0_1pct (None where too few false positives are to be expected), canary_auc
    and canary_tpr_1pct (None without canaries), and of `tail` alone tail_tnr. Canaries count among themselves only.
    Attacks: gap (right or wrong), loss (the margin), tail, lira, lira_offline, and rmia_R with R of the shadows.
    """
    return _rows(margins, inside, inside, canaries, references, seed)


def null_rows(
    margins: torch.Tensor,
    inside: torch.Tensor,
    canaries: torch.Tensor,
    references: Sequence[int] = (1, 2, 4, 11),
    seed: int = 0,
) -> Rows:
    """The same with the memberships of the next network for those of the target: nothing is to be found.

    That network is none of the shadows, whose memberships would be known.
    """
    return _rows(margins, inside, inside.roll(-1, 0), canaries, references, seed, apart=1)


def _rows(
    margins: torch.Tensor,
    inside: torch.Tensor,
    asked: torch.Tensor,
    canaries: torch.Tensor,
    references: Sequence[int],
    seed: int,
    apart: int = 0,
) -> Rows:
    count, rows = len(margins), []
    for k in range(count):
        left_out = {(k + i) % count for i in range(apart + 1)}
        others = torch.tensor([i for i in range(count) if i not in left_out])
        for name, score in _scores(margins, inside, k, others, references, seed):
            rows.append({"target": k, "attack": name, **_figures(score, asked[k], canaries, name)})
    return rows


def _scores(
    margins: torch.Tensor, inside: torch.Tensor, k: int, others: torch.Tensor, references: Sequence[int], seed: int
) -> Iterator[tuple[str, torch.Tensor]]:
    target = margins[k]
    yield "gap", (target > 0).double()
    yield "loss", target
    yield "tail", target
    if len(others) < 2:
        return
    yield "lira", lira(target, margins[others], inside[others])
    yield "lira_offline", offline_lira(target, margins[others], inside[others])
    order = others[torch.randperm(len(others), generator=generator(seed, "references", k))]
    for size in references:
        if size <= len(order):
            chosen = order[:size]
            yield f"rmia_{size}", rmia(target, margins[chosen], inside[chosen], ~inside[k])


def _figures(score: torch.Tensor, inside: torch.Tensor, canaries: torch.Tensor, name: str) -> dict[str, Any]:
    a, b = score[inside & ~canaries], score[~inside & ~canaries]
    if name == "tail":
        return {"tail_tnr": tail_share(a, b)}
    found: dict[str, Any] = {"auc": auc(a, b).value}
    for key, rate in (("tpr_1pct", 0.01), ("tpr_0_1pct", 0.001)):
        read = tpr_at(a, b, rate)
        found[key] = None if read is None else read.value
    a, b = score[inside & canaries], score[~inside & canaries]
    both = len(a) > 0 and len(b) > 0
    read = tpr_at(a, b, 0.01) if both else None
    return found | {"canary_auc": auc(a, b).value if both else None, "canary_tpr_1pct": read.value if read else None}
