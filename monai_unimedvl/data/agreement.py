# SPDX-License-Identifier: Apache-2.0
"""How well readers agree, and whether a sample passes: weighted kappa, ICC, Q-bar.

Q-bar is the mean of ratings on a scale from 0 to 1: one of 0 to 5 is divided by 5, the modality match
stays. The paper gives 0.85 as the mark to pass and does not say how it scales; this is our reading.
  N items   R readers
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_unimedvl.packages import needed

PASS = 0.85
DIMENSIONS: dict[str, tuple[float, float, str]] = {  # name -> largest rating, step, what is asked
    "modality match": (1, 0.5, "Is the image of the modality that is named?"),
    "factual accuracy": (5, 1, "Is what is said true of the image?"),
    "information completeness": (5, 1, "Is what matters said?"),
    "position and quantity": (5, 1, "Are sides, places, numbers and sizes right?"),
    "professionalism": (5, 1, "Is it said as a specialist would?"),
    "planning coherence": (5, 1, "Does the plan lead to the result?"),
    "clinical reasoning": (5, 1, "Does what is concluded follow from what is seen?"),
}
Ratings = Mapping[str, Mapping[str, float]]  # item -> dimension -> rating; what was not rated is not there


@dataclass(frozen=True)
class Review:
    """What one reader said.

    Args:
        reader: the name that they gave. form: id of the form.
        ratings: see `Ratings`. comments: item -> words.
    """

    reader: str
    form: str
    ratings: Ratings
    comments: Mapping[str, str]


def quality(reviews: Sequence[Review]) -> float:
    """Q-bar: the mean over readers of the mean over their items of the mean over what was rated there.

    Raises:
        ValueError: nobody rated anything.
    """
    means = []
    for review in reviews:
        items = [
            float(np.mean([rating / DIMENSIONS[name][0] for name, rating in rated.items()]))
            for rated in review.ratings.values()
            if rated
        ]
        if items:
            means.append(float(np.mean(items)))
    if not means:
        raise ValueError("the reviews hold no rating, expected some: fill in the form.")
    return float(np.mean(means))


def kappa(reviews: Sequence[Review], dimension: str) -> float | None:
    """Quadratically weighted kappa, the mean over pairs of readers; None where no pair varies or overlaps.

    Raises:
        ValueError: scikit-learn is not installed.
    """
    metrics = needed("sklearn.metrics", "Agreement of readers", "data")
    largest, step, _ = DIMENSIONS[dimension]
    levels = list(range(round(largest / step) + 1))
    found_kappas = []
    for one, other in itertools.combinations(reviews, 2):
        both = [
            (round(one.ratings[item][dimension] / step), round(other.ratings[item][dimension] / step))
            for item in one.ratings
            if dimension in one.ratings[item] and dimension in other.ratings.get(item, {})
        ]
        if len({level for pair in both for level in pair}) > 1:
            first, second = zip(*both, strict=True)
            found_kappas.append(metrics.cohen_kappa_score(first, second, labels=levels, weights="quadratic"))
    return float(np.mean(found_kappas)) if found_kappas else None


def icc(table: NDArray[np.float64]) -> float | None:
    """ICC(2,1): two-way random effects, absolute agreement, one reader (Shrout and Fleiss 1979).

    Args:
        table: (N, R), complete.

    Returns:
        None for fewer than two items or readers, or where nothing varies.
    """
    count, readers = table.shape if table.ndim == 2 else (0, 0)
    if count < 2 or readers < 2:
        return None
    mean = table.mean()
    between = readers * float(((table.mean(1) - mean) ** 2).sum()) / (count - 1)
    across = count * float(((table.mean(0) - mean) ** 2).sum()) / (readers - 1)
    total = float(((table - mean) ** 2).sum())
    rest = (total - between * (count - 1) - across * (readers - 1)) / ((count - 1) * (readers - 1))
    below = between + (readers - 1) * rest + readers * (across - rest) / count
    return None if total < 1e-12 or below <= 0 else (between - rest) / below


def agreement(reviews: Sequence[Review]) -> dict[str, Any]:
    """Q-bar, whether it passes, and for each dimension: ratings, mean, deviation, kappa, ICC.

    Raises:
        ValueError: no rating, two reviews of one reader, or of different forms.
    """
    names = [review.reader for review in reviews]
    if len(set(names)) < len(names):
        raise ValueError(f"two reviews are by {max(names, key=names.count)!r}, expected one each: name them.")
    if len({review.form for review in reviews}) > 1:
        raise ValueError("the reviews are of different forms, expected one: keep those of one sample.")
    score = quality(reviews)
    rows = []
    for name, (largest, _, asked) in DIMENSIONS.items():
        every = [rated[name] for review in reviews for rated in review.ratings.values() if name in rated]
        shared = [
            [review.ratings[item][name] for review in reviews]
            for item in reviews[0].ratings
            if all(name in review.ratings.get(item, {}) for review in reviews)
        ]
        rows.append(
            {
                "dimension": name, "asked": asked, "largest": largest, "ratings": len(every),
                "mean": float(np.mean(every)) if every else None,
                "deviation": float(np.std(every, ddof=1)) if len(every) > 1 else None,
                "kappa": kappa(reviews, name), "icc": icc(np.array(shared, np.float64)),
                "items of all": len(shared),
            }
        )  # fmt: skip
    readers = [
        {
            "reader": review.reader,
            "items": sum(map(bool, review.ratings.values())),
            "quality": quality([review]),
        }
        for review in reviews
    ]
    return {"quality": score, "passes": score >= PASS, "pass": PASS, "readers": readers, "dimensions": rows}
