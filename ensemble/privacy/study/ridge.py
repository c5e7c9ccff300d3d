"""How well a ridge classifier tells networks of one training from those of another that it has not seen."""

from __future__ import annotations

from itertools import combinations_with_replacement

import torch

from ensemble.machine.rng import generator

_PENALTY = 1.0
_TIE = 1e-9


def leave_pair_out(features: torch.Tensor, positive: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
    """(P, Q): 1 where a classifier that saw neither scores positive i above negative j, 0.5 for ties, else 0.

    Of T networks with `features` (T, F), labels `positive` (T,) bool and `seeds` (T,). Each pair's classifier is fitted
    to the networks of all other seeds: features standardised by these, y = 1 or -1, w = X' (X X' + F I)^-1 y (ridge
    regression in its dual form, with the penalty 1 for every feature). A feature that is constant counts as 0.

    Source: Airola et al. (2009), "A comparison of AUC estimators in small-sample studies": pooled leave-one-out scores
    are biased below 0.5 where there is nothing to find, pairs are not. Departure: whole seeds are left out.

    Raises ValueError for features that are not finite, a missing label, or a pair that leaves no network to learn from.
    """
    _check(features, positive)
    return _wins(features, positive[None], seeds)[0][positive][:, ~positive]


def leave_pair_out_auroc(features: torch.Tensor, positive: torch.Tensor, seeds: torch.Tensor) -> float:
    """The mean of `leave_pair_out`: the share of pairs in the right order."""
    return float(leave_pair_out(features, positive, seeds).mean())


def ridge_p(
    features: torch.Tensor, positive: torch.Tensor, seeds: torch.Tensor, draws: int = 999, seed: int = 0
) -> float:
    """(b + 1) / (m + 1), where b of m draws have an AUROC of at least the observed one.

    A draw swaps the labels of each seed's two networks with p = 0.5, fits every classifier anew and scores its pairs.
    Swapping all labels changes nothing, so that no p of S seeds means less than 2 / 2^S.

    Raises ValueError as `leave_pair_out` does, and where a seed has other than one positive and one negative network.
    """
    _check(features, positive)
    _, group = seeds.unique(return_inverse=True)
    signs = torch.where(positive, 1, -1)
    counts = group.bincount()
    if (counts != 2).any() or torch.zeros_like(counts).index_add(0, group, signs).any():
        raise ValueError("labels are swapped within seeds; every seed needs one positive and one negative network")
    swap = torch.rand(draws, len(counts), generator=generator(seed, "labels")) < 0.5
    labels = torch.cat([positive[None], positive ^ swap[:, group]])
    found = _aurocs(_wins(features, labels, seeds), labels)
    return (int((found[1:] >= found[0] - _TIE).sum()) + 1) / (draws + 1)


def _check(features: torch.Tensor, positive: torch.Tensor) -> None:
    if not torch.isfinite(features).all():
        raise ValueError("features that are not all finite; leave out what some networks lack")
    if positive.all() or not positive.any():
        raise ValueError("an AUROC needs positive and negative networks; one of the labels is missing")


def _aurocs(wins: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """(D,), of (D, T, T) and (D, T)."""
    one, other = labels.double(), (~labels).double()
    return torch.einsum("di,dij,dj->d", one, wins, other) / (one.sum(1) * other.sum(1))


def _wins(features: torch.Tensor, labels: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
    """(D, T, T): whether i is above j for D labellings (D, T), when what shares a seed with either is left out.

    A fit's scores are linear in the labels, so that all labellings share one inverse for each pair of seeds.
    """
    x = features.double()
    y = torch.where(labels, 1.0, -1.0).double()
    wins = torch.full((len(y), len(x), len(x)), 0.5, dtype=torch.float64)
    for a, b in combinations_with_replacement(seeds.unique().tolist(), 2):
        first, second = (seeds == a).nonzero()[:, 0], (seeds == b).nonzero()[:, 0]
        rest = ((seeds != a) & (seeds != b)).nonzero()[:, 0]
        if not len(rest):
            raise ValueError("a pair of seeds leaves no network to learn from; there must be three seeds at least")
        scores = y[:, rest] @ _map(x[rest], x[torch.cat([first, second])]).T
        above = _above(scores[:, : len(first), None] - scores[:, None, len(first) :])
        wins[:, first[:, None], second] = above
        wins[:, second[:, None], first] = 1 - above.transpose(1, 2)
    return wins


def _map(known: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """(M, R): what makes scores of new rows (M, F) of the labels of known ones (R, F)."""
    mean, deviation = known.mean(0), known.std(0, correction=0)
    varies = deviation > 1e-12 * (mean.abs() + 1e-12)
    scale = torch.where(varies, 1 / deviation, 0.0)
    a, b = (known - mean) * scale, (new - mean) * scale
    gram = a @ a.T + _PENALTY * a.shape[1] * torch.eye(len(a), dtype=a.dtype)
    return torch.linalg.solve(gram, a @ b.T).T


def _above(difference: torch.Tensor) -> torch.Tensor:
    return torch.where(difference.abs() < _TIE, 0.5, (difference > 0).double())
