"""Inception Score."""

from __future__ import annotations

import numpy as np

from ensemble.evaluation._arrays import Features, as_float64

_SUM_TOLERANCE = 1e-3


def inception_score(probabilities: Features, splits: int = 1) -> tuple[float, float]:
    """Mean and standard deviation over `splits` of exp(mean_x KL(p(y|x) ‖ p(y))), each in [1, classes].

    `probabilities` (N, K): softmax outputs of a classifier, one row per image; p(y) is their mean within a
    split. Splits are consecutive parts in the given order, as equal as can be: images sorted by class have
    to be shuffled first. The standard deviation is the population's, 0 for one split.

    Raises ValueError for rows that are no distributions or fewer rows than splits.

    Source: Salimans et al. (2016), "Improved techniques for training GANs", section 4, with ten splits;
    one split by default, for Barratt and Sharma (2018), "A note on the Inception Score", show that
    splitting biases it.
    """
    p = as_float64(probabilities, "probabilities")
    if (p < 0).any() or (np.abs(p.sum(1) - 1) > _SUM_TOLERANCE).any():
        raise ValueError("probabilities: rows must be non-negative and sum to 1; apply a softmax to logits")
    if not 1 <= splits <= len(p):
        raise ValueError(f"splits must be in 1..{len(p)}, the number of images; got {splits}")
    scores = [_score(part) for part in np.array_split(p, splits)]
    return float(np.mean(scores)), float(np.std(scores))


def _score(p: np.ndarray) -> float:
    ratio = np.divide(p, p.mean(0), out=np.ones_like(p), where=p > np.finfo(p.dtype).tiny)  # 0 log 0 = 0
    return float(np.exp((p * np.log(ratio)).sum(1).mean()))
