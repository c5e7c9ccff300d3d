"""Fréchet distance between feature sets."""

from __future__ import annotations

import numpy as np

from ensemble.evaluation._arrays import Features, as_float64, same_width


def frechet_distance(a: Features, b: Features) -> float:
    """Fréchet distance between the Gaussian fits of two feature sets, (N, D) and (M, D); 0 for equal fits.

    |μ_a - μ_b|² + Tr(Σ_a + Σ_b - 2 (Σ_a Σ_b)^½), the covariances with N - 1 and M - 1. This is the squared
    Wasserstein-2 distance, the number quoted as FID where the features are Inception-v3's.

    The trace of the root comes without a matrix root: with Σ_a = R_aᵀ R_a from a QR decomposition of the
    centred features, it is the sum of the singular values of R_a R_bᵀ. That is exact for singular
    covariances too, where rooting rounded eigenvalues is not. All in float64. With fewer images the
    distance is biased upwards; compare only equal N.

    Raises ValueError for other shapes, widths that differ, fewer than two rows, or values not finite.

    Source: Heusel et al. (2017), "GANs trained by a two time-scale update rule converge to a local Nash
    equilibrium", equation 6.
    """
    a, b = as_float64(a, "a", at_least=2), as_float64(b, "b", at_least=2)
    same_width(a=a, b=b)
    root_a, root_b = _covariance_root(a), _covariance_root(b)
    cross = np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum()
    shift = a.mean(0) - b.mean(0)
    spread = (root_a**2).sum() + (root_b**2).sum() - 2 * cross
    return float(shift @ shift + max(spread, 0.0))


def _covariance_root(x: np.ndarray) -> np.ndarray:
    return np.linalg.qr(x - x.mean(0), mode="r") / np.sqrt(len(x) - 1)
