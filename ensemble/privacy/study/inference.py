"""Tests over networks: exact p-values, a fixed sequence, Holm's correction."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations, permutations, product
from math import comb

import numpy as np
from scipy import stats

from ensemble.evaluation.estimate import Estimate


def permutation_p(a: Sequence[float], b: Sequence[float]) -> float:
    """The share of all ways to part the values in sets of these sizes whose AUROC is at least that of (a, b).

    One-sided and exact: at least 1 / C(n + m, n). Ties count half, as in the AUROC. ValueError for values that are not
    finite.
    """
    _check_finite(a, b)
    doubled = (2 * stats.rankdata([*a, *b])).astype(int)  # ranks of ties are halves
    ways: list[dict[int, int]] = [{0: 1}, *({} for _ in a)]
    """By the size of a part: how many parts of that size have which sum of ranks."""
    for rank in doubled.tolist():
        for size in range(len(a), 0, -1):
            for total, count in ways[size - 1].items():
                ways[size][total + rank] = ways[size].get(total + rank, 0) + count
    seen = int(doubled[: len(a)].sum())
    return sum(count for total, count in ways[-1].items() if total >= seen) / comb(len(doubled), len(a))


def sign_flip_p(differences: Sequence[float]) -> float:
    """The share of all choices of signs whose sum is at least that of these differences of pairs: one-sided, exact.

    ValueError for values that are not finite.
    """
    _check_finite(differences)
    d = np.asarray(differences, dtype=float)
    sums = np.array([*product((1.0, -1.0), repeat=len(d))]) @ d  # the first are these
    return float((sums >= sums[0] - 1e-9 * np.abs(d).sum()).mean())


def _check_finite(*values: Sequence[float] | np.ndarray) -> None:
    if not all(np.isfinite(part).all() for part in values):
        raise ValueError("a test takes finite values; a network's score is not")


def fixed_sequence(p: Mapping[str, float], alpha: float = 0.05) -> dict[str, bool | None]:
    """Whether each null hypothesis falls, tested in this order at alpha until one does not; None: not tested.

    The chance of any false one among all is at most alpha.
    """
    found: dict[str, bool | None] = {}
    going = True
    for name, value in p.items():
        found[name] = bool(value <= alpha) if going else None
        going = going and value <= alpha
    return found


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """p-values corrected for their number (Holm 1979): the k-th smallest of m times m - k + 1, made monotone."""
    found, most = {}, 0.0
    for k, (name, value) in enumerate(sorted(p.items(), key=lambda item: item[1])):
        most = max(most, min(1.0, (len(p) - k) * value))
        found[name] = most
    return {name: found[name] for name in p}


def page_p(rows: Sequence[Sequence[float]]) -> float:
    """Page's test (1963) that the columns of paired rows rise from left to right; one-sided.

    The share of all ways to permute each row by itself whose sum over columns, counted from 1, of the column times its
    ranks is at least that of these rows: exact, also with ties, which share the mean of their ranks. ValueError for
    values that are not finite.
    """
    _check_finite(*rows)
    doubled = (2 * stats.rankdata(np.asarray(rows), axis=1)).astype(int)  # ranks of ties are halves
    columns = np.arange(1, doubled.shape[1] + 1)
    ways = {0: 1}
    """Of the rows so far: how many ways have which statistic."""
    for row in doubled:
        of_row, before = Counter(int(columns @ order) for order in permutations(row)), ways
        ways = {}
        for total, count in before.items():
            for more, times in of_row.items():
                ways[total + more] = ways.get(total + more, 0) + count * times
    seen = int((doubled @ columns).sum())
    return sum(count for total, count in ways.items() if total >= seen) / sum(ways.values())


def auroc(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray) -> float:
    """P(a > b), ties counting half; ValueError for values that are not finite."""
    _check_finite(a, b)
    x, y = np.asarray(a)[:, None], np.asarray(b)[None]
    return float(((x > y) + 0.5 * (x == y)).mean())


def splits(values: Sequence[float]) -> np.ndarray:
    """AUROCs of all ways to part one arm in two halves: what is found where nothing is to be found."""
    n, half = len(values), len(values) // 2
    chosen = [set(c) for c in combinations(range(n), half)]
    return np.array([auroc([values[i] for i in c], [values[i] for i in range(n) if i not in c]) for c in chosen])


def paired_auroc_difference(
    first: tuple[Sequence[float], Sequence[float]], second: tuple[Sequence[float], Sequence[float]], seed: int
) -> Estimate:
    """AUROC of one detector less another's on the same networks, and its 95 % interval.

    Networks of a seed are drawn together (2,000 draws of seeds); each detector's scores are (mixed, plain), by seed.
    """
    rng = np.random.default_rng(seed)
    one, two = ((np.asarray(mixed), np.asarray(plain)) for mixed, plain in (first, second))
    n = min(len(part) for part in (*one, *two))
    drawn = [rng.integers(0, n, n) for _ in range(2000)]
    each = [auroc(one[0][i], one[1][i]) - auroc(two[0][i], two[1][i]) for i in drawn]
    low, high = np.quantile(each, [0.025, 0.975])
    return Estimate(auroc(one[0], one[1]) - auroc(two[0], two[1]), float(low), float(high))
