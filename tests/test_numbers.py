# SPDX-License-Identifier: Apache-2.0
"""Scores in README, docs and bundles come out of the evaluation run by `unimedvl bundle document`.

The run's rows lie in docs/scores.json of the bundle; every table is made of them again here and must be the
same. Outside of these tables no sentence states a score by hand, but for those that name their own command.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

from monai_unimedvl import bundle
from monai_unimedvl.bundle import places
from monai_unimedvl.evaluation import Report

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"<!-- (scores[\w-]*) -->\n(.*?)<!-- /\1 -->", re.S)
JOINT = re.compile(r"<!-- joint -->\n.*?<!-- /joint -->", re.S)  # filled in by science/run.py --report
METRIC = re.compile(r"\b(PSNR|SSIM|Dice|F1|exact match|accuracy|correlation|dB|Frechet|MMD)\b", re.I)
SCORE = re.compile(r"(?<![\w.])(0\.\d{2,4}|\d{2}\.\d{1,2}(?= ?dB))(?!\w|\.\d)")
OWN_COMMAND = {  # file -> how a line begins that states a number of a run which it names, or a setting
    "docs/TRAINING.md": ("What a minute gives: 90 updates", "(24 items of section `val`"),
    "docs/DATA.md": ("`--distance 16` apart)", "Q-bar: the mean of ratings"),
}
PAGES = ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
PAGES += [str(path.relative_to(ROOT)) for path in sorted((ROOT / "bundles").rglob("*.md"))]
PAGES += ["tutorials/README.md"]


def tables() -> Iterator[tuple[str, str, str]]:
    """(file, marker, content) of every place that a script fills."""
    for page in PAGES:
        for marker, content in BLOCK.findall((ROOT / page).read_text("utf8")):
            yield page, marker, content.strip()


def written() -> Iterator[tuple[str, str]]:
    """(file, line) of what people wrote: pages without filled tables and code, and notebooks."""
    for page in PAGES:
        text = JOINT.sub("", BLOCK.sub("", (ROOT / page).read_text("utf8")))
        yield from ((page, line) for line in re.sub(r"```.*?```", "", text, flags=re.S).splitlines())
    for path in sorted((ROOT / "tutorials").glob("*.ipynb")):
        cells = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "markdown"]
        yield from ((f"tutorials/{path.name}", line) for cell in cells for line in cell.source.splitlines())


def by_hand(lines: Iterator[tuple[str, str]]) -> list[str]:
    """The lines that state a score of some metric, and no run of their own."""
    found = [(page, line) for page, line in lines if METRIC.search(line) and SCORE.search(line)]
    return [f"{page}: {line[:90]}" for page, line in found if not line.startswith(OWN_COMMAND.get(page, ()))]


def test_no_sentence_states_a_score_by_hand() -> None:
    assert not by_hand(written()), "leave the number out, or fill it in by `unimedvl bundle document`"


def test_a_score_by_hand_would_be_seen() -> None:
    lines = [("README.md", "The nano reaches a Dice of 0.81."), ("README.md", "Bicubic is 25.85 dB."),
             ("README.md", "Version 0.69.0 of the viewer, PSNR and SSIM explained.")]  # fmt: skip
    assert len(by_hand(iter(lines))) == 2


@pytest.mark.parametrize("page, marker", sorted({(page, marker) for page, marker, _ in tables()}))
def test_every_table_of_scores_is_that_of_the_run(page: str, marker: str) -> None:
    found = next(content for name, mark, content in tables() if (name, mark) == (page, marker))
    report = bundle.scores(marker)
    assert report is not None, f"docs/{marker}.json is not there: `unimedvl bundle document REPORT`"
    tasks = None
    if page.startswith("bundles/"):
        tasks = bundle.metadata((ROOT / page).parents[1]).get("tasks")
    rows = [row for row in report.rows if tasks is None or row.task in tasks]
    assert found == Report(rows, [], report.about).table(groups=False).strip()


@pytest.mark.parametrize("name", bundle.available())
def test_the_metrics_of_a_bundle_are_those_of_the_run(name: str) -> None:
    content, report = bundle.metadata(name), bundle.scores()
    readme = (places.BUNDLES / name / "docs" / "README.md").read_text("utf8")
    if "<!-- scores -->" not in readme:
        assert not content.get("eval_metrics"), "metrics without a table"
        return
    assert report is not None
    tasks = content.get("tasks")
    assert content["eval_metrics"] == {
        ", ".join(filter(None, [row.task, row.metric, row.section, row.setting])): round(row.value, 4)
        for row in report.rows
        if row.group == "all" and (tasks is None or row.task in tasks)
    }


def test_the_papers_name_the_worst_item_of_every_task() -> None:
    report = bundle.scores()
    assert report is not None
    worst = report.about["worst"]
    assert set(worst) == {row.task for row in report.rows}
    assert all(found and found == sorted(found, key=lambda one: one["rank"]) for found in worst.values())
