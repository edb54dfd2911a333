# SPDX-License-Identifier: Apache-2.0
"""Intervals and paired tests against scipy's, and laws that they keep."""

from __future__ import annotations

import numpy as np
import pytest

from monai_unimedvl.evaluation.intervals import compare, holm, interval, median_interval

stats = pytest.importorskip("scipy.stats", reason="the bootstrap and the tests are held against scipy's")


def scipy_bootstrap(data, statistic, paired=False, resamples=1000, seed=3):
    found = stats.bootstrap(
        data, statistic, paired=paired, method="percentile", n_resamples=resamples, vectorized=False,
        rng=np.random.default_rng(seed), batch=resamples,
    )  # fmt: skip
    return found.confidence_interval.low, found.confidence_interval.high


def test_the_interval_is_that_of_scipys_bootstrap():
    values = np.random.default_rng(0).normal(20, 3, 70)
    assert interval(values, seed=3) == pytest.approx(scipy_bootstrap((values,), np.mean), abs=1e-12)


def test_the_interval_of_a_median_is_that_of_scipys_bootstrap():
    values = np.random.default_rng(0).exponential(size=61)
    assert median_interval(values, seed=3) == pytest.approx(scipy_bootstrap((values,), np.median), abs=1e-12)


def test_the_interval_by_cluster_is_that_of_scipys_bootstrap_of_a_ratio():
    generator = np.random.default_rng(1)
    clusters = generator.integers(0, 12, 80).tolist()
    values = generator.random(80)
    order = list(dict.fromkeys(clusters))
    sums = np.array([values[[c == name for c in clusters]].sum() for name in order])
    counts = np.array([float(clusters.count(name)) for name in order])
    expected = scipy_bootstrap((sums, counts), lambda s, n: s.sum() / n.sum(), paired=True)
    assert interval(values, clusters=clusters, seed=3) == pytest.approx(expected, abs=1e-12)


def test_counting_values_draws_from_the_same_law_as_drawing_items():
    right = (np.arange(200) < 130).astype(float)
    low, high = interval(right, resamples=20_000)
    expected = stats.binom(200, 0.65).ppf([0.025, 0.975]) / 200
    assert (low, high) == pytest.approx(tuple(expected), abs=0.0051)  # one item more or less


def test_blocks_do_not_change_the_draw(monkeypatch):
    values = np.random.default_rng(0).normal(size=90)
    whole = interval(values, seed=1)
    monkeypatch.setattr("monai_unimedvl.evaluation.intervals.BLOCK", 1000)
    assert interval(values, seed=1) == whole


def test_ten_questions_about_one_image_are_no_ten_images():
    scores = np.repeat(np.arange(20) % 2, 10).astype(float)
    low, high = interval(scores)
    wide_low, wide_high = interval(scores, clusters=np.repeat(np.arange(20), 10).tolist())
    assert wide_high - wide_low > 2.5 * (high - low)


def test_the_paired_test_of_right_and_wrong_is_mcnemars():
    a = {f"{n}": float(n < 50) for n in range(100)}
    b = {f"{n}": float(n < 62 and n % 10 != 0) for n in range(100)}
    found = compare(a, b)
    better, worse = found.moved
    assert (better, worse) == (10, 5) and found.test == "McNemar, exact"
    assert found.p == pytest.approx(stats.binomtest(better, better + worse).pvalue, abs=1e-12)
    assert found.value == pytest.approx(found.b - found.a) and found.low <= found.value <= found.high


def test_the_paired_test_of_scores_is_scipys_permutation_test():
    generator = np.random.default_rng(5)
    a = {f"{n}": float(x) for n, x in enumerate(generator.normal(size=12))}
    b = {name: x + float(generator.normal(0.5)) for name, x in a.items()}
    found = compare(a, b)
    steps = [b[name] - a[name] for name in sorted(a)]
    expected = stats.permutation_test((steps,), np.mean, permutation_type="samples", n_resamples=10_000)
    assert found.test == "sign flips, exact" and found.p == pytest.approx(expected.pvalue, abs=1e-12)
    many = {f"{n}": float(x) for n, x in enumerate(generator.normal(size=60))}
    shifted = {name: x + float(generator.normal(0.25)) for name, x in many.items()}
    steps = [shifted[name] - many[name] for name in sorted(many)]
    expected = stats.permutation_test((steps,), np.mean, permutation_type="samples", rng=generator)
    assert compare(many, shifted).p == pytest.approx(expected.pvalue, abs=0.015)


def test_flipping_by_cluster_asks_for_more_evidence():
    a = {f"{n}": 0.0 for n in range(40)}
    b = {name: 1.0 if int(name) < 30 else 0.0 for name in a}
    assert compare(a, b).p < 1e-6
    assert compare(a, b, clusters={name: int(name) // 10 for name in a}).p == pytest.approx(0.25)


def test_equal_runs_do_not_differ_and_swapping_turns_the_sign():
    a = {"x": 0.2, "y": 0.4, "z": 0.9}
    assert compare(a, a).p == 1.0 and compare(a, a).value == 0.0
    b = {"x": 0.3, "y": 0.1, "z": 1.0}
    assert compare(a, b).value == -compare(b, a).value and compare(a, b).p == compare(b, a).p


def test_holm_is_the_step_down_rule():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})


@pytest.mark.parametrize(
    "values, clusters, message",
    [
        ([], None, "expected a list of at least one number"),
        ([1.0, float("nan")], None, "Score 1 is nan"),
        ([1.0, 2.0], ["a"], "2 scores came with 1 clusters"),
    ],
)
def test_what_cannot_be_bootstrapped_is_told(values, clusters, message):
    with pytest.raises(ValueError, match=message):
        interval(values, clusters=clusters)


def test_runs_of_other_items_are_told_and_not_cut_to_what_they_share():
    with pytest.raises(ValueError, match="second of the two runs lacks 1 items of the other, such as 'b'"):
        compare({"a": 1.0, "b": 0.0}, {"a": 1.0})
