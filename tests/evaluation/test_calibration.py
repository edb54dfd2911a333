# SPDX-License-Identifier: Apache-2.0
"""Confidence against truth, held against scikit-learn and hand-made cases."""

from __future__ import annotations

import math

import numpy as np
import pytest

from monai_unimedvl.evaluation.calibration import (
    confidences,
    refuse_threshold,
    reliability,
    risk_coverage,
)
from monai_unimedvl.evaluation.predictions import Prediction

sk = pytest.importorskip("sklearn.metrics", reason="calibration is held against scikit-learn's")


@pytest.fixture
def answers():
    generator = np.random.default_rng(0)
    sure = np.round(generator.random(500), 2)
    return sure, (generator.random(500) < sure**2).astype(float)


def test_errors_are_those_written_out(answers):
    sure, right = answers
    found = reliability(sure, right)
    place = np.maximum(-(-np.round(sure * 100).astype(int) // 10), 1)  # in hundredths no edge is missed
    gaps = [abs(sure[place == n].mean() - right[place == n].mean()) for n in range(1, 11)]
    shares = [(place == n).mean() for n in range(1, 11)]
    assert found.ece == pytest.approx(np.dot(gaps, shares), abs=1e-12)
    assert found.mce == pytest.approx(max(gaps), abs=1e-12)
    assert found.brier == pytest.approx(sk.brier_score_loss(right, sure), abs=1e-12)
    assert found.auroc == pytest.approx(sk.roc_auc_score(right, sure), abs=1e-12)
    assert sum(one.n for one in found.bins) == found.n == 500 and found.mce >= found.ece
    assert all(one.low <= one.right <= one.high for one in found.bins)


@pytest.mark.parametrize("bins", [1, 7, 10, 15])
def test_an_edge_belongs_to_the_bin_below_it(bins):
    edges = np.arange(bins + 1) / bins
    inside = np.concatenate([[0.0, 1e-12], np.repeat(edges[1:], 3)])  # 0 lies in the first, 1 in the last
    found = reliability(inside, np.ones(len(inside)), bins=bins)
    assert [one.n for one in found.bins] == [5] + [3] * (bins - 1)
    for noisy in (np.float64(np.float32(inside)), inside * (1 - 1e-15), np.minimum(inside * (1 + 1e-15), 1)):
        assert [one.n for one in reliability(noisy, np.ones(len(noisy)), bins=bins).bins] == [
            one.n for one in found.bins
        ]
    above = reliability(edges[:-1] + 1e-5, np.ones(bins), bins=bins)
    assert [one.n for one in above.bins] == [1] * bins


def test_the_interval_of_a_bin_is_drawn_from_what_the_bin_holds():
    sure = np.concatenate([np.full(50, 3 * 0.1), np.full(50, 0.3), np.full(10, 0.25)])
    right = np.concatenate([np.ones(100), np.zeros(10)])
    (only,) = reliability(sure, right).bins
    assert only.n == 110 and only.right == 100 / 110 and only.low < only.right < only.high
    assert only.low > 0.8


def test_a_model_that_is_as_sure_as_it_is_right_has_no_error():
    sure = np.repeat([0.25, 0.75], 400)
    right = np.concatenate([np.arange(400) < 100, np.arange(400) < 300]).astype(float)
    assert reliability(sure, right).ece == pytest.approx(0.0, abs=1e-6)
    assert (
        reliability(np.ones(4), np.zeros(4)).ece == 1.0 and reliability(np.ones(4), np.ones(4)).auroc is None
    )


def test_risk_falls_where_the_surest_are_answered_first(answers):
    sure, right = answers
    curve = risk_coverage(sure, right)
    for share, risk in zip(curve.coverage[::10], curve.risk[::10], strict=True):
        least = np.sort(sure)[::-1][round(share * 500) - 1]
        assert risk == pytest.approx(1 - right[sure >= least].mean())
    assert curve.coverage[-1] == 1.0 and curve.risk[-1] == pytest.approx(1 - right.mean())
    assert curve.ideal < curve.area < 1 - right.mean()
    tied = risk_coverage(np.full(4, 0.5), np.array([1.0, 1, 0, 0]))
    assert tied.coverage.tolist() == [1.0] and tied.area == 0.5  # one confidence: all or nothing


def test_the_threshold_keeps_its_promise_on_answers_it_was_not_chosen_on():
    generator = np.random.default_rng(1)
    broken = 0
    for _ in range(60):
        sure = generator.random(1200)
        right = (generator.random(1200) < 1 - 0.4 * (1 - sure)).astype(float)
        found = refuse_threshold(sure, right, risk=0.1, level=0.9)
        true_risk = 0.4 * (1 - found.threshold) / 2 if math.isfinite(found.threshold) else 0.0
        broken += true_risk > 0.1
    assert broken <= 12  # 6 expected
    assert 0.2 < found.coverage < 0.7 and found.seen < 0.1 and "answer from 0." in str(found)


def test_where_nothing_is_sure_enough_all_is_refused():
    found = refuse_threshold(np.linspace(0, 1, 200), np.tile([0.0, 1.0], 100))
    assert math.isinf(found.threshold) and found.coverage == 0.0 and "no confidence keeps" in str(found)
    assert math.isinf(refuse_threshold(np.ones(20), np.ones(20)).threshold)  # too few to know


def test_confidence_is_of_the_text_or_of_a_token():
    rows = [
        Prediction("a", truth="x", logprob=math.log(0.25), tokens=2, scores={"exact match": 1.0}),
        Prediction("b", truth="x", logprob=None, scores={"exact match": 1.0}),
        Prediction("c", truth="x", logprob=1e-9, tokens=1, scores={"exact match": None}),
    ]
    assert [x.tolist() for x in confidences(rows)] == [[0.25], [1.0]]
    assert confidences(rows, kind="token")[0].tolist() == [0.5]
    with pytest.raises(ValueError, match="both a logprob and 'token F1'"):
        confidences(rows, "token F1")


@pytest.mark.parametrize("judge", [reliability, risk_coverage, refuse_threshold])
def test_confidences_that_are_none_are_told(judge):
    with pytest.raises(ValueError, match=r"from -1.2 to 0 came, expected probabilities"):
        judge(np.array([-1.2, 0.0]), np.array([0.0, 1.0]))
    with pytest.raises(ValueError, match="2 confidences came with 1 scores"):
        judge(np.array([0.2, 0.0]), np.array([0.0]))
