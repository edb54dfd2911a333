# SPDX-License-Identifier: Apache-2.0
"""How sure a mean is, and whether two runs differ: bootstrap by item or cluster, and paired tests.

Items of one patient, or questions about one image, are no independent witnesses: with `clusters` whole
patients are drawn, and the interval is as wide as it should be. The same seed gives the same numbers.
  N items   C clusters   R resamples
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

RESAMPLES = 1000
FEW = 64  # distinct values, up to which resampling counts how often each comes
BLOCK = 4_000_000  # numbers drawn at a time
Array = npt.NDArray[np.float64]


def interval(
    values: Sequence[float] | Array, *, clusters: Sequence[Hashable] | None = None, seed: int = 0,
    level: float = 0.95, resamples: int = RESAMPLES,
) -> tuple[float, float]:  # fmt: skip
    """Percentile bootstrap interval of the mean; the same seed gives the same.

    Args:
        values: N scores.
        clusters: the patient or image of each; whole clusters are drawn then, with replacement.

    Raises:
        ValueError: no value, one that is no finite number, or not one cluster a value.
    """
    sample = _sample(values)
    if clusters is not None:
        means = _cluster_means(sample, clusters, seed, resamples)
    else:
        kinds, counts = np.unique(sample, return_counts=True)
        if len(kinds) <= FEW:  # how often each value comes is the same draw, and much less of it
            weights = np.random.default_rng(seed).multinomial(
                len(sample), counts / len(sample), size=resamples
            )
            means = weights @ kinds / len(sample)
        else:
            means = np.concatenate(
                [sample[rows].mean(1) for rows in _draws(len(sample), seed=seed, resamples=resamples)]
            )
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def median_interval(
    values: Sequence[float] | Array, *, seed: int = 0, level: float = 0.95, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """Percentile bootstrap interval of the median; the same seed gives the same.

    Raises:
        ValueError: no value, or one that is no finite number.
    """
    sample = _sample(values)
    draws = _draws(len(sample), seed=seed, resamples=resamples)
    medians = np.concatenate([np.median(sample[rows], axis=1) for rows in draws])
    low, high = np.quantile(medians, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


@dataclass(frozen=True)
class Difference:
    """Two runs on the same items, b - a.

    Args:
        n, clusters: items, and the patients or images that they were drawn by (n without clusters).
        a, b: mean scores.
        value, low, high: the mean difference and its bootstrap interval.
        p: two-sided, of the hypothesis that a and b can be swapped.
        test: "McNemar, exact", "sign flips, exact" or "sign flips".
        moved: items that got better and items that got worse.
    """

    n: int
    clusters: int
    a: float
    b: float
    value: float
    low: float
    high: float
    p: float
    test: str
    moved: tuple[int, int]


def compare(
    a: Mapping[str, float], b: Mapping[str, float], *, clusters: Mapping[str, Hashable] | None = None,
    seed: int = 0, level: float = 0.95, resamples: int = 10_000,
) -> Difference:  # fmt: skip
    """The paired difference b - a over the same items, with interval and p-value.

    Scores of 0 and 1 without clusters: McNemar's exact test. Otherwise the signs of the differences are
    flipped, cluster by cluster: all ways where there are few, else `resamples` random ones.

    Args:
        a, b: item id -> score.
        clusters: item id -> patient or image.

    Raises:
        ValueError: the two do not have the same ids, or a score is no finite number.
    """
    if missing := a.keys() ^ b.keys():
        name = min(missing)
        side = "second" if name in a else "first"
        raise ValueError(
            f"The {side} of the two runs lacks {len(missing & (a.keys() if name in a else b.keys()))} items"
            f" of the other, such as {name!r}: score the same items in both."
        )
    ids = sorted(a)
    first, second = (_sample([run[name] for name in ids]) for run in (a, b))
    steps = second - first
    groups = None if clusters is None else [clusters[name] for name in ids]
    low, high = interval(
        steps, clusters=groups, seed=seed, level=level, resamples=min(resamples, RESAMPLES * 10)
    )
    if groups is None and set(np.unique(np.concatenate([first, second]))) <= {0.0, 1.0}:
        p, test = _mcnemar(steps), "McNemar, exact"
    else:
        sums = steps if groups is None else _by_cluster(steps, groups)[0]
        p, test = _sign_flips(sums, seed, resamples)
    return Difference(
        len(ids), len(ids) if groups is None else len(set(groups)), float(first.mean()),
        float(second.mean()), float(steps.mean()), low, high, p, test,
        (int((steps > 0).sum()), int((steps < 0).sum())),
    )  # fmt: skip


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """p-values adjusted for their number by Holm's step-down rule, in the order given."""
    adjusted: dict[str, float] = {}
    highest = 0.0
    for rank, name in enumerate(sorted(p, key=lambda key: p[key])):
        highest = max(highest, min(1.0, p[name] * (len(p) - rank)))
        adjusted[name] = highest
    return {name: adjusted[name] for name in p}


def _cluster_means(
    sample: Array, clusters: Sequence[Hashable], seed: int, resamples: int
) -> npt.NDArray[np.float64]:
    sums, counts = _by_cluster(sample, clusters)
    return np.concatenate(
        [
            sums[rows].sum(1) / counts[rows].sum(1)
            for rows in _draws(len(sums), seed=seed, resamples=resamples)
        ]
    )


def _by_cluster(sample: Array, clusters: Sequence[Hashable]) -> tuple[Array, Array]:
    """Sum and number of the values of each cluster, in the order in which they first come: (C,), (C,)"""
    if len(clusters) != len(sample):
        raise ValueError(f"{len(sample)} scores came with {len(clusters)} clusters: give one for each score.")
    place = {name: n for n, name in enumerate(dict.fromkeys(clusters))}
    at = np.array([place[name] for name in clusters])
    sums = np.bincount(at, sample, len(place)).astype(np.float64)
    return sums, np.bincount(at, minlength=len(place)).astype(np.float64)


def _draws(count: int, *, seed: int, resamples: int) -> Iterator[npt.NDArray[np.int64]]:
    """Rows of resampled indices, (some, count) at a time, R in all."""
    generator = np.random.default_rng(seed)
    some = max(1, BLOCK // count)
    for start in range(0, resamples, some):
        yield generator.integers(0, count, (min(some, resamples - start), count))


def _mcnemar(steps: Array) -> float:
    """Exact two-sided binomial p-value of items that got better against items that got worse."""
    better, worse = int((steps > 0).sum()), int((steps < 0).sum())
    n, least = better + worse, min(better, worse)
    if n == 0:
        return 1.0
    logs = [math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(least + 1)]
    return min(1.0, 2 * math.fsum(math.exp(one - n * math.log(2)) for one in logs))


def _sign_flips(sums: Array, seed: int, resamples: int) -> tuple[float, str]:
    """How often random signs bring a sum as far from zero as the one seen."""
    sums = sums[sums != 0]
    if not len(sums):
        return 1.0, "sign flips, exact"
    bound = abs(sums.sum()) * (1 - 1e-12)
    if 2 ** min(len(sums), 40) <= resamples:
        every = (np.arange(2 ** len(sums))[:, None] >> np.arange(len(sums))) & 1
        return float((np.abs((2 * every - 1) @ sums) >= bound).mean()), "sign flips, exact"
    generator, found = np.random.default_rng(seed), 0
    some = max(1, BLOCK // len(sums))
    for start in range(0, resamples, some):
        signs = generator.integers(0, 2, (min(some, resamples - start), len(sums)))
        found += int((np.abs((2 * signs - 1) @ sums) >= bound).sum())
    return (found + 1) / (resamples + 1), "sign flips"


def _sample(values: Sequence[float] | Array) -> Array:
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or not len(sample):
        raise ValueError(f"Scores of shape {sample.shape} came, expected a list of at least one number.")
    if not np.isfinite(sample).all():
        at = int(np.flatnonzero(~np.isfinite(sample))[0])
        raise ValueError(f"Score {at} is {sample[at]}, expected finite numbers: leave it out by name.")
    return sample
