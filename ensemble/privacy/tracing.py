"""Whether an image is one of those whose mean was released: the tracing statistic of BatchNorm's running statistics."""

from __future__ import annotations

from math import sqrt

import torch
from torch import nn

from ensemble.privacy.moments import Moments, bn_layers
from ensemble.privacy.rates import normal_cdf
from ensemble.training.reading import inputs_of
from models import ModelCard


@torch.no_grad()
def image_moments(net: nn.Module, card: ModelCard, images: torch.Tensor) -> torch.Tensor:
    """(N, 2 C) float64: each image's mean and mean square over positions, of all channels at BatchNorm inputs.

    In eval mode: what is released is asked of the network as it was released. Images uint8 (N, 3, H, W), or floats as
    the network takes them. Of the layers that run, in the order of `bn_layers`.
    """
    net.eval()
    rows: dict[str, list[torch.Tensor]] = {}
    seen: set[str] = set()

    def hook(name: str):  # type: ignore[no-untyped-def]
        def look(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            if name not in seen:
                seen.add(name)
                x = inputs[0].double()
                x = x.flatten(2) if x.ndim > 2 else x[:, :, None]
                rows.setdefault(name, []).append(torch.cat([x.mean(2), x.square().mean(2)], 1).cpu())

        return look

    handles = [layer.register_forward_pre_hook(hook(name)) for name, layer in bn_layers(net).items()]
    try:
        for part in images.split(250):
            seen.clear()
            net(part if part.is_floating_point() else inputs_of(part, card, torch.device("cpu")))
    finally:
        for handle in handles:
            handle.remove()
    parts = [torch.cat(rows[name]) for name in bn_layers(net) if name in rows]
    sizes = [part.shape[1] // 2 for part in parts]
    means = [part[:, :n] for part, n in zip(parts, sizes, strict=True)]
    squares = [part[:, n:] for part, n in zip(parts, sizes, strict=True)]
    return torch.cat([*means, *squares], 1)


def released(moments: Moments) -> torch.Tensor:
    """(2 C,): what `image_moments` averages to over the images of which these are the moments."""
    mean, var = moments.mean[0], moments.var[0]
    return torch.cat([mean, var + mean.square()])


def tracing_scores(images: torch.Tensor, mean: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """(N,): (x - r)' W (m - r) for images x (N, D), a released mean m (D,) and reference images (R, D) of mean r.

    W is the inverse of the reference's covariance in its leading directions: as many as a tenth of R, where all others
    are noise of so few images. Larger where x is one of the images that m is the mean of (Homer et al. 2008;
    Sankararaman et al. 2009; Dwork et al. 2015). Departure: whitened.
    """
    centre, basis = whitening(reference)
    return ((images - centre) @ basis) @ ((mean - centre) @ basis)


def directions(reference: torch.Tensor) -> int:
    """How many directions `tracing_scores` uses."""
    return whitening(reference)[1].shape[1]


def whitening(reference: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean (D,) and (D, d): directions in which the reference images (R, D) have variance 1, uncorrelated."""
    centre = reference.mean(0)
    scale = reference.std(0) + 1e-12
    _, values, vectors = torch.linalg.svd((reference - centre) / scale, full_matrices=False)
    most = max(1, min(len(reference) // 10, reference.shape[1]))
    kept = int((values[:most] > 1e-6 * values[0]).sum())
    return centre, vectors[:kept].T / scale[:, None] * (len(reference) - 1) ** 0.5 / values[:kept]


def expected_auc(d: int, n: int, reference: int | None = None) -> float:
    """Phi(sqrt(d / n) / sqrt(2 (1 + n / R))): the AUC of the statistic in d independent directions, of a mean of n.

    R images are the reference, whose mean is off by 1 / R of a variance in each direction; None: it is known exactly.
    """
    off = n / reference if reference else 0.0
    return normal_cdf(sqrt(d / n) / sqrt(2 * (1 + off)))


def expected_auc_of_lengths(squares: torch.Tensor, n: int, reference: int | None = None) -> float:
    """`expected_auc` of images whose squared whitened distances (N,) from the mean differ more than normal ones' do.

    The mean over pairs i, j of Phi((L_i / n) / sqrt(v (L_i + L_j))), v = 1 / n + 1 / R: an image tells its own share,
    L_i / n, against noise that is as wide as it is long. Less than `expected_auc(mean L, n, R)`: long images tell much,
    where it is plenty already. Taken at 400 quantiles.
    """
    lengths = squares.double().quantile((torch.arange(400, dtype=torch.float64) + 0.5) / 400)
    v = 1 / n + (1 / reference if reference else 0.0)
    own, other = lengths[:, None], lengths[None]
    return float(torch.special.ndtr(own / n / (v * (own + other)).sqrt()).mean())
