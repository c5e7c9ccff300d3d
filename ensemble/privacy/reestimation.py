"""Which way of preparing images explains a network's statistics: they are estimated again under each, and compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from ensemble.evaluation.estimate import Z95, Estimate
from ensemble.machine.rng import generator
from ensemble.privacy.moments import Moments

_PLANTS = 10
_LONGEST = 400
"""Batches in a planted running average: what a momentum of 0.01 remembers."""
_SPLITS = 6
_QUANTILE = 0.99
_DEAD = 1e-3


def distances(stored: Moments, found: Moments) -> torch.Tensor:
    """(S, L): how far each of S stored statistics is from the average of `found`, in each layer.

    d^2 = mean over channels of (m_s - m)^2 / v + log(v_s / v)^2 / 2, twice the Kullback-Leibler divergence of two
    normal distributions to second order. Channels of less than a thousandth of the layer's mean variance count with
    that.
    """
    about = found.average()
    least = _spread(about, _DEAD * about.of_layers(about.var))
    v, v_stored = torch.maximum(about.var, least), torch.maximum(stored.var, least)
    each = (stored.mean - about.mean).square() / v + (v_stored / v).log().square() / 2
    return stored.of_layers(each).sqrt()


def floors(found: Moments) -> torch.Tensor:
    """(L,): the distance that is expected where the candidate is true, of sampling alone.

    A running average of momentum a holds (2 - a) / a batches' worth, the estimate B: with s^2 the variance between
    batches, f^2 = mean over channels of (s_m^2 / v + s_log v^2 / 2) (a / (2 - a) + 1 / B).
    """
    about = found.average()
    least = _spread(about, _DEAD * about.of_layers(about.var))
    v = torch.maximum(about.var, least)
    each = found.mean.var(0) / v[0] + torch.maximum(found.var, least).log().var(0) / 2
    return (found.of_layers(each) * (found.momentum / (2 - found.momentum) + 1 / len(found))).sqrt()


def _spread(moments: Moments, per_layer: torch.Tensor) -> torch.Tensor:
    """(B, C): a layer's value for each of its channels."""
    return per_layer.repeat_interleave(torch.tensor([n for _, n in moments.layers]), dim=-1)


def early(layers: int) -> int:
    """How many of so many layers are read: the first half. Training itself moves the deeper ones as mixing would: it
    makes them surer of the images that they learned than of others."""
    return -(-layers // 2)


def scores(distance: torch.Tensor, floor: torch.Tensor) -> torch.Tensor:
    """(S,): the mean over early layers of log(f + d^2 / (9 f)), of (S, L): a Cauchy density's, thrice the floor wide.

    Under a logarithm a layer that no candidate explains does not drown those that tell candidates apart.
    """
    first = early(distance.shape[-1])
    f = floor[:first].clamp_min(1e-6)
    return (f + distance[..., :first].square() / (9 * f)).log().mean(-1)


def planted(found: Moments, count: int, seed: int) -> Moments:
    """What a network that learned from such batches would store: running averages over batches, drawn again."""
    rng = generator(seed, "plant")
    steps = min(_LONGEST, int(4 / max(found.momentum, 0.01)))
    drawn = torch.randint(len(found), (count, steps), generator=rng)
    weight = (1 - found.momentum) ** torch.arange(steps, dtype=torch.float64)
    weight = weight / weight.sum()
    mean, var = (torch.stack([weight @ part[index] for index in drawn]) for part in (found.mean, found.var))
    return replace(found, mean=mean, var=var)


def _further(made: Moments, about: Moments, times: float) -> Moments:
    """`made` so many times as far from `about`, B = 1, as it is; the variance by its logarithm."""
    ratio = made.var / about.var.clamp_min(1e-300)
    return replace(made, mean=about.mean + times * (made.mean - about.mean), var=about.var * ratio**times)


@dataclass(frozen=True)
class Explained:
    """What was made of stored statistics."""

    names: tuple[str, ...]
    """Candidates, the best first."""
    score: dict[str, float]
    fit: dict[str, float]
    """The median over early layers of distance / floor: about 1 where the candidate is true."""
    alike: tuple[str, ...]
    """Candidates whose planted statistics would be as far behind the best one; the best among them."""
    explained: bool
    """Whether the best one's fit is below UNEXPLAINED."""
    wider: float = 1.0
    """How many times further than by sampling alone the planted ones were put: the best one's fit, from 1 to
    UNEXPLAINED. Training with smaller batches, or a last epoch unlike the others, leaves statistics that are."""

    @property
    def best(self) -> str:
        return self.names[0]


UNEXPLAINED = 2.5
"""A fit above it says that what was done is none of the candidates, or that the images are of another kind."""


def explain(stored: Moments, found: Mapping[str, Moments], seed: int = 0) -> Explained:
    """Which candidates explain the stored statistics, B = 1, and which cannot be told from the best.

    For each candidate, statistics are planted from half of its batches and judged by the other half of all; it is
    `alike` where the stored statistics are no further behind the best than 99 % of these were. Where even the best one
    does not fit as sampling alone lets expect, the planted ones are put as many times further (the scale factor by
    which means of measurements that disagree are given wider errors: Birge 1932).
    """
    floor = {name: floors(each) for name, each in found.items()}
    measured = {name: distances(stored, each)[0] for name, each in found.items()}
    score = {name: float(scores(d, floor[name])) for name, d in measured.items()}
    fit = {name: float((d / floor[name])[: early(len(d))].median()) for name, d in measured.items()}
    names = tuple(sorted(score, key=score.__getitem__))
    behind = {name: value - score[names[0]] for name, value in score.items()}
    wider = min(max(fit[names[0]], 1.0), UNEXPLAINED)
    expected = {name: _behind(name, found, seed, wider) for name in found}
    alike = tuple(n for n in names if n == names[0] or behind[n] <= float(expected[n].quantile(_QUANTILE)))
    return Explained(names, score, fit, alike, fit[names[0]] < UNEXPLAINED, wider)


def _halves(count: int, seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Batches' numbers in two halves, in several ways: for planting, and for judging."""
    orders = [torch.randperm(count, generator=generator(seed, "halves", k)) for k in range(_SPLITS)]
    return [(order[: count // 2], order[count // 2 :]) for order in orders]


def _behind(name: str, found: Mapping[str, Moments], seed: int, wider: float) -> torch.Tensor:
    """(P,): how far behind the best the candidate `name` is where it is true."""
    behind = []
    for k, (one, other) in enumerate(_halves(len(found[name]), seed)):
        rest = {key: each[other] for key, each in found.items()}
        made = _further(planted(found[name][one], _PLANTS, seed + k), rest[name].average(), wider)
        each_score = {key: scores(distances(made, each), floors(each)) for key, each in rest.items()}
        behind.append(each_score[name] - torch.stack([*each_score.values()]).min(0).values)
    return torch.cat(behind)


def recovered(
    found: Mapping[str, Moments], truths: Sequence[str], seed: int = 0, wider: float = 1.0
) -> dict[str, float]:
    """For each of these candidates, the share of planted statistics of which it came out best: the positive control."""
    return {name: float((_behind(name, found, seed, wider) == 0).double().mean()) for name in truths}


def share(stored: Moments, plain: Moments, mixed: Moments, seed: int = 0, wider: float = 1.0) -> Estimate:
    """The share p of batches that were mixed, where mixing is of whole batches, from the early layers.

    Averages over batches are then linear in p: stored = (1 - p) plain + p mixed. Each layer l gives a least-squares
    p_l with a standard error of at most f_l / D_l (D: the distance between plain and mixed), and layers are combined
    as studies are (DerSimonian and Laird 1986): by 1 / (f_l^2 / D_l^2 + t^2), where t is how much layers differ beyond
    their errors. The interval has the half-width 1.96 sqrt(s^2 + t^2 / L'), s the root mean square of the same estimate
    of planted unmixed statistics, over splits of the reference images, L' the effective number of layers. A share of
    more than the interval's width would have excluded 0. `wider` is that of `Explained`.
    """
    value, weight, between = _combined(stored, plain, mixed)
    null = unmixed(plain, mixed, seed, wider)
    layers = weight.sum(1).square() / weight.square().sum(1)
    half = Z95 * float((null.square().mean() + between[0].square() / layers[0]).sqrt())
    return Estimate(float(value[0]), float(value[0]) - half, float(value[0]) + half)


def unmixed(plain: Moments, mixed: Moments, seed: int = 0, wider: float = 1.0) -> torch.Tensor:
    """(P,): shares that are found where nothing was mixed: the null."""
    return _replanted(plain, plain, mixed, seed, wider)


def all_mixed(plain: Moments, mixed: Moments, seed: int = 0, wider: float = 1.0) -> torch.Tensor:
    """(P,): shares that are found where all was mixed: the positive control."""
    return _replanted(mixed, plain, mixed, seed, wider)


def _replanted(truth: Moments, plain: Moments, mixed: Moments, seed: int, wider: float) -> torch.Tensor:
    found = []
    for k, (one, other) in enumerate(_halves(len(truth), seed)):
        made = _further(planted(truth[one], _PLANTS, seed + k), truth[other].average(), wider)
        found.append(_combined(made, plain[other], mixed[other])[0])
    return torch.cat(found)


def _combined(stored: Moments, plain: Moments, mixed: Moments) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of S stored statistics: shares (S,), weights (S, L) of layers, and how much these differ (S,)."""
    p0, p1 = plain.average(), mixed.average()
    v = torch.maximum(p0.var, _spread(p0, _DEAD * p0.of_layers(p0.var)))

    def products(a: Moments, b: Moments) -> torch.Tensor:
        means = (a.mean - p0.mean) * (b.mean - p0.mean) / v
        return plain.of_layers(means + (a.var - p0.var) * (b.var - p0.var) / v.square() / 2)

    first = early(len(plain.layers))
    length = products(p1, p1)[:, :first].clamp_min(1e-12)
    each = products(stored, p1)[:, :first] / length
    error = (floors(plain)[:first].square() / length).expand_as(each)
    w = 1 / error
    mean = (w * each).sum(1, keepdim=True) / w.sum(1, keepdim=True)
    q = (w * (each - mean).square()).sum(1)
    scale = (w.sum(1) - w.square().sum(1) / w.sum(1)).clamp_min(1e-12)
    between = ((q - (first - 1)) / scale).clamp_min(0)
    w = 1 / (error + between[:, None])
    return (w * each).sum(1) / w.sum(1), w, between.sqrt()
