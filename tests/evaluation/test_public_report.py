# SPDX-License-Identifier: Apache-2.0
"""The page of a run on a public benchmark: every protocol, pictures beside truths, no word of the atlas."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="the layouts are Parquet")
pytest.importorskip("sacrebleu", reason="extra eval: reports are measured by it")
from layouts import bci, lay, png, slake  # noqa: E402

from monai_unimedvl.evaluation.counting import count  # noqa: E402
from monai_unimedvl.evaluation.predictions import Prediction, Predictions  # noqa: E402
from monai_unimedvl.evaluation.public_report import report_of, scored, write_report  # noqa: E402
from monai_unimedvl.evaluation.readers import Benchmark, read_benchmark  # noqa: E402

ABOUT = {"limit": None, "seed": 0, "batch": 1, "drawing": "4 steps", "weights": "ab" * 32, "torch": "2",
         "protocol": "strict-v1 1"}  # fmt: skip


def answered(benchmark, answers, **more):
    items = zip(benchmark.items, answers, strict=True)
    told = {"benchmark": benchmark.name, "section": benchmark.section, **more}
    return Predictions([item.prediction(said, **told) for item, said in items], ABOUT)


def test_words_have_the_score_of_every_protocol_that_counts_them(tmp_path):
    slake(tmp_path)
    benchmark = read_benchmark("slake", tmp_path, items=3)
    made = answered(benchmark, ["yes, abnormal", "\u662f\u7684", "heart and lung"], logprob=-0.1, tokens=2)
    made = scored(made, benchmark, tmp_path)
    assert [row.scores["strict-v1 1"] for row in made.rows] == [1.0, 1.0, 1.0]
    assert [row.scores.get("vila-m3 1") for row in made.rows] == [0.0, None, 0.0]  # English only
    assert not any("vlmevalkit-mcq 1" in row.scores for row in made.rows)  # no choices
    report = report_of(made, benchmark, tmp_path)
    assert report.find("vqa", "strict-v1 1", "test en").n == 2  # languages are never averaged
    assert report.find("vqa", "strict-v1 1", "test zh").n == 1
    assert report.find("vqa", "vila-m3 1", "test en").n == 2
    assert [one.why for one in report.examples] == ["surest right"] * 3
    write_report(report, tmp_path / "out", name="tiny", counts=count(made.rows))
    page = (tmp_path / "out" / "index.html").read_text("utf8")
    assert "surest right, slake test" in page and "judge trained here" not in page
    assert "every item that is here (slake test: 3 items, 3 published)" in page
    assert "1 left out: not English, and of SLAKE it takes English only." in page
    card = (tmp_path / "out" / "model_card.md").read_text("utf8")
    assert "strict-v1 1" in card and "slake test zh" in card
    checklist = (tmp_path / "out" / "mi_claim_gen.md").read_text("utf8")
    assert "fitted on training items" not in checklist and "Not measured: no question is about" in checklist


def test_drawings_stand_beside_their_truth_and_reports_beside_theirs(tmp_path):
    bci(tmp_path)
    for path in tmp_path.rglob("*.png"):
        lay(path, png(90, (32, 16)))
    (item,) = read_benchmark("bci", tmp_path, items=1).items
    np.save(tmp_path / "truth.npy", np.full((3, 160, 320), 0.5, np.float32))
    np.save(tmp_path / "drawn.npy", np.full((3, 16, 32), 0.6, np.float32))  # as large as the network can
    files = {"drawn": "drawn.npy", "truth_image": "truth.npy"}
    row = replace(item.prediction("", benchmark="bci", section="test"), **files)
    told = Prediction(
        "r", truth="No effusion.", answer="no effusion", answer_type="report", task="report", benchmark="bci"
    )
    words = replace(row, id="w", task="text-to-image")
    items = [item, replace(item, id="w", pictures=()), replace(item, id="r")]
    benchmark = Benchmark("bci", "test", items, None, ["IHC/test/gone.png"])
    made = scored(Predictions([row, words, told], ABOUT), benchmark, tmp_path)
    assert made.rows[0].scores["PSNR"] == pytest.approx(20, abs=1e-3) and made.rows[1].scores == {}
    assert made.rows[2].scores["ROUGE-L"] == 1.0
    report = report_of(made, benchmark, tmp_path)
    assert [(one.task, one.why, one.score) for one in report.examples] == [
        ("he-to-ihc", "best", "20.0 dB"), ("text-to-image", "", ""), ("caption", "best", "token F1 1.00"),
    ]  # fmt: skip
    write_report(report, tmp_path / "out", name="tiny")
    page = (tmp_path / "out" / "index.html").read_text("utf8")
    assert page.count('<figure class="made">') == 3  # two drawings and a difference
    assert "1 files missing" in page and "judge trained here" not in page
    alone = replace(report, rows=[], predictions=[words], examples=report.examples[1:2])
    write_report(alone, tmp_path / "words", name="tiny")
    page = (tmp_path / "words" / "index.html").read_text("utf8")
    assert "Drawn from words" in page and "At a glance" not in page and "beats the best" not in page
