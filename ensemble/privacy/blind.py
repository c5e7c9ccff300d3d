"""Whether two sets of images come from one distribution, asked of a classifier that never saw the network."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ensemble.evaluation.estimate import Z95, Estimate
from ensemble.machine.rng import generator
from ensemble.privacy.rates import auc

_FOLDS = 5
_SHUFFLES = 30
_PENALTY = 0.1


def blind_baseline(members: torch.Tensor, others: torch.Tensor, seed: int = 0) -> Estimate:
    """The AUC of ridge regression on pixels, in five folds: what membership attacks find without the network.

    Features are the image at 8 x 8, its channels' deviations and how much neighbouring pixels differ, standardised;
    images uint8 (N, 3, H, W). Above one half, members and non-members differ in something else than membership. Folds
    share images, so the interval is 1.96 deviations of the same with memberships drawn anew, where that is wider.
    """
    x = torch.cat([_features(members), _features(others)])
    y = torch.cat([torch.ones(len(members)), -torch.ones(len(others))]).double()
    rng = generator(seed, "blind")
    found = _in_folds(x, y, rng)
    anew = torch.tensor([_in_folds(x, y[torch.randperm(len(y), generator=rng)], rng).value for _ in range(_SHUFFLES)])
    half = Z95 * float((anew.double() - 0.5).square().mean().sqrt())
    return Estimate(found.value, min(found.low, found.value - half), max(found.high, found.value + half))


def _in_folds(x: torch.Tensor, y: torch.Tensor, rng: torch.Generator) -> Estimate:
    scores = torch.empty(len(y), dtype=torch.float64)
    for fold in torch.randperm(len(y), generator=rng).tensor_split(_FOLDS):
        rest = torch.ones(len(y), dtype=torch.bool)
        rest[fold] = False
        scores[fold] = ridge(x[rest], y[rest], x[fold])
    return auc(scores[y > 0], scores[y < 0])


def ridge(x: torch.Tensor, y: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """What ridge regression of y (N,) on standardised x (N, D) says of `new` (M, D); the penalty is N / 10."""
    mean, std = x.mean(0), x.std(0) + 1e-9
    a, b = (x - mean) / std, (new - mean) / std
    gram = a.T @ a + _PENALTY * len(a) * torch.eye(a.shape[1], dtype=a.dtype)
    return y.mean() + b @ torch.linalg.solve(gram, a.T @ (y - y.mean()))


def _features(images: torch.Tensor) -> torch.Tensor:
    rows = []
    for part in images.split(1000):
        x = part.double() / 255
        small = F.adaptive_avg_pool2d(x, 8).flatten(1)
        spread = x.flatten(2).std(2)
        edges = torch.stack([x.diff(dim=d).abs().mean((1, 2, 3)) for d in (2, 3)], 1)
        rows.append(torch.cat([small, spread, edges], 1))
    return torch.cat(rows)
