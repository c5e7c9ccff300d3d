"""How far batches of real images are from a layer's statistics: the level below which there is nothing to match."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from ensemble.teachers.teacher import Teacher


@torch.no_grad()
def measure_levels(teacher: Teacher, images: Iterable[torch.Tensor]) -> dict[str, tuple[float, float, float, float]]:
    """Four numbers a layer (`BNStatistics.calibrate`), in units of its spread, from parts (n, 3, H, W) of real images.

    With m_i the mean over image i's positions and q_i that of the square, both of x - mu:

        mean of a batch      (1/n) sum m_i,              in expectation at  |E m|^2 + tr Cov(m) / n          (exactly)
        variance of a batch  (1/n) sum q_i - (mean)^2,   in expectation at  |v - var|^2 + tr Cov(q - 2 m E m) / n

    from the running ones (squared distances; the second to first order in 1 / n, with v the variance of all images). So
    the four numbers are |E m|, sqrt(tr Cov(m)), |v - var| and sqrt(tr Cov(q - 2 m E m)): two distances that no batch
    size takes away, estimated without the bias of as few images, and two that fall as 1 / sqrt(n).

    ValueError for a network without BN layers, or fewer than two images.
    """
    statistics = teacher.statistics
    if statistics is None:
        raise ValueError(f"{teacher.name} has no BatchNorm layers that run, so there are no levels to measure")
    each = [teacher.observe(image[None]).moments.double() / statistics.positions for part in images for image in part]
    if len(each) < 2:
        raise ValueError(f"levels: {len(each)} image; give at least two, a thousand are plenty")
    n = len(each)
    m, q = torch.stack(each).unbind(1)
    mean = m.mean(0)
    spreads = m.std(0), (q - 2 * mean * m).std(0)
    gaps = mean, q.mean(0) - mean.square() - statistics.var
    rows = []
    for gap, spread, scale in zip(gaps, spreads, (statistics.mean_scale, statistics.var_scale), strict=True):
        squared = statistics.layer_norms(gap).square() - statistics.layer_norms(spread).square() / n
        rows += [squared.clamp_min(0).sqrt() / scale, statistics.layer_norms(spread) / scale]
    return {key: tuple(row) for key, row in zip(statistics.keys, torch.stack(rows, 1).tolist(), strict=True)}
