# SPDX-License-Identifier: Apache-2.0
"""Distances between sets of features, against the same written with scipy, scikit-learn and loops."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from monai_unimedvl.evaluation.distances import (
    MEASURES,
    compare_sets,
    frechet_distance,
    frechet_interval,
    kernel_distance,
    kernel_interval,
    neighbour_scores,
)

linalg = pytest.importorskip("scipy.linalg", reason="the Frechet distance is held against scipy's root")
neighbors = pytest.importorskip("sklearn.neighbors", reason="neighbours are held against scikit-learn's")


def features(drawn=60, real=70, width=6, shift=0.3):
    generator = np.random.default_rng(0)
    mixing = generator.normal(size=(width, width))
    x = generator.normal(size=(drawn, width)) @ mixing + shift
    y = generator.normal(size=(real, width)) @ mixing * 1.2
    return torch.from_numpy(x), torch.from_numpy(y)


def scipy_frechet(x, y):
    x, y = x.numpy(), y.numpy()
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = linalg.sqrtm(a @ b).real
    return np.square(x.mean(0) - y.mean(0)).sum() + np.trace(a + b - 2 * root)


def loop_kernel(x, y):
    def k(a, b):
        return (float(a @ b) / len(a) + 1) ** 3

    m, n = len(x), len(y)
    total = sum(k(x[i], x[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    total += sum(k(y[i], y[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    return total - 2 * sum(k(a, b) for a in x for b in y) / (m * n)


@pytest.mark.parametrize("width", [6, 100])  # more images than features, and fewer
def test_the_frechet_distance_is_scipys(width):
    x, y = features(width=width)
    assert frechet_distance(x, y) == pytest.approx(scipy_frechet(x, y), rel=1e-4)


def test_both_ways_to_the_frechet_distance_agree(monkeypatch):
    x, y = features()
    by_monai = frechet_distance(x, y)
    few = frechet_interval(x, y, resamples=20).value
    padded = [torch.cat([one, torch.zeros(len(one), 100)], dim=1).double() for one in (x, y)]
    assert few == by_monai and frechet_distance(*padded) == pytest.approx(by_monai, abs=1e-6)


@pytest.mark.parametrize("drawn, real", [(20, 25), (25, 25)])  # ours, and torchmetrics'
def test_the_kernel_distance_is_unbiased_and_that_of_two_loops(drawn, real):
    x, y = features(drawn, real)
    assert kernel_distance(x, y) == pytest.approx(loop_kernel(x, y), abs=1e-4, rel=1e-6)


def test_the_kernel_distance_of_one_law_is_zero_on_average():
    generator = torch.Generator().manual_seed(0)
    draws = [
        kernel_distance(*torch.randn(2, 12, 3, generator=generator, dtype=torch.float64)) for _ in range(200)
    ]
    assert abs(np.mean(draws)) < 3 * np.std(draws) / 200**0.5 and min(draws) < 0


def test_precision_recall_density_and_coverage_are_those_of_scikit_learn():
    x, y = features()
    k = 4

    def reach(points):
        return neighbors.NearestNeighbors(n_neighbors=k + 1).fit(points).kneighbors(points)[0][:, -1]

    real, drawn = y.numpy(), x.numpy()
    between = np.linalg.norm(drawn[:, None] - real[None], axis=2)
    inside = between <= reach(real)[None]
    expected = {
        "precision": inside.any(1).mean(),
        "recall": (between <= reach(drawn)[:, None]).any(0).mean(),
        "density": inside.sum() / (k * len(drawn)),
        "coverage": (between.min(0) <= reach(real)).mean(),
    }
    found = {name: float(each.mean()) for name, each in neighbour_scores(x, y, k).items()}
    assert found == pytest.approx(expected, abs=1e-12)
    assert 0 < found["recall"] < 1  # a case that says something


def test_a_set_is_like_itself_and_unlike_another():
    x, y = features()
    same, other = neighbour_scores(y, y), neighbour_scores(x + 100, y)
    assert frechet_distance(y, y) == pytest.approx(0, abs=1e-8)
    assert all(float(each.mean()) == 1.0 for name, each in same.items() if name != "density")
    assert all(float(each.mean()) == 0.0 for each in other.values())


def test_intervals_hold_their_value_and_are_repeatable():
    x, y = features(120, 130)
    low, high = kernel_interval(x, y, seed=1)
    assert low < kernel_distance(x, y) < high and kernel_interval(x, y, seed=1) == (low, high)
    found = frechet_interval(x, y, seed=1)
    assert found.low < found.value < found.high and frechet_interval(x, y, seed=1) == found


@pytest.mark.parametrize("width", [5, 60])  # 40 images are few for 60 features
def test_the_interval_of_the_frechet_distance_is_about_its_value_and_as_wide_as_other_sets_are_apart(width):
    generator = torch.Generator().manual_seed(3)

    def pair():
        x, y = torch.randn(2, 40, width, generator=generator, dtype=torch.float64)
        return x, y + 0.3

    values = np.array([frechet_distance(*pair()) for _ in range(60)])
    found = [frechet_interval(*pair(), resamples=40) for _ in range(8)]
    assert all(one.low < one.value < one.high for one in found)
    wide = np.mean([one.high - one.low for one in found]) / (2 * 1.96 * values.std())
    assert 0.5 < wide < 2
    assert np.mean([one.low < values.mean() < one.high for one in found]) >= 0.75


def test_all_measures_come_with_encoder_counts_and_warnings(caplog):
    x, y = features()
    with caplog.at_level(logging.WARNING):
        found = compare_sets(x, y, encoder="six numbers", resamples=200)
    assert tuple(found.scores) == MEASURES and (found.real, found.drawn) == (70, 60)
    assert found.encoder == "six numbers" and "60 images and 6 features" in found.warnings[0]
    assert "fewer than 100" in found.warnings[1] and "six numbers: 60 images" in caplog.text
    assert all(one.low <= one.high for one in found.scores.values())


@pytest.mark.parametrize(
    "drawn, real, message",
    [
        (torch.zeros(9, 3), torch.zeros(9, 4), "same encoder"),
        (torch.zeros(3, 3), torch.zeros(9, 3), "at least 6 of each"),
        (torch.full((9, 3), float("nan")), torch.zeros(9, 3), "drawn image 0 are no numbers"),
    ],
)
def test_features_that_cannot_be_compared_are_told(drawn, real, message):
    with pytest.raises(ValueError, match=message):
        compare_sets(drawn, real, encoder="e")
