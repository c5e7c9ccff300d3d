"""Membership by networks of the same recipe: likelihood ratios (LiRA) and relative ratios (RMIA)."""

from __future__ import annotations

import torch

from ensemble.privacy.rates import twice_below


def lira(target: torch.Tensor, shadows: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """(N,): log N(target; mu_in, s_in) - log N(target; mu_out, s_out) for margins (N,) and (K, N) of K networks.

    `inside` (K, N) says which images each network learned. mu are means of an image's own networks, s one deviation for
    all images each (fixed variance, which few networks need). Where an image was inside none, or in all, the missing
    mean is what the others have it at, moved by how far in and out are apart on average.

    Source: Carlini et al. (2022), "Membership inference attacks from first principles". ValueError for K < 2.
    """
    if len(shadows) < 2:
        raise ValueError("LiRA needs at least two networks")
    values, within = shadows.double(), inside.double()
    mu_in, mu_out = _means(values, within)
    s_in = _deviation((values - mu_in) * within, within.sum(0))
    s_out = _deviation((values - mu_out) * (1 - within), (1 - within).sum(0))
    x = target.double()
    return s_out.log() - s_in.log() + ((x - mu_out) / s_out).square() / 2 - ((x - mu_in) / s_in).square() / 2


def lira_offline(target: torch.Tensor, shadows: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """(N,): log Phi((target - mu_out) / s_out): how often a network that did not learn x has a smaller margin.

    Arguments and means are `lira`'s; one network is enough, whose deviation then is 1. Where it is inside all networks,
    mu_out is what the others have it at.

    Source: Carlini et al. (2022), the offline attack, with one deviation for all images.
    """
    values, within = shadows.double(), inside.double()
    mu_out = _means(values, within)[1]
    s_out = _deviation((values - mu_out) * (1 - within), (1 - within).sum(0))
    return torch.special.log_ndtr((target.double() - mu_out) / s_out)


def _means(values: torch.Tensor, within: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(N,) twice, of networks inside and out; what an image lacks is the other, moved as images have it on average."""
    n_in, n_out = within.sum(0), (1 - within).sum(0)
    mu_in = (values * within).sum(0) / n_in.clamp_min(1)
    mu_out = (values * (1 - within)).sum(0) / n_out.clamp_min(1)
    both = (n_in > 0) & (n_out > 0)
    gap = (mu_in - mu_out)[both].mean() if both.any() else values.new_zeros(())
    return torch.where(n_in > 0, mu_in, mu_out + gap), torch.where(n_out > 0, mu_out, mu_in - gap)


def _deviation(residuals: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Of all images together, without the bias of each one's own mean."""
    freedom = (counts - 1).clamp_min(0).sum()
    if not freedom:
        return residuals.new_ones(())
    return (residuals[:, counts > 1].square().sum() / freedom).sqrt().clamp_min(1e-6)


def rmia(target: torch.Tensor, shadows: torch.Tensor, inside: torch.Tensor, population: torch.Tensor) -> torch.Tensor:
    """(N,): the share of population images z that x is likelier than: P(x | target) / P(x) >= P(z | target) / P(z).

    `target` (N,) and `shadows` (K, N) are margins, whose sigmoid is the label's probability; P(x) is the mean over the
    networks that did not learn x, moved half way to 1, as members of as many others would have it: (1 + P_out) / 2
    (the offline form with a = 0; equal ones count half); where all learned x, P_out is their mean, moved as `lira`
    moves it. `population` (N,) says which of the images are z, which the target did not learn.

    Source: Zarifzadeh et al. (2024), "Low-cost high-power membership inference attacks". ValueError where no image is.
    """
    if not population.any():
        raise ValueError("RMIA needs population images, which the target did not learn")
    p_out = _means(shadows.double().sigmoid(), inside.double())[1].clamp(0, 1)
    ratio = target.double().sigmoid() / ((1 + p_out) / 2)
    z = ratio[population].sort().values
    # ties count half: else an image of the population, which meets itself there, would be ahead of its equals
    return twice_below(ratio, z) / (2 * len(z))
