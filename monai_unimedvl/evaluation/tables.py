# SPDX-License-Identifier: Apache-2.0
"""Rows of scores, and how they are written: Markdown, CSV, LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

ALL = "all"
UNITS = {  # how a metric is printed; others as {:.3f}
    "PSNR": "{:.2f}", "HD95": "{:.1f}", "Frechet distance": "{:.2f}", "MMD": "{:.4f}",
}  # fmt: skip
LOWER = ("near copy", "Frechet distance", "MMD", "HD95")  # the less the better
LONG = ("precision", "recall", "density", "coverage")  # not in the short table
# groups that the short table shows too: (task, metric) -> which of them, None for all
SHOWN: dict[tuple[str, str], tuple[str, ...] | None] = {
    ("vqa", "exact match"): ("contrast", "plane"), ("sr4", "PSNR"): None, ("sr4", "SSIM"): (),
}  # fmt: skip
HEAD = ("task", "section", "of", "metric", "n", "value (95 %)", "baselines", "ceiling")
COLUMNS = ("task", "section", "group", "setting", "metric", "n", "value", "low", "high", "baseline",
           "baseline value", "ceiling")  # fmt: skip
SPECIAL = {"&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}",
           "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One line of the table; a higher value is better, except for the metrics in `LOWER`.

    Args:
        group: "all", or the source, question or contrast.
        setting: how it was made, such as "4 steps".
        n: items.
        value: their mean score.
        low, high: 95 % percentile bootstrap interval over items.
        baselines: name -> mean score of the same items.
        ceiling: mean score of the best that could be reached, or None.
    """

    task: str
    section: str
    group: str
    setting: str
    metric: str
    n: int
    value: float
    low: float
    high: float
    baselines: dict[str, float] = field(default_factory=dict)
    ceiling: float | None = None

    @property
    def baseline(self) -> tuple[str, float] | None:
        """Name and score of the best baseline."""
        if not self.baselines:
            return None
        best = min if self.metric in LOWER else max
        return best(self.baselines.items(), key=lambda pair: pair[1])


def markdown(rows: Iterable[Row]) -> str:
    """The rows as a Markdown table."""
    lines = [f"| {' | '.join(HEAD)} |", "|---|---|---|---|--:|--:|---|--:|"]
    lines += [f"| {' | '.join(cell.replace('|', '/') for cell in cells(row))} |" for row in rows]
    return "\n".join(lines)


def comma_separated(rows: Iterable[Row]) -> str:
    """The rows as CSV in full precision, one line for each baseline, or one where there is none."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        own = (row.task, row.section, row.group, row.setting, row.metric, row.n, row.value, row.low, row.high)
        ceiling = "" if row.ceiling is None else row.ceiling
        for name, score in row.baselines.items() or [("", "")]:
            writer.writerow([*own, name, score, ceiling])
    return stream.getvalue()


def latex(rows: Iterable[Row]) -> str:
    """The rows as a LaTeX table for the package booktabs."""
    lines = [r"\begin{tabular}{llllrllr}", r"\toprule", _tex(HEAD), r"\midrule"]
    last = None
    for row in rows:
        if last not in (None, row.task):
            lines.append(r"\addlinespace")
        last = row.task
        lines.append(_tex(cells(row)))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def short(rows: Iterable[Row]) -> list[Row]:
    """The rows of the default settings, without single sources, questions and contrasts but `SHOWN`."""
    default: dict[str, str] = {}
    return [
        row for row in rows if row.setting == default.setdefault(row.task, row.setting) and _is_short(row)
    ]


def cells(row: Row) -> tuple[str, ...]:
    """The texts of a row, as `HEAD` names them."""
    ordered = sorted(row.baselines.items(), key=lambda pair: pair[1], reverse=row.metric not in LOWER)
    baselines = ", ".join(f"{name} {number(row.metric, score)}" for name, score in ordered)
    ceiling = "" if row.ceiling is None else number(row.metric, row.ceiling)
    metric = f"{row.metric}, {row.setting}" if row.setting else row.metric
    return row.task, row.section, row.group, metric, str(row.n), value(row), baselines, ceiling


def value(row: Row) -> str:
    """Value and interval, such as "0.712 (0.690 to 0.731)"."""
    low, high = number(row.metric, row.low), number(row.metric, row.high)
    return f"{number(row.metric, row.value)} ({low} to {high})"


def number(metric: str, score: float) -> str:
    """A score with as many digits as its metric bears."""
    return UNITS.get(metric, "{:.3f}").format(score)


def _is_short(row: Row) -> bool:
    shown = SHOWN.get((row.task, row.metric), ())
    if row.metric in LONG:
        return False
    return row.group.split(",")[0] == ALL or shown is None or row.group in shown


def _tex(texts: Sequence[str]) -> str:
    escaped = ("".join(SPECIAL.get(letter, letter) for letter in text) for text in texts)
    return " & ".join(escaped) + r" \\"
