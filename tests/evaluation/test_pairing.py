# SPDX-License-Identifier: Apache-2.0
"""Two prediction files on the same items."""

from __future__ import annotations

from dataclasses import replace

import pytest

from monai_unimedvl.evaluation.pairing import compare_files, table
from monai_unimedvl.evaluation.predictions import Prediction, Predictions

stats = pytest.importorskip("scipy.stats", reason="p-values are held against scipy's")


def file(name, right, **changes):
    rows = [
        Prediction(f"q{n}", truth="yes", answer="Yes." if n in right else "no", image=f"i{n}", **changes)
        for n in range(40)
    ]
    return Predictions(rows, {}, name)


def test_files_without_scores_are_compared_by_exact_match():
    (one,) = compare_files(file("a", range(20)), file("b", range(3, 32)))
    assert (one.metric, one.difference.n, one.difference.moved) == ("exact match", 40, (12, 3))
    assert one.difference.value == pytest.approx(9 / 40) and one.difference.test == "McNemar, exact"
    assert one.adjusted == one.difference.p == pytest.approx(stats.binomtest(12, 15).pvalue)


def test_every_task_and_metric_is_tested_and_adjusted():
    rows = [
        Prediction(f"{n}", truth="x", task=task, scores={"PSNR": 20.0 + n, "SSIM": n / 20})
        for task in ("sr4", "t1-to-t2") for n in range(12)
    ]  # fmt: skip
    better = [
        replace(row, scores={"PSNR": row.scores["PSNR"] + 1, "SSIM": row.scores["SSIM"]}) for row in rows
    ]
    found = compare_files(Predictions(rows), Predictions(better))
    assert [(one.task, one.metric) for one in found] == [
        ("sr4", "PSNR"), ("sr4", "SSIM"), ("t1-to-t2", "PSNR"), ("t1-to-t2", "SSIM")
    ]  # fmt: skip
    assert found[0].difference.p == pytest.approx(2 / 2**12) and found[0].adjusted == pytest.approx(8 / 2**12)
    assert found[1].difference.p == 1.0
    text = table(found)
    assert "| sr4 | test | PSNR | 12 | 25.50 | 26.50 | 1.00 (1.00 to 1.00) | 12 / 0 |" in text
    assert "sign flips, exact" in text


def test_questions_about_one_image_are_drawn_together():
    def grouped(right):
        return Predictions([replace(row, image=f"i{int(row.id[1:]) // 10}") for row in file("", right).rows])

    (apart,) = compare_files(file("a", ()), file("b", range(30)))
    (together,) = compare_files(grouped(()), grouped(range(30)))
    assert apart.difference.p < 1e-6 and together.difference.p == 0.25 and together.difference.clusters == 4
    (alone,) = compare_files(grouped(()), grouped(range(30)), cluster="")
    assert alone.difference.p == apart.difference.p


def test_scores_undefined_in_both_are_counted_and_in_one_are_told():
    rows = [Prediction(f"{n}", truth="x", scores={"Dice": None if n == 1 else n / 5}) for n in range(5)]
    (one,) = compare_files(Predictions(rows), Predictions(rows))
    assert (one.difference.n, one.undefined) == (4, 1)
    assert "1 scores are undefined in both files" in table([one])
    other = [replace(row, scores={"Dice": 0.5}) for row in rows]
    with pytest.raises(ValueError, match="a has no Dice for item '1', the other file has: score it in both"):
        compare_files(Predictions(rows, {}, "a"), Predictions(other, {}, "b"))


def test_files_of_other_items_are_told():
    short = Predictions(file("b", ()).rows[:39], {}, "b")
    for pair in ((file("a", ()), short), (short, file("a", ()))):
        with pytest.raises(ValueError, match="b lacks 1 of the 40 items of a, such as 'q39' .vqa, test."):
            compare_files(*pair)
    with pytest.raises(ValueError, match="a row 1 .id q0. has another truth than b"):
        compare_files(file("a", ()), Predictions([replace(row, truth="no") for row in short.rows] + [
            replace(file("a", ()).rows[-1])], {}, "b"))  # fmt: skip
    pictures = [Prediction("1", truth_image="x.png", drawn="y.png")]
    with pytest.raises(ValueError, match="have no score in common"):
        compare_files(Predictions(pictures), Predictions(pictures))
