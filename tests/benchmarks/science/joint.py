# SPDX-License-Identifier: Apache-2.0
"""Question b in short, for the project's README and the demo page: reading and drawing, together or apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from monai_unimedvl.evaluation.intervals import holm
from monai_unimedvl.evaluation.report import fill
from monai_unimedvl.evaluation.tables import number
from science import plan
from science.report import LABELS, Line, Results, markdown, signed, verdict

ROOT = Path(__file__).resolve().parents[3]
PAPERS = (ROOT / "README.md", ROOT / "bundles" / "unimedvl_nano" / "docs" / "README.md")
WHOLE = ("joint", "understanding", "generation")  # the arms without which there is nothing to say
ABOUT = """Networks of {size} numbers a token, {steps} updates each, seeds: {seeds}, all from one pretrained
vision encoder; a sample of held-out items, scores are means over seeds. "Apart": one network that only learns
to read, another that only learns to draw, each with as many updates as the one that learns both (equal
compute), or with as many samples of its own tasks (about half the updates). "Better" names a side where the
difference is unlikely by chance (p < 0.05, Holm) and all seeds agree; an empty cell is no proof of equality.
All arms, seeds and p: question b of `tests/benchmarks/science`, whose `run.py --report` wrote this."""


def table(here: Path) -> str:
    """Question b in short, in words and one table, from the results in a folder."""
    question, results = plan.question("b", here / "configs"), Results(here / "results")
    lines = results.lines(question)
    adjusted = holm({str(n): line.difference.p for n, line in enumerate(lines)})
    found: dict[tuple[str, str], dict[str, tuple[Line, float]]] = {}
    for n, line in enumerate(lines):
        kind = "samples" if line.first.endswith("-half") else "compute"
        found.setdefault((line.place, line.metric), {})[kind] = (line, adjusted[str(n)])
    rows = [[
        "task", "tested on", "metric", "together", "apart, equal compute", "apart, as many samples",
        "together less apart, equal compute (95 %)", "better", "together less apart, as many samples (95 %)",
        "better",
    ]]  # fmt: skip
    for (place, metric), each in found.items():
        section, task = place.split("/")
        cells = {kind: _against(metric, *one) for kind, one in each.items()}
        apart = {kind: number(metric, line.difference.a) for kind, (line, _) in each.items()}
        together = number(metric, next(iter(each.values()))[0].difference.b)
        none = ["not run", ""]
        rows.append([
            task, LABELS[section], metric, together, apart.get("compute", "not run"),
            apart.get("samples", "not run"), *cells.get("compute", none), *cells.get("samples", none),
        ])  # fmt: skip
    training = question.arms["joint"].config
    run = [len(results.of(question.arms[name], question.seeds)) for name in WHOLE]
    size, steps = training["network"]["hidden_size"], training["training"]["steps"]
    return ABOUT.format(size=size, steps=steps, seeds=min(run)) + "\n\n" + markdown(rows)


def _against(metric: str, line: Line, adjusted: float) -> list[str]:
    """A difference with its interval, and who is better."""
    told = line.difference
    value, low, high = (signed(metric, x) for x in (told.value, told.low, told.high))
    side = {"first": "apart", "second": "together"}.get(verdict(line, adjusted), "")
    return [f"{value} ({low} to {high})", side]


def write_all(here: Path, papers: Sequence[Path] = PAPERS) -> None:
    """Put it into the papers that have a pair of lines `<!-- joint -->` and `<!-- /joint -->`."""
    for paper in papers:
        if "<!-- joint -->" in paper.read_text("utf8"):
            fill(paper, "joint", table(here))
