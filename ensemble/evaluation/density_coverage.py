"""Density and coverage of generated images."""

from __future__ import annotations

from ensemble.evaluation._arrays import Features, as_float64, distance_blocks, neighbour_radii, same_width


def density_coverage(real: Features, generated: Features, k: int = 5) -> tuple[float, float]:
    """Density (from 0, about 1 for generated points distributed as the real ones) and coverage in [0, 1].

    With B_i the ball around real point i that reaches its k-th real neighbour:
    density = Σ_ij [generated_j in B_i] / kM; coverage = the share of balls that hold a generated point.
    Unlike precision and recall, one outlier with a wide ball changes them little.

    Raises ValueError for other shapes, widths that differ, features that are not finite, or k not below N.

    Source: Naeem et al. (2020), "Reliable fidelity and diversity metrics for generative models", section 3.
    Departure: a point on the sphere belongs to the ball, as in Kynkäänniemi et al. (2019).
    """
    real, generated = as_float64(real, "real"), as_float64(generated, "generated")
    same_width(real=real, generated=generated)
    radii = neighbour_radii(real, k, "real")
    inside = covered = 0
    for rows, block in distance_blocks(real, generated):
        held = block <= radii[rows, None]
        inside += int(held.sum())
        covered += int(held.any(1).sum())
    return inside / (k * len(generated)), covered / len(real)
