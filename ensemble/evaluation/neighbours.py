"""Nearest training and held-out images: do generated images copy the training set?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ensemble.evaluation._arrays import Features, as_float64, distance_blocks, same_width


@dataclass(frozen=True)
class Neighbours:
    """Per image, arrays of shape (N,): the nearest of both sets and how far it is."""

    train_index: np.ndarray
    train_distance: np.ndarray
    test_index: np.ndarray
    test_distance: np.ndarray
    ratio: np.ndarray
    """train_distance / test_distance: below 1, the image is nearer to the training set; 1 for equals."""

    @property
    def closer_to_train(self) -> float:
        """Share of images nearer to the training set; ties count half. About 0.5 without memorisation."""
        return float(((self.ratio < 1) + 0.5 * (self.ratio == 1)).mean())


def nearest_neighbours(features: Features, train: Features, test: Features) -> Neighbours:
    """The nearest row of `train` (T, D) and of the held-out `test` (T, D) to every row of `features` (N, D).

    Euclidean. Both sets must be of one size, and should have the same balance of classes: the nearest of
    more points is nearer by chance. The first of equally near rows counts.

    Raises ValueError for other shapes, widths or sizes that differ, or features that are not finite.
    """
    x, train, test = as_float64(features, "features"), as_float64(train, "train"), as_float64(test, "test")
    same_width(features=x, train=train, test=test)
    if len(train) != len(test):
        raise ValueError(
            f"train has {len(train)} rows, test {len(test)}; draw as many from the larger: "
            "the nearest of more images is nearer by chance"
        )
    train_index, train_distance = _nearest(x, train)
    test_index, test_distance = _nearest(x, test)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(train_distance == test_distance, 1.0, train_distance / test_distance)
    return Neighbours(train_index, train_distance, test_index, test_distance, ratio)


def _nearest(x: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    blocks = [(block.argmin(1), block.min(1)) for _, block in distance_blocks(x, others)]
    return np.concatenate([index for index, _ in blocks]), np.concatenate([near for _, near in blocks])
