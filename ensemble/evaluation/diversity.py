"""How different the images of one class are."""

from __future__ import annotations

import numpy as np
import torch

from ensemble.evaluation._arrays import Features, as_float64


def diversity(features: Features, labels: np.ndarray | torch.Tensor) -> float:
    """Mean of 1 - cos(x_i, x_j) over all pairs i < j that share a class; 0 where images repeat, at most 2.

    `features` (N, D), `labels` (N,). Every pair weighs the same, so a class of n images weighs n(n-1)/2.

    Raises ValueError for other shapes, features that are zero or not finite, or no class with two images.
    """
    x = as_float64(features, "features")
    classes = np.asarray(labels.detach().cpu() if isinstance(labels, torch.Tensor) else labels)
    if classes.shape != x.shape[:1]:
        raise ValueError(f"{len(x)} features need as many labels, got shape {classes.shape}")
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    if not norms.all():
        raise ValueError("features: a row is zero, its cosine is undefined")
    unit = x / norms
    cosines, pairs = 0.0, 0
    for label in np.unique(classes):
        group = unit[classes == label]
        total = group.sum(0)
        cosines += (total @ total - len(group)) / 2  # |Σu|² = n + 2 Σ_{i<j} u_i·u_j
        pairs += len(group) * (len(group) - 1) // 2
    if not pairs:
        raise ValueError("diversity needs a class with at least two images")
    return float(max(1 - cosines / pairs, 0.0))  # repeated images can round below it
