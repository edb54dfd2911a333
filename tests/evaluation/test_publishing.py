# SPDX-License-Identifier: Apache-2.0
"""The page, the slices and the cards of a run on a tiny network and made-up items."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch
import yaml
from atlas_items import items
from PIL import Image

from monai_unimedvl.evaluation import AtlasBenchmark, Drawing, Report
from monai_unimedvl.evaluation.cards import ASK, open_questions
from monai_unimedvl.evaluation.charts import scores_chart, verdict
from monai_unimedvl.evaluation.examples import difference
from monai_unimedvl.evaluation.publishing import publish, refusals
from monai_unimedvl.evaluation.tables import Row
from monai_unimedvl.provenance import examine

VOID = {"meta", "img", "line", "circle", "polyline", "br"}


class Reader(HTMLParser):
    """Whether every tag is closed in order, and what is loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loaded: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.loaded += [value for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def report(model):
    data = {section: items(section, 8) for section in ("train", "test")}
    benchmark = AtlasBenchmark(datasets=data, sections=("test",), progress=False)
    return benchmark.run(*model, drawing=Drawing(1, 1.0), steps=(2, 1), limit=8, progress=False)


@pytest.fixture(scope="module")
def folder(report, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    report.save(out)
    publish(report, out, name="tiny")
    return out


def test_the_page_is_one_well_formed_file_that_loads_nothing(folder):
    reader = Reader()
    reader.feed((folder / "index.html").read_text("utf8"))
    assert not reader.open
    assert all(link.startswith(("data:image/png", "#")) for link in reader.loaded)
    text = " ".join(reader.text)
    for heading in (
        "At a glance", "Answers and how sure they are", "Edits and masks", "Descriptions",
        "Drawn from words", "Slices and warnings", "Privacy audit", "How it was done",
    ):  # fmt: skip
        assert heading in text
    for baseline in ("blind", "bicubic", "lookup", "identity", "usual kind"):
        assert baseline in text
    assert "limited to 8 items" in text and "nan" not in text


def test_what_was_drawn_is_marked_in_its_own_bytes_and_the_page_in_its_own(folder, tmp_path):
    html = (folder / "index.html").read_text("utf8")
    made = re.findall(r'<figure class="made">.*?base64,([^"]+)"', html)
    real = re.findall(r'<figure class="real">.*?base64,([^"]+)"', html)
    assert len(made) >= 8 + 2 * 9 and len(real) > 8
    for raw, synthetic in ((made[0], True), (real[0], False)):
        picture = Image.open(io.BytesIO(base64.b64decode(raw)))
        assert (picture.info.get("Synthetic") == "true") == synthetic
    assert examine(folder / "index.html").case == "marked"


def test_the_worst_and_the_best_are_shown_by_score(report):
    shown = [one for one in report.examples if one.task == "sr4"]
    scores = sorted(
        one["scores"]["PSNR"] for one in report.predictions
        if one["task"] == "sr4" and one["setting"] == "2 steps"
    )  # fmt: skip
    assert [one.why for one in shown] == ["worst", "middle", "best"]
    assert [one.score for one in shown] == [f"{scores[n]:.1f} dB" for n in (0, 4, 7)]
    assert len([one for one in report.examples if one.task == "text-to-image"]) == 8


def test_the_drawings_as_a_set_have_rows_and_an_audit(report):
    rows = {row.metric: row for row in report.rows if "random training images" in row.baselines}
    assert set(rows) == {"Frechet distance", "MMD", "precision", "recall", "density", "coverage"}
    assert rows["coverage"].n == 8 and report.about["audits"]["test"]["verdict"] in ("undecided", "failed")
    assert any("judge of contrast and plane: 8 images" in line for line in report.about["warnings"])
    assert "| recall" in report.table() and "| recall" not in report.table(groups=False)
    assert "| MMD" in report.table(groups=False)


def test_the_model_card_is_filled_from_the_run(folder, report):
    text = (folder / "model_card.md").read_text("utf8")
    front = yaml.safe_load(text.split("---\n")[1])
    index = front["model-index"][0]
    assert index["name"] == "tiny" and front["license"] == "apache-2.0"
    vqa = next(one for one in index["results"] if one["task"]["name"] == "vqa")
    row = report.find("vqa", "exact match")
    assert vqa["metrics"][0]["value"] == pytest.approx(row.value, abs=1e-6)
    assert f"n {row.n}" in vqa["metrics"][0]["name"] and vqa["dataset"]["split"] == "test"
    assert f"gate **{report.about['audits']['test']['verdict']}**" in text
    assert report.about["weights"] in text and "no medical device" in text


def test_the_checklist_says_what_people_must_still_answer(folder):
    text = (folder / "mi_claim_gen.md").read_text("utf8")
    assert [line for line in text.splitlines() if line.startswith("## ")][0] == "## 1. Study design"
    assert text.count("\n## ") == 6 and open_questions(text) == text.count(ASK) > 8
    assert "bicubic" in text and "Not measured: no question is about counting" in text


def test_other_tables_hold_the_same_rows(folder, report):
    lines = (folder / "table.csv").read_text("utf8").splitlines()
    assert len(lines) == 1 + sum(max(1, len(row.baselines)) for row in report.rows)
    tex = (folder / "table.tex").read_text("utf8")
    assert tex.startswith(r"\begin{tabular}") and r"value (95 \%)" in tex and r"test\_subject" not in tex
    assert "known failure" not in tex
    slices = (folder / "slices.csv").read_text("utf8")
    assert "modality: MRI" not in slices  # all items are: no row of its own
    assert "vqa,test,anatomy: chest,,exact match,4," in slices
    assert "vqa,test,all,,exact match,8," in slices


def test_a_report_with_nothing_drawn_and_nothing_said_has_a_page_all_the_same(tmp_path):
    about = {"benchmark": "own", "seed": 0, "limit": None}
    publish(Report([], [one_prediction()], about), tmp_path, name="m")
    html = (tmp_path / "index.html").read_text("utf8")
    assert "1 predictions on own, every item" in html and "Privacy audit" not in html
    assert "Not done" in (tmp_path / "model_card.md").read_text("utf8")


def one_prediction():
    return {
        "id": "1", "task": "mask", "section": "val", "groups": [], "setting": "", "scores": {"Dice": 0.5},
        "baselines": {}, "ceiling": {},
    }  # fmt: skip


def test_a_refuse_threshold_is_chosen_on_one_half_and_told_on_the_other(report):
    found = []
    for n in range(400):
        right = float(n % 10 != 0 or n % 3 == 0)
        found.append(
            one_prediction()
            | {"id": str(n), "task": "vqa", "truth": "a", "said": "a", "picture": str(n), "tokens": 1}
            | {"logprob": -0.01 if right else -2.0, "scores": {"exact match": right}, "stop_reason": "end"}
        )
    lines = refusals(replace(report, predictions=found))
    assert (
        "answer from 0.990 on" in lines[0] and "0.0% of them wrong." in lines[0] and "other half" in lines[0]
    )


def test_a_row_beats_its_baseline_only_with_its_whole_interval():
    row = Row("sr4", "test", "all", "", "PSNR", 9, 25.0, 24.0, 26.0, {"a": 23.0, "b": 24.5})
    assert verdict(row) == ""
    assert verdict(replace(row, baselines={"a": 23.0})) == "above"
    assert verdict(replace(row, baselines={"a": 27.0, "b": 1.0})) == "below"
    assert verdict(replace(row, metric="HD95", baselines={"a": 27.0})) == "above"
    assert verdict(replace(row, baselines={})) == ""
    chart = scores_chart([row], 20, 30, 5, " dB")
    assert (
        "a 23.00" in chart
        and "30 dB" in chart
        and "25.00  (n 9)" in chart
        and scores_chart([], 0, 1, 1) == ""
    )


def test_a_difference_map_is_black_where_nothing_differs_and_white_from_half_the_range():
    drawn = torch.tensor([0.5, 1.0, 0.6]).expand(3, 1, 3)
    found = difference(drawn, torch.full((3, 1, 3), 0.5))
    assert found[:, 0, 0].tolist() == [0, 0, 0] and found[:, 0, 1].tolist() == [1, 1, 1]
    assert found[0, 0, 2] == pytest.approx(0.6) and found[1, 0, 2] == 0


def test_a_prediction_file_of_the_run_is_whole(folder, report):
    pytest.importorskip("pyarrow", reason="prediction files are Parquet")
    from monai_unimedvl.evaluation.predictions import read_predictions

    found = read_predictions(folder / "predictions.parquet")
    assert len(found) == len(report.predictions) and found.about["benchmark"] == "atlas-v1"
    row = next(one for one in found.rows if one.task == "vqa")
    assert row.prompt.startswith("<image> ") and row.tokens and row.logprob < 0 and len(row.weights) == 64
    drawn = next(one for one in found.rows if one.task == "sr4")
    assert drawn.drawn.startswith("images.safetensors#test/sr4/2 steps#") and drawn.seed
    assert json.loads((folder / "report.json").read_text())["about"]["weights"] == row.weights
