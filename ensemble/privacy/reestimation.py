"""Which way of preparing images explains a network's statistics: they are estimated again under each, and compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ensemble.machine.rng import generator
from ensemble.privacy.moments import Moments

MOMENTUM = 0.1
"""PyTorch's default, of the running average of whose last batches the statistics are taken to be."""
_PLANTS = 40
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


def floors(found: Moments, momentum: float = MOMENTUM) -> torch.Tensor:
    """(L,): the distance that is expected where the candidate is true, of sampling alone.

    A running average of momentum a holds (2 - a) / a batches' worth, the estimate B: with s^2 the variance between
    batches, f^2 = mean over channels of (s_m^2 / v + s_log v^2 / 2) (a / (2 - a) + 1 / B).
    """
    about = found.average()
    least = _spread(about, _DEAD * about.of_layers(about.var))
    v = torch.maximum(about.var, least)
    each = found.mean.var(0) / v[0] + torch.maximum(found.var, least).log().var(0) / 2
    return (found.of_layers(each) * (momentum / (2 - momentum) + 1 / len(found))).sqrt()


def _spread(moments: Moments, per_layer: torch.Tensor) -> torch.Tensor:
    """(B, C): a layer's value for each of its channels."""
    return per_layer.repeat_interleave(torch.tensor([n for _, n in moments.layers]), dim=-1)


def scores(distance: torch.Tensor, floor: torch.Tensor) -> torch.Tensor:
    """(...,): the mean over layers of log(f + d^2 / (9 f)): a Cauchy density's, of three times the floor's width.

    Deep layers are further from images that were not trained on, whatever was done to them; under a logarithm a layer
    that no candidate explains does not drown those that tell candidates apart.
    """
    f = floor.clamp_min(1e-6)
    return (f + distance.square() / (9 * f)).log().mean(-1)


def planted(found: Moments, count: int, seed: int, momentum: float = MOMENTUM) -> Moments:
    """What a network that learned from such batches would store: running averages over batches, drawn again."""
    rng = generator(seed, "plant")
    steps = int(4 / momentum)
    drawn = torch.randint(len(found), (count, steps), generator=rng)
    weight = momentum * (1 - momentum) ** torch.arange(steps, dtype=torch.float64)
    weight = weight / weight.sum()
    mean, var = (torch.einsum("s,nsc->nc", weight, part[drawn]) for part in (found.mean, found.var))
    return Moments(found.layers, mean, var)


@dataclass(frozen=True)
class Explained:
    """What was made of stored statistics."""

    names: tuple[str, ...]
    """Candidates, the best first."""
    score: dict[str, float]
    fit: dict[str, float]
    """The median over layers of distance / floor: about 1 where the candidate is true and images are like the trained."""
    alike: tuple[str, ...]
    """Candidates whose planted statistics would be as far behind the best one; the best among them."""
    explained: bool
    """Whether the best one's fit is below UNEXPLAINED."""

    @property
    def best(self) -> str:
        return self.names[0]


UNEXPLAINED = 3.0
"""A fit above it says that what was done is none of the candidates, or that the images are of another kind."""


def explain(stored: Moments, found: Mapping[str, Moments], seed: int = 0) -> Explained:
    """Which candidates explain the stored statistics, B = 1, and which cannot be told from the best.

    For each candidate, statistics are planted from half of its batches and judged by the other half of all; it is
    `alike` where the stored statistics are no further behind the best than 99 % of these were.
    """
    floor = {name: floors(each) for name, each in found.items()}
    measured = {name: distances(stored, each)[0] for name, each in found.items()}
    score = {name: float(scores(d, floor[name])) for name, d in measured.items()}
    fit = {name: float((d / floor[name]).median()) for name, d in measured.items()}
    names = tuple(sorted(score, key=score.__getitem__))
    behind = {name: value - score[names[0]] for name, value in score.items()}
    expected = {name: _behind(name, found, seed) for name in found}
    alike = tuple(n for n in names if n == names[0] or behind[n] <= float(expected[n].quantile(_QUANTILE)))
    return Explained(names, score, fit, alike, fit[names[0]] < UNEXPLAINED)


def _halves(found: Moments) -> tuple[Moments, Moments]:
    return found[::2], found[1::2]


def _behind(name: str, found: Mapping[str, Moments], seed: int) -> torch.Tensor:
    """(P,): how far behind the best the candidate `name` is where it is true."""
    made = planted(_halves(found[name])[0], _PLANTS, seed)
    rest = {other: _halves(each)[1] for other, each in found.items()}
    all_scores = {other: scores(distances(made, each), floors(each)) for other, each in rest.items()}
    return all_scores[name] - torch.stack([*all_scores.values()]).min(0).values


def recovered(found: Mapping[str, Moments], truths: Sequence[str], seed: int = 0) -> dict[str, float]:
    """For each of these candidates, the share of planted statistics of which it came out best: the positive control."""
    return {name: float((_behind(name, found, seed) == 0).double().mean()) for name in truths}


@dataclass(frozen=True)
class Share:
    """An estimated share of batches with its 95 % interval, and above which share a mix would have been seen."""

    value: float
    low: float
    high: float
    seen_above: float


def share(stored: Moments, plain: Moments, mixed: Moments, seed: int = 0) -> Share:
    """The share p of batches that were mixed, where mixing is of whole batches.

    Averages over batches are then linear in p: stored = (1 - p) plain + p mixed. Each layer l gives a least-squares
    p_l, with a standard error of at most f_l / D_l (D: the distance between plain and mixed), and layers are combined as
    studies are (DerSimonian and Laird 1986): by 1 / (f_l^2 / D_l^2 + t^2), where t is how much layers differ beyond
    their errors. So where deep layers, moved by training itself, speak against early ones, the interval is wide. Its
    half-width is 1.96 sqrt(s^2 + t^2 / L'), s the deviation of the same estimate of planted plain statistics, L' the
    effective number of layers. `seen_above` is twice that half: a share of so much would have excluded 0.
    """
    value, weight, between = _combined(stored, plain, mixed)
    a, b = _halves(plain)
    null, _, _ = _combined(planted(a, 4 * _PLANTS, seed), b, _halves(mixed)[1])
    layers = weight.sum(1).square() / weight.square().sum(1)
    half = 1.96 * float((null.var() + between[0].square() / layers[0]).sqrt())
    return Share(float(value[0]), float(value[0]) - half, float(value[0]) + half, 2 * half)


def _combined(stored: Moments, plain: Moments, mixed: Moments) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of S stored statistics: shares (S,), weights (S, L) of layers, and how much these differ (S,)."""
    p0, p1 = plain.average(), mixed.average()
    v = torch.maximum(p0.var, _spread(p0, _DEAD * p0.of_layers(p0.var)))

    def products(a: Moments, b: Moments) -> torch.Tensor:
        means = (a.mean - p0.mean) * (b.mean - p0.mean) / v
        return plain.of_layers(means + (a.var - p0.var) * (b.var - p0.var) / v.square() / 2)

    length = products(p1, p1).clamp_min(1e-12)
    each = products(stored, p1) / length
    error = (floors(plain).square() / length).expand_as(each)
    w = 1 / error
    mean = (w * each).sum(1, keepdim=True) / w.sum(1, keepdim=True)
    q = (w * (each - mean).square()).sum(1)
    free = each.shape[1] - 1
    between = ((q - free) / (w.sum(1) - w.square().sum(1) / w.sum(1)).clamp_min(1e-12)).clamp_min(0)
    w = 1 / (error + between[:, None])
    return (w * each).sum(1) / w.sum(1), w, between.sqrt()
