"""Membership by networks of the same recipe: likelihood ratios (LiRA) and relative ratios (RMIA)."""

from __future__ import annotations

import torch


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
    n_in, n_out = within.sum(0), (1 - within).sum(0)
    mu_in = (values * within).sum(0) / n_in.clamp_min(1)
    mu_out = (values * (1 - within)).sum(0) / n_out.clamp_min(1)
    both = (n_in > 0) & (n_out > 0)
    gap = (mu_in - mu_out)[both].mean() if both.any() else values.new_zeros(())
    mu_in, mu_out = torch.where(n_in > 0, mu_in, mu_out + gap), torch.where(n_out > 0, mu_out, mu_in - gap)
    s_in = _deviation((values - mu_in) * within, n_in)
    s_out = _deviation((values - mu_out) * (1 - within), n_out)
    x = target.double()
    return s_out.log() - s_in.log() + ((x - mu_out) / s_out).square() / 2 - ((x - mu_in) / s_in).square() / 2


def offline_lira(target: torch.Tensor, shadows: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """(N,): (target - mu_out) / s_out, whose normal distribution function is the chance that a network which did not
    learn the image would believe less in its label (Carlini et al. 2022, equation 4, with one deviation for all).

    Only shadows that were not trained on the image count; where all were, the mean over images stands in. Arguments as
    of `lira`. ValueError for K < 2.
    """
    if len(shadows) < 2:
        raise ValueError("LiRA needs at least two networks")
    values, outside = shadows.double(), 1 - inside.double()
    count = outside.sum(0)
    mu = (values * outside).sum(0) / count.clamp_min(1)
    mu = torch.where(count > 0, mu, mu[count > 0].mean())
    return (target.double() - mu) / _deviation((values - mu) * outside, count)


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
    (the offline form with a = 0). `population` (N,) says which of the images are z, which the target did not learn.

    Source: Zarifzadeh et al. (2024), "Low-cost high-power membership inference attacks". ValueError where no image is.
    """
    if not population.any():
        raise ValueError("RMIA needs population images, which the target did not learn")
    outside = 1 - inside.double()
    p_out = (shadows.double().sigmoid() * outside).sum(0) / outside.sum(0).clamp_min(1)
    ratio = target.double().sigmoid() / ((1 + p_out) / 2)
    z = ratio[population].sort().values
    return torch.searchsorted(z, ratio, right=True).double() / len(z)
