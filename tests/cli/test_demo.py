# SPDX-License-Identifier: Apache-2.0
"""The demo's page on a random network and a handful of made-up items: whole, marked, and one file."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from monai_unimedvl import bundle
from monai_unimedvl.cli import demo as pages
from monai_unimedvl.cli.demo import every_section, foot, glance, lead
from monai_unimedvl.cli.stage import NAMES, PACKAGES, STEPS, TASKS, Stage
from monai_unimedvl.data.atlas import INSTRUCTIONS, LEGENDS
from monai_unimedvl.data.fetch import licences
from monai_unimedvl.evaluation import AtlasBenchmark, Report
from monai_unimedvl.evaluation.image import paint
from monai_unimedvl.evaluation.page import Card, Figure, Section, markdown_tables, page
from monai_unimedvl.evaluation.tables import Row
from monai_unimedvl.provenance import Facts
from monai_unimedvl.provenance.files import CHUNK
from monai_unimedvl.sequence import Turn

SECTIONS = ("train", "test", "test_subject")
ASKED = ("vqa", "caption", "text-to-image", "seg-tissue", "sr4", "t1-to-gm", "h-to-ihc")


def items(section):
    """One item of each of some tasks on each of three pictures."""
    generator = torch.Generator().manual_seed(SECTIONS.index(section))
    found = []
    for n in range(3):
        picture = torch.rand(3, 8, 8, generator=generator).repeat_interleave(8, 1).repeat_interleave(8, 2)
        plane = ("axial", "coronal")[n % 2]
        mask = (picture[0] > 0.5).to(torch.uint8) + (picture[1] > 0.8)
        caption = f"{plane.capitalize()} T1 MRI of the head <b>."
        truths = {"vqa": plane, "caption": caption, "seg-tissue": paint(mask[None], LEGENDS["seg-tissue"])[0]}
        for task in ASKED:
            words = {"vqa": "Which plane is this?", "text-to-image": caption}.get(task) or INSTRUCTIONS[task]
            truth = truths.get(task, picture.flip(0))
            shown = [] if task == "text-to-image" else [picture]
            name = f"{task}/icbm09a/{section}-{n}" + ("/plane" if task == "vqa" else "")
            found.append(
                {
                    "id": name, "task": task, "section": section, "source": "icbm09a", "subject": "s",
                    "modality": "MRI", "contrast": "T1", "plane": plane, "balanced": task == "vqa",
                    "question": "plane" if task == "vqa" else "", "truth": truth,
                    "turns": [Turn("user", [*shown, words]), Turn("assistant", [truth])],
                    "kind": "text" if isinstance(truth, str) else "image",
                    "baseline": picture * 0.5 if task == "sr4" else None,
                    "mask": mask if task == "seg-tissue" else None,
                }
            )  # fmt: skip
    return found


@pytest.fixture(scope="module")
def stage(model):
    data = {section: items(section) for section in SECTIONS}
    bench = AtlasBenchmark(datasets=data, tasks=ASKED, progress=False)
    bench.missing = ["spm-runtime", "stardist"]
    network, tokenizer = bundle.load(model)
    return Stage(network, tokenizer, str(model), seed=0, shown=1, benchmark=bench)


@pytest.fixture(scope="module")
def html(stage):
    return page("Demo", lead(stage), every_section(stage), foot(stage, 1.0))


def test_every_section_is_on_the_page(html):
    headings = re.findall(r"<h2>(.+?)</h2>", html)
    wanted = ["At a glance", "Questions", "One unified case", "Descriptions", "Drawn from words", *TASKS]
    assert headings == [*wanted, "Where it fails", "Where the scans come from"]
    assert set(re.findall(r'href="#([\w-]+)"', html)) == set(re.findall(r'section id="([\w-]+)"', html))


def test_the_page_is_one_well_formed_file_that_loads_nothing(html):
    assert not re.search(r"https?://|<script|<link|url\(|@import", html)
    assert set(re.findall(r'src="(data:image/png;base64)?', html)) == {"data:image/png;base64"}

    class Reader(HTMLParser):
        open_tags: list[str] = []

        def handle_starttag(self, tag, attrs):
            if tag not in ("meta", "img"):
                self.open_tags.append(tag)

        def handle_endtag(self, tag):
            assert self.open_tags.pop() == tag

    reader = Reader()
    reader.feed(html)
    assert not reader.open_tags
    assert "head &lt;b&gt;." in html and "head <b>." not in html


def test_what_the_model_drew_is_marked_outside_and_inside_and_nothing_else_is(html, stage):
    figures = re.findall(r'<figure class="(\w+)">(.+?)</figure>', html, re.S)
    assert {kind for kind, _ in figures} == {"made", "real"}
    for kind, body in figures:
        text = Image.open(io.BytesIO(base64.b64decode(re.search(r"base64,([^\"]+)", body)[1]))).text
        assert (">synthetic<" in body) == (kind == "made") == (text.get("Synthetic") == "true")
        if kind == "made":
            mark = json.loads(text[CHUNK])
            assert mark["weights"] == stage.hash and mark["prompt"] == text["Prompt"] != ""
            assert isinstance(mark["seed"], int)


def test_scores_stand_beside_baselines_credits_and_absent_sources(html, stage):
    rows = glance(stage)
    assert len(rows) == 1 + 2 * len(ASKED)
    assert {row[0] for row in rows[1:]} == {NAMES[task] for task in ASKED}
    for word in ("lookup", "bicubic", "identity", "blind", "ceiling", "usual answer", "nearest"):
        assert word in html, word
    assert html.count('class="credit"') >= 8 and "nilearn" in html
    assert "2 sources are absent here" in html and "unimedvl data fetch-atlas" in html
    assert html.count(">absent<") == 2 and "Not here, because their scans are absent" in html
    assert "seed 0" in html and stage.hash[:16] in html and "nothing here is for diagnosis" in html


def test_the_seed_in_a_picture_is_the_seed_it_was_drawn_with(stage):
    found = stage.of("sr4")[0]
    item = stage.items[found["id"]]
    again = pages.ImageInferer(stage.tokenizer, size=(64, 64), steps=STEPS, seed=stage.facts(found).seed)
    drawn = again([item["turns"][0].parts], stage.network)[0]
    assert (drawn - stage.image(found)).abs().max() <= 0.5 / 255 + 1e-5


def test_the_worst_case_of_each_task_is_among_the_failures(stage):
    failures = pages.failures(stage)
    for task in ("seg-tissue", "sr4"):
        metric = "Dice" if task in LEGENDS else "PSNR"
        worst = min(stage.of(task), key=lambda found: found["scores"][metric] - stage.baseline(found)[1])
        assert any(card.credit.startswith(worst["id"]) for card in failures.cards)
    assert any(card.title == "Wrong answers" for card in failures.cards)


def test_each_task_has_as_many_cases_as_asked_and_one_that_failed(stage):
    whole = Stage(stage.network, stage.tokenizer, stage.model, seed=0, shown=3, benchmark=stage.bench)
    whole.report = stage.report  # what was made for one case of each is enough for three
    sections = [pages.descriptions(whole), pages.drawings(whole)]
    sections += [pages.edits(whole, title, tasks) for title, tasks in TASKS.items()]
    credits = [card.credit.split(" ")[0] for section in sections if section for card in section.cards]
    assert len(set(credits)) == len(credits)
    for task in set(ASKED) - {"vqa"}:
        assert sum(name.startswith(f"{task}/") for name in credits) == 3, task
    failed = [card.credit.split("/")[0] for card in pages.failures(whole).cards]
    assert {"caption", "text-to-image", "seg-tissue", "sr4", "t1-to-gm", "h-to-ihc"} <= set(failed)


def test_the_worst_of_all_items_comes_from_the_papers_of_the_same_weights(stage, monkeypatch):
    listed = {"sr4": [{"id": "sr4/elsewhere/9"}, {"id": "sr4/icbm09a/test-1"}], "vqa": []}
    papers = Report([], [], {"weights": stage.hash, "worst": listed})
    monkeypatch.setattr(bundle, "scores", lambda path: papers)
    fresh = Stage(stage.network, stage.tokenizer, stage.model, seed=0, shown=1, benchmark=stage.bench)
    fresh.report = stage.report
    assert fresh.known_worst == {"sr4": "sr4/icbm09a/test-1"}, "an item that is not here is passed over"
    found, whole = fresh.worst("sr4")
    assert whole and found["id"] == "sr4/icbm09a/test-1" and not fresh.worst("seg-tissue")[1]
    same = next(one for one in stage.report.predictions if one["id"] == found["id"])
    assert found["scores"]["PSNR"] == pytest.approx(same["scores"]["PSNR"], abs=0.05)
    assert (fresh.image(found) - stage.image(same)).abs().max() <= 1 / 255 + 1e-6
    assert "all held-out items for 1 tasks" in pages.failures(fresh).about
    papers.about["weights"] = "another"
    other = Stage(stage.network, stage.tokenizer, stage.model, seed=0, shown=1, benchmark=stage.bench)
    assert other.known_worst == {}, "papers of other weights say nothing of these"


def test_the_demo_writes_the_page_and_its_manifest(command, stage, monkeypatch, tmp_path):
    monkeypatch.setattr(pages, "Stage", lambda *arguments: stage)
    code, out, _ = command("demo", "--out", tmp_path / "demo", "--quiet")
    assert code == 0 and "index.html" in out and "absent sources: spm-runtime, stardist" in out
    assert {path.name for path in (tmp_path / "demo").iterdir()} == {"index.html", "index.html.json"}


def test_tables_of_scores_come_over_and_nothing_else():
    text = "# Nano\n\nWords.\n\n## Scores <a>\n\n| task | metric |\n|---|--:|\n| `vqa` | 0.7 |\n\n"
    text += "| part | of |\n|---|---|\n| no | score |\n"
    html = markdown_tables(text)
    assert html.count("<table>") == 1 and "Scores &lt;a&gt;" in html and '<td class="">vqa</td>' in html
    assert "Words." not in html and "score<" not in html and "---" not in html
    assert "Measured" in page("t", [], [Section("Measured", "about", markdown=html)], [])


def test_joint_against_separate_has_a_section_of_its_own(stage, monkeypatch, tmp_path):
    table = "| task | metric | value |\n|---|---|---|\n| {} | Dice | 0.5 |\n"
    (tmp_path / "docs").mkdir()
    paper = tmp_path / "docs" / "README.md"
    monkeypatch.setattr(bundle, "find", lambda path: tmp_path)
    joint = f"<!-- joint -->\n\nNull too.\n\n{table.format('vqa')}\n<!-- /joint -->"
    paper.write_text(f"## Scores\n\n{table.format('seg')}\n{joint}")
    section = pages.joint(stage)
    assert section.about == "Null too." and "vqa" in section.markdown and "seg" not in section.markdown
    assert "vqa" not in pages.measured(stage).markdown and "seg" in pages.measured(stage).markdown
    paper.write_text(table)
    assert pages.joint(stage) is None


def test_every_source_of_the_corpus_has_a_credit():
    known = {row[0] for row in licences()}
    assert set(PACKAGES.values()) <= known


def test_a_score_says_in_signs_whether_it_beats_the_baseline():
    image = torch.zeros(3, 8, 8)
    facts = Facts("p", 0, "w")
    figures = [
        Figure(image, "a", "1.0", True, facts),
        Figure(image, "b", "0.5", False),
        Figure(image, "c", "0.7", "even"),
        Figure(image, "d", "x"),
    ]
    html = page("t", [], [Section("s", "a", [Card("c", figures)])], [])
    assert re.findall(r'score( good| bad|)">(\u25b2 |\u25bc |= |)', html) == [
        (" good", "\u25b2 "),
        (" bad", "\u25bc "),
        ("", "= "),
        ("", ""),
    ]


@pytest.mark.parametrize(
    ("value", "baselines", "sign"),
    [(0.714, {"blind": 0.711}, "= 0.71"), (0.72, {"blind": 0.71}, "\u25b2 0.72"),
     (0.70, {"blind": 0.71}, "\u25bc 0.70"), (0.70, {}, "0.70")],
)  # fmt: skip
def test_a_score_that_reads_like_its_baseline_is_neither_above_nor_below(value, baselines, sign):
    row = Row("seg-tissue", "test", "all", "4 steps", "Dice", 3, value, value, value, baselines)
    told, stands = glance(SimpleNamespace(report=Report([row], [], {})))[1][3]
    assert told == sign and stands == {"\u25b2": True, "\u25bc": False, "=": "even"}.get(sign[0])


@pytest.mark.slow
def test_the_demo_needs_nothing_but_nilearn_and_scikit_image(command, monkeypatch, tmp_path):
    pytest.importorskip("nilearn")
    pytest.importorskip("skimage")
    monkeypatch.setenv("UNIMEDVL_CACHE", str(tmp_path / "cache"))
    code, out, err = command("demo", "--out", tmp_path / "demo", "--cases", "1")
    assert code == 0, err
    html = (tmp_path / "demo" / "index.html").read_text("utf8")
    for title in ("Questions", "One unified case", "Drawn from words", *TASKS, "Where it fails"):
        assert f"<h2>{title}</h2>" in html
    assert "spm-runtime" in out and "GPL-2.0" in html and html.count(">absent<") >= 8
