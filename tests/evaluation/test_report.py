# SPDX-License-Identifier: Apache-2.0
"""Tables are made of predictions, and nothing else."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch

from monai_unimedvl.evaluation import Report, fill
from monai_unimedvl.evaluation.cards import hub_card, mi_claim_gen
from monai_unimedvl.evaluation.intervals import interval
from monai_unimedvl.evaluation.report import summarise


def prediction(n, score, *, task="sr4", section="test", groups=(), setting="4 steps", **baselines):
    return {
        "id": str(n), "task": task, "section": section, "groups": list(groups), "setting": setting,
        "scores": {"PSNR": score}, "ceiling": {"PSNR": 40.0},
        "baselines": {"PSNR": baselines or {"bicubic": 20.0}},
    }  # fmt: skip


def report(predictions):
    return Report(summarise(predictions), predictions, {"seed": 0})


def test_a_row_is_the_mean_of_its_items_beside_their_baselines_and_ceiling():
    row, *_ = summarise(
        [prediction(0, 20.0, bicubic=10.0, nothing=1.0), prediction(1, 30.0, bicubic=30.0, nothing=2.0)]
    )
    assert (row.n, row.value, row.ceiling) == (2, 25.0, 40.0)
    assert row.baselines == {"bicubic": 20.0, "nothing": 1.5} and row.baseline == ("bicubic", 20.0)
    assert 20.0 <= row.low < row.value < row.high <= 30.0


def test_items_without_a_number_do_not_count_anywhere():
    row, *_ = summarise([prediction(0, 20.0, bicubic=10.0), prediction(1, float("nan"), bicubic=30.0)])
    assert (row.n, row.value, row.baselines) == (1, 20.0, {"bicubic": 10.0})


def test_groups_are_rows_unless_they_hold_everything():
    ones = [prediction(n, 1.0 * n, groups=["everywhere", "ab"[n % 2]]) for n in range(4)]
    rows = summarise(ones)
    assert [(row.group, row.n, row.value) for row in rows] == [("all", 4, 1.5), ("a", 2, 1.0), ("b", 2, 2.0)]


def test_rows_come_by_task_then_section_then_group():
    ones = [
        prediction(n, 1.0, task=task, section=section, groups=[f"g{n}"])
        for section in ("test", "test_subject") for task in ("vqa", "sr4") for n in range(2)
    ]  # fmt: skip
    rows = [(row.task, row.section, row.group) for row in summarise(ones)]
    assert rows == [
        (t, s, g) for t in ("vqa", "sr4") for s in ("test", "test_subject") for g in ("all", "g0", "g1")
    ]


def test_the_interval_is_that_of_the_mean():
    values = np.random.default_rng(0).normal(5.0, 2.0, 400)
    low, high = interval(values, seed=1)
    error = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - error, abs=0.05)
    assert high == pytest.approx(values.mean() + error, abs=0.05)
    assert interval(values, seed=1) == (low, high) != interval(values, seed=2)
    assert interval([3.0]) == (3.0, 3.0)


def test_a_report_comes_back_as_it_was_saved(tmp_path):
    first = report(
        [prediction(0, 20.25, groups=["a"]), prediction(1, float("nan"), groups=["b"]), prediction(2, 21.5)]
    )
    first.images["test/sr4/4 steps"] = torch.arange(12, dtype=torch.uint8).view(1, 3, 2, 2)
    again = Report.load(first.save(tmp_path / "deep" / "out"))
    assert again.rows == first.rows and again.about == first.about
    assert again.predictions[1]["scores"] == {"PSNR": None} and again.predictions[0] == first.predictions[0]
    assert torch.equal(again.images["test/sr4/4 steps"], first.images["test/sr4/4 steps"])
    assert summarise(again.predictions) == first.rows  # the predictions alone give the table again
    assert (tmp_path / "deep" / "out" / "table.md").read_text() == first.table() + "\n"
    saved = json.loads((tmp_path / "deep" / "out" / "report.json").read_text())
    assert saved["rows"][0]["baseline"] == ["bicubic", 20.0]
    assert not [path for path in (tmp_path / "deep" / "out").iterdir() if path.name.startswith("tmp")]


def test_a_prediction_file_that_cannot_be_written_is_said(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # as where it is not installed
    (tmp_path / "predictions.parquet").write_text("of an earlier run")
    made = report([prediction(0, 21.0)])
    out = made.save(tmp_path)
    assert not (out / "predictions.parquet").exists() and (out / "report.json").is_file()
    assert made.about["left_out"] == Report.load(out).about["left_out"] == caplog.messages[0]
    for card in (hub_card(made, "m", []), mi_claim_gen(made, "m", [])):
        assert "predictions.parquet" not in card
    assert "`asked` in predictions.jsonl" in mi_claim_gen(made, "m", [])
    assert caplog.messages == [
        "predictions.parquet is left out: A prediction file needs pyarrow, which is not installed: "
        "pip install 'monai-unimedvl[data]'."
    ]


def test_a_folder_without_a_report_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"holds no report.json: write one with `unimedvl evaluate"):
        Report.load(tmp_path)


def test_a_row_is_found_by_name_and_the_first_setting_is_the_default():
    found = report([prediction(0, 1.0), prediction(0, 2.0, setting="1 step")])
    assert found.find("sr4", "PSNR").setting == "4 steps"
    assert found.find("sr4", "PSNR", setting="1 step").value == 2.0
    with pytest.raises(ValueError, match="no row for sr4, SSIM, test, all: it has sr4 PSNR"):
        found.find("sr4", "SSIM")


def test_the_table_is_markdown_and_groups_can_be_left_out():
    found = report([prediction(n, 20.0 + n, groups=[f"g{n}"], bicubic=18.0, nothing=19.0) for n in range(2)])
    head, rule, first, *rest = found.table().splitlines()
    assert head.count("|") == rule.count("|") == first.count("|") == 9
    assert (
        first.startswith("| sr4 | test | all | PSNR, 4 steps | 2 | 20.50 (")
        and "nothing 19.00, bicubic 18.00" in first
    )
    assert len(rest) == 2


def test_the_short_table_shows_defaults_and_chosen_groups_and_the_notes_stand_below():
    ones = [
        prediction(n, 1.0, groups=["plane" if n else "body"], setting=setting, task=task)
        for task in ("sr4", "h-to-he")
        for setting in ("4 steps", "1 step")
        for n in range(2)
    ]
    found = Report(summarise(ones), ones, {"notes": "What it means."})
    short = found.table(groups=False).splitlines()
    assert [line.split(" | ")[0:3] for line in short[2:5]] == [
        ["| sr4", "test", "all"], ["| sr4", "test", "body"], ["| sr4", "test", "plane"],
    ]  # fmt: skip
    assert short[5].startswith("| h-to-he | test | all |") and short[6:] == ["", "What it means."]
    assert "1 step |" not in found.table(groups=False) and "1 step |" in found.table()


def test_a_table_is_filled_between_its_marks_again_and_again(tmp_path):
    path = tmp_path / "README.md"
    path.write_text("# A\n<!-- numbers -->\nold\n<!-- /numbers -->\nend\n")
    for table in ("| a |", "| b |\n"):
        fill(path, "numbers", table)
    assert path.read_text() == "# A\n<!-- numbers -->\n\n| b |\n\n<!-- /numbers -->\nend\n"


@pytest.mark.parametrize(
    "text", ["", "<!-- t -->", "<!-- /t --><!-- t -->", "<!-- t --><!-- t --><!-- /t -->"]
)
def test_a_file_without_one_pair_of_marks_is_told_and_left_alone(tmp_path, text):
    path = tmp_path / "README.md"
    path.write_text(text)
    with pytest.raises(ValueError, match="not one pair of lines <!-- t --> and <!-- /t -->"):
        fill(path, "t", "| b |")
    assert path.read_text() == text
