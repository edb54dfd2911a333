# SPDX-License-Identifier: Apache-2.0
"""Question b in short, for the project's README and the demo page: reading and drawing, together or apart."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from monai_unimedvl.evaluation.report import fill
from monai_unimedvl.evaluation.tables import number
from science import plan
from science.comparisons import LABELS, Line, Results, signed
from science.plan import Question
from science.report import markdown

ROOT = Path(__file__).resolve().parents[3]
PAPERS = (ROOT / "README.md", ROOT / "bundles" / "unimedvl_nano" / "docs" / "README.md")
WHOLE = ("joint", "understanding", "generation")  # the arms without which there is nothing to say
HALVES = ("understanding-half", "generation-half")
KINDS = {"updates": WHOLE[1:], "total": HALVES}  # what the specialists have equal to the joint run
ABOUT = """{conclusion} Networks of {size} numbers a token, seeds: {seeds}, all from one pretrained vision
encoder; a sample of held-out items, scores are means over seeds. "Apart": one network that only learns to
read, another that only learns to draw. With equal updates each of them has the {steps} of the one that
learns both, so the two cost {double} together; with equal total they share as many ({halves}), and each
sees as many samples of its own tasks as the joint one does. "Better" names a side where the difference is
unlikely by chance over images (p < 0.05, Holm) and all seeds agree; an empty cell is no proof of
equality. Images are often neighbouring slices of the few volumes that are counted here. All arms, seeds
and p: question b of `tests/benchmarks/science`, whose `run.py --report` wrote this."""


def table(here: Path) -> str:
    """Question b in short, in words and one table, from the results in a folder."""
    question, results = plan.question("b", here / "configs"), Results(here / "results")
    found: dict[tuple[str, str], dict[str, Line]] = {}
    for line in results.lines(question):
        kind = next(kind for kind, firsts in KINDS.items() if line.first in firsts)
        found.setdefault((line.place, line.metric), {})[kind] = line
    rows = [[
        "task", "tested on", "metric", "volumes", "together", "apart, equal updates each",
        "apart, equal in total", "together less apart, equal updates each (95 %)", "better",
        "together less apart, equal in total (95 %)", "better",
    ]]  # fmt: skip
    for (place, metric), each in found.items():
        section, task = place.split("/")
        cells = {kind: _against(metric, line) for kind, line in each.items()}
        apart = {kind: number(metric, line.difference.a) for kind, line in each.items()}
        one, none = next(iter(each.values())), ["not run", ""]
        rows.append([
            task, LABELS[section], metric, str(len(one.volumes)), number(metric, one.difference.b),
            apart.get("updates", "not run"), apart.get("total", "not run"), *cells.get("updates", none),
            *cells.get("total", none),
        ])  # fmt: skip
    return textwrap.fill(about(question, results), 116, break_on_hyphens=False) + "\n\n" + markdown(rows)


def about(question: Question, results: Results) -> str:
    """The paragraph above the table, its conclusion first."""
    training = question.arms["joint"].config
    run = [len(results.of(question.arms[name], question.seeds)) for name in WHOLE]
    steps = training["training"]["steps"]
    halves = [question.arms[name].config["training"]["steps"] for name in HALVES]
    said = conclusion(results.lines(question))
    return ABOUT.format(
        conclusion=said, size=training["network"]["hidden_size"], seeds=min(run),
        steps=steps, double=sum(question.arms[name].config["training"]["steps"] for name in WHOLE[1:]),
        halves=" + ".join(map(str, halves)),
    )  # fmt: skip


def conclusion(lines: Sequence[Line]) -> str:
    """What the verdicts of all rows come to, in sentences; nothing where an arm has not run."""
    told, better = [], 0
    for kind, words in (("updates", "for each network"), ("total", "in total")):
        here = [line for line in lines if line.first in KINDS[kind]]
        sides = {side: [line for line in here if line.verdict == side] for side in ("first", "second")}
        if not here:
            return ""
        better += len(sides["second"]) if kind == "updates" else 0
        told.append(
            f"With equal updates {words}, joint training is worse in {len(sides['first'])} of {len(here)}"
            f" rows and better in {len(sides['second'])}; Student's interval over seeds leaves out zero in"
            f" {sum(line.told_by_seeds for line in sides['first'])} and"
            f" {sum(line.told_by_seeds for line in sides['second'])} of these."
        )
    shown = f"Transfer is seen in {better} rows." if better else "No transfer is shown."
    return f"{shown} {' '.join(told)}"


def _against(metric: str, line: Line) -> list[str]:
    """A difference with its interval, and who is better."""
    told = line.difference
    value, low, high = (signed(metric, x) for x in (told.value, told.low, told.high))
    side = {"first": "apart", "second": "together"}.get(line.verdict, "")
    return [f"{value} ({low} to {high})", side]


def write_all(here: Path, papers: Sequence[Path] = PAPERS) -> None:
    """Put it into the papers that have a pair of lines `<!-- joint -->` and `<!-- /joint -->`."""
    for paper in papers:
        if "<!-- joint -->" in paper.read_text("utf8"):
            fill(paper, "joint", table(here))
