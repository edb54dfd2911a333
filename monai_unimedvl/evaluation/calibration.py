# SPDX-License-Identifier: Apache-2.0
"""Whether a model knows when it is wrong: reliability, risk against coverage, and when it should refuse.

The confidence of an answer is what the model itself says: the probability of the whole text, or its geometric
mean over the tokens, which does not punish long answers.
  N answers
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from monai_unimedvl.evaluation.intervals import holm, interval
from monai_unimedvl.evaluation.predictions import Prediction
from monai_unimedvl.packages import needed

Array = npt.NDArray[np.float64]
ROUNDING = 1e-7  # of a confidence, as float32 rounds


@dataclass(frozen=True)
class Bin:
    """Answers of like confidence: its mean, the share that is right with its interval, their number."""

    confidence: float
    right: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Reliability:
    """How far confidence and truth are apart.

    Args:
        bins: those that hold answers, from low confidence to high.
        ece: expected calibration error, the mean gap weighted by the number of answers; in [0, 1].
        mce: the largest gap of a bin.
        brier: mean squared difference of confidence and truth.
        auroc: chance that a right answer is surer than a wrong one; None where all are right or all wrong.
        n: answers.
    """

    bins: tuple[Bin, ...]
    ece: float
    mce: float
    brier: float
    auroc: float | None
    n: int


@dataclass(frozen=True)
class RiskCoverage:
    """Share of wrong answers among the surest, for each share that is answered.

    Args:
        coverage, risk: the curve, from few answers to all.
        area: under it; the less the better. ideal: of a model that is surest where it is right.
    """

    coverage: Array
    risk: Array
    area: float
    ideal: float


@dataclass(frozen=True)
class Refusal:
    """From which confidence on a model may answer.

    Args:
        threshold: answer where the confidence is at least this; infinite where no threshold will do.
        risk: the share of wrong answers that was asked for. level: how sure it is not exceeded.
        coverage: share of answers that are given. seen: their share of wrong answers.
        n: answers it was chosen on.
    """

    threshold: float
    risk: float
    level: float
    coverage: float
    seen: float
    n: int

    def __str__(self) -> str:
        if math.isinf(self.threshold):
            return f"no confidence keeps wrong answers below {self.risk:.0%} ({self.n} answers)"
        return (
            f"answer from {self.threshold:.3f} on: {self.coverage:.0%} answered, {self.seen:.1%} of them"
            f" wrong, below {self.risk:.0%} with {self.level:.0%} certainty ({self.n} answers)"
        )


def confidences(
    rows: Iterable[Prediction], metric: str = "exact match", kind: Literal["text", "token"] = "text"
) -> tuple[Array, Array]:
    """Confidence and score of each row that has both: (N,) in [0, 1] and (N,)

    Args:
        kind: "text" for the probability of the whole answer, "token" for its geometric mean over tokens.

    Raises:
        ValueError: no row has a log-probability and the score.
    """
    found = [
        (math.exp(min(0.0, row.logprob / (row.tokens or 1) if kind == "token" else row.logprob)), score)
        for row in rows
        if row.logprob is not None and (score := row.scores.get(metric)) is not None
    ]
    if not found:
        raise ValueError(
            f"No prediction has both a logprob and {metric!r}: keep the inferer's logprobs, or name a metric "
            "that was scored."
        )
    sure, right = np.array(found, dtype=np.float64).T
    return sure, right


def reliability(sure: Array, right: Array, *, bins: int = 10, seed: int = 0) -> Reliability:
    """The reliability diagram and its errors, bins of equal width.

    As in Guo et al. 2017 (arXiv 1706.04599), a bin holds its upper edge and not its lower one: (a, b]; the
    first also holds 0. What differs from an edge by rounding (3 * 0.1, or 0.3 in float32) lies on it.

    Args:
        sure: (N,) in [0, 1]. right: (N,) of 0 and 1, or shares of right.

    Raises:
        ValueError: unequal numbers, none, or confidences outside of [0, 1].
    """
    _check(sure, right)
    place = np.maximum(np.ceil((np.asarray(sure, np.float64) - ROUNDING) * bins), 1)  # from 1 to bins
    shown = []
    for n in np.unique(place):
        held, truth = sure[place == n], right[place == n]
        low, high = interval(truth, seed=seed)
        shown.append(Bin(float(held.mean()), float(truth.mean()), low, high, len(held)))
    gaps = np.array([abs(one.right - one.confidence) for one in shown])
    weights = np.array([one.n for one in shown]) / len(sure)
    return Reliability(
        tuple(shown), float(gaps @ weights), float(gaps.max()), float(np.square(sure - right).mean()),
        _auroc(sure, right), len(sure),
    )  # fmt: skip


def risk_coverage(sure: Array, right: Array) -> RiskCoverage:
    """The curve of risk against coverage; answers of one confidence are answered or refused together.

    Raises:
        ValueError: unequal numbers, none, or confidences outside of [0, 1].
    """
    _check(sure, right)
    order = np.argsort(-sure, kind="stable")
    wrong = np.cumsum(1 - right[order])
    last = np.flatnonzero(np.diff(sure[order], append=-1.0))  # the last answer of each confidence
    coverage, risk = (last + 1) / len(sure), wrong[last] / (last + 1)
    ideal = np.cumsum(np.sort(1 - right)) / np.arange(1, len(right) + 1)
    steps = np.diff(coverage, prepend=0.0)
    return RiskCoverage(coverage, risk, float(risk @ steps), float(ideal.mean()))


def refuse_threshold(
    sure: Array, right: Array, *, risk: float = 0.05, level: float = 0.95, steps: int = 20
) -> Refusal:
    """The lowest confidence at which the share of wrong answers is below `risk`, with certainty `level`.

    Some thresholds are tried, each by an exact binomial test; Holm's rule keeps the certainty over all of
    them. Choose it on other items than those it is reported on.

    Raises:
        ValueError: unequal numbers, none, scores that are not 0 or 1, or confidences outside of [0, 1].
    """
    _check(sure, right)
    if not set(np.unique(right)) <= {0.0, 1.0}:
        raise ValueError("refuse_threshold got scores between 0 and 1, expected right or wrong: round them.")
    stats = needed("scipy.stats", "refuse_threshold", "eval")
    order = np.argsort(-sure, kind="stable")
    wrong = np.cumsum(1 - right[order])
    last = np.flatnonzero(np.diff(sure[order], append=-1.0))
    tried = last[np.unique(np.searchsorted(last + 1, len(sure) * np.arange(1, steps + 1) / steps))]
    p = {str(at): float(stats.binom.cdf(wrong[at], at + 1, risk)) for at in tried.tolist()}
    kept = [int(at) for at, adjusted in holm(p).items() if adjusted <= 1 - level]
    if not kept:
        return Refusal(math.inf, risk, level, 0.0, 0.0, len(sure))
    at = max(kept)
    seen = float(wrong[at] / (at + 1))
    return Refusal(float(sure[order][at]), risk, level, (at + 1) / len(sure), seen, len(sure))


def _auroc(sure: Array, right: Array) -> float | None:
    """By ranks, ties shared."""
    positive = right >= 0.5
    if positive.all() or not positive.any():
        return None
    _, place, counts = np.unique(sure, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    yes, no = int(positive.sum()), int((~positive).sum())
    return float((ranks[positive].sum() - yes * (yes + 1) / 2) / (yes * no))


def _check(sure: Sequence[float] | Array, right: Sequence[float] | Array) -> None:
    if len(sure) != len(right) or not len(sure):
        raise ValueError(
            f"{len(sure)} confidences came with {len(right)} scores, expected as many, and at least one."
        )
    if not (np.isfinite(sure).all() and min(sure) >= 0 and max(sure) <= 1):
        raise ValueError(
            f"Confidences from {min(sure):g} to {max(sure):g} came, expected probabilities in [0, 1]: take"
            " exp of the log-probabilities."
        )
