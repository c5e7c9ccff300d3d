"""Precision and recall of generated images."""

from __future__ import annotations

import numpy as np

from ensemble.evaluation._arrays import Features, as_float64, distance_blocks, neighbour_radii, same_width


def precision_recall(real: Features, generated: Features, k: int = 3) -> tuple[float, float]:
    """Precision and recall, each in [0, 1], of feature sets (N, D) and (M, D).

    A point lies on a set's manifold when it is no farther from some point of the set than that point's k-th
    neighbour within the set. Precision: the share of generated points on the real manifold (do they look
    real); recall: of real points on the generated manifold (is everything real covered). Both depend on the
    sizes; compare only equal N and M.

    Raises ValueError for other shapes, widths that differ, values not finite, or k not below N and M.

    Source: Kynkäänniemi et al. (2019), "Improved precision and recall metric for assessing generative
    models", equations 1 and 2.
    """
    real, generated = as_float64(real, "real"), as_float64(generated, "generated")
    same_width(real=real, generated=generated)
    real_radii = neighbour_radii(real, k, "real")
    generated_radii = neighbour_radii(generated, k, "generated")
    on_real = _on_manifold(generated, real, real_radii)
    on_generated = _on_manifold(real, generated, generated_radii)
    return float(on_real.mean()), float(on_generated.mean())


def _on_manifold(points: np.ndarray, centres: np.ndarray, radii: np.ndarray) -> np.ndarray:
    return np.concatenate([(block <= radii).any(1) for _, block in distance_blocks(points, centres)])
