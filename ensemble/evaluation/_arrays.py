"""Feature sets as the measures take them, and exact distances between them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
import torch

Features: TypeAlias = "np.ndarray | torch.Tensor"

_BLOCK = 2**24  # distances held at once: 128 MiB


def as_float64(features: Features, name: str, at_least: int = 1) -> np.ndarray:
    """`features` as a float64 array (N, D). Raises ValueError for other shapes, N < at_least, NaN and inf."""
    if isinstance(features, torch.Tensor):
        features = features.detach().cpu().double().numpy()
    array = np.asarray(features, dtype=np.float64)
    if array.ndim != 2 or array.shape[0] < at_least or array.shape[1] == 0:
        raise ValueError(f"{name}: expected shape (N, D) with N >= {at_least}, got {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: not all features are finite")
    return array


def same_width(**sets: np.ndarray) -> None:
    """Raises ValueError unless all feature sets have one D."""
    if len({features.shape[1] for features in sets.values()}) > 1:
        widths = ", ".join(f"{name} {features.shape[1]}" for name, features in sets.items())
        raise ValueError(f"feature sets must come from one network; their widths differ: {widths}")


def distance_blocks(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Euclidean distances |a_i - b_j| as (rows of `a`, block of shape (rows, len(b))), block after block.

    From differences, not from |a|² + |b|² - 2ab: the distance of equal points is exactly 0.
    """
    rows = max(1, _BLOCK // len(b))
    other = torch.from_numpy(b)
    for start in range(0, len(a), rows):
        part = slice(start, min(start + rows, len(a)))
        block = torch.cdist(torch.from_numpy(a[part]), other, compute_mode="donot_use_mm_for_euclid_dist")
        yield part, block.numpy()


def neighbour_radii(features: np.ndarray, k: int, name: str) -> np.ndarray:
    """Distance (N,) of every point to its k-th nearest neighbour in the same set, itself not counted."""
    if not 1 <= k < len(features):
        raise ValueError(f"{name}: {len(features)} images have no {k}-th neighbours; give at least {max(k, 1) + 1}")
    radii = np.empty(len(features))
    for rows, block in distance_blocks(features, features):
        block[np.arange(len(block)), np.arange(rows.start, rows.stop)] = np.inf
        radii[rows] = np.partition(block, k - 1, axis=1)[:, k - 1]
    return radii
