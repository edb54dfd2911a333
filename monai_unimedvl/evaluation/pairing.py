# SPDX-License-Identifier: Apache-2.0
"""Two prediction files on the same items: what changed, how sure that is, and which items moved.

for line in compare_files(read_predictions("a.parquet"), read_predictions("b.parquet")):
    print(line.task, line.difference.value, line.adjusted)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from monai_unimedvl.evaluation.intervals import Difference, compare, holm
from monai_unimedvl.evaluation.predictions import Prediction, Predictions
from monai_unimedvl.evaluation.tables import number
from monai_unimedvl.evaluation.text import exact_match

SCORED = "exact match"  # of files that carry no scores
Cell = tuple[str, str, str, str, str]  # benchmark, task, section, setting, metric


@dataclass(frozen=True)
class Pair:
    """One metric of one task in two files.

    Args:
        difference: second less first. adjusted: its p-value, adjusted for all that were tested (Holm).
        undefined: items that have no such score in either file, and are left out of both.
    """

    benchmark: str
    task: str
    section: str
    setting: str
    metric: str
    difference: Difference
    adjusted: float
    undefined: int


def compare_files(
    first: Predictions, second: Predictions, *, cluster: str = "image", seed: int = 0, resamples: int = 10_000
) -> list[Pair]:
    """A paired test for each task, section, setting and metric that both files score.

    Args:
        cluster: "image", "patient" or "" for none: what is drawn together in interval and test.

    Raises:
        ValueError: the files hold other items, other truths, share no score, or score other items of them.
    """
    _check(first, second)
    found: dict[Cell, tuple[Difference, int]] = {}
    ours, theirs = _cells(first), _cells(second)
    for key in ours:
        if key not in theirs:
            continue
        a, b = ours[key], theirs[key]
        for name in a:
            if (a[name][0] is None) != (b[name][0] is None):
                where = first.source if a[name][0] is None else second.source
                raise ValueError(
                    f"{where} has no {key[-1]} for item {name!r}, the other file has: score it in both."
                )
        known = [name for name, (score, _) in a.items() if score is not None]
        if not known:
            continue
        groups = {name: getattr(a[name][1], cluster) or name for name in known} if cluster else {}
        told = None if len(set(groups.values())) in (0, len(known)) else groups
        scores = ({name: float(one[name][0] or 0.0) for name in known} for one in (a, b))
        found[key] = (
            compare(*scores, clusters=told, seed=seed, resamples=resamples), len(a) - len(known)
        )  # fmt: skip
    if not found:
        raise ValueError(
            f"{first.source} and {second.source} have no score in common: score both by the same metric."
        )
    adjusted = holm({str(n): one.p for n, (one, _) in enumerate(found.values())})
    return [
        Pair(*key, one, adjusted[str(n)], undefined)
        for n, (key, (one, undefined)) in enumerate(found.items())
    ]


def table(pairs: list[Pair], first: str = "first", second: str = "second") -> str:
    """The pairs as a Markdown table; `first` and `second` head the columns of the two files."""
    lines = [
        f"| task | section | metric | n | {first} | {second} | difference (95%) | better, worse | p | Holm |",
        "|---|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for one in pairs:
        told = one.difference
        metric = f"{one.metric}, {one.setting}" if one.setting else one.metric
        low, high = number(one.metric, told.low), number(one.metric, told.high)
        value = f"{number(one.metric, told.value)} ({low} to {high})"
        cells = (
            one.task, one.section, metric, str(told.n), number(one.metric, told.a),
            number(one.metric, told.b),
            value, f"{told.moved[0]} / {told.moved[1]}", f"{told.p:.4f}", f"{one.adjusted:.4f}",
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    tests = ", ".join(dict.fromkeys(one.difference.test for one in pairs))
    lines += ["", f"Difference: {second} less {first}, on the same items. Tests: {tests}; two-sided."]
    if lost := sum(one.undefined for one in pairs):
        lines.append(f"{lost} scores are undefined in both files and left out of both.")
    return "\n".join(lines)


def _cells(file: Predictions) -> dict[Cell, dict[str, tuple[float | None, Prediction]]]:
    """(benchmark, task, section, setting, metric) -> id -> score and row."""
    found: dict[Cell, dict[str, tuple[float | None, Prediction]]] = {}
    for row in file.rows:
        scores: Mapping[str, float | None] = row.scores
        if not scores and row.truth:
            scores = {SCORED: max(exact_match(row.answer, one) for one in (row.truth, *row.references))}
        for metric, score in scores.items():
            key = row.benchmark, row.task, row.section, row.setting, metric
            found.setdefault(key, {})[row.id] = score, row
    return found


def _check(first: Predictions, second: Predictions) -> None:
    ours, theirs = ({row.key: row for row in file.rows} for file in (first, second))
    for one, other, here, there in ((ours, theirs, first, second), (theirs, ours, second, first)):
        if missing := [key for key in one if key not in other]:
            raise ValueError(
                f"{there.source} lacks {len(missing)} of the {len(one)} items of {here.source}, such as "
                f"{missing[0][-1]!r} ({missing[0][2]}, {missing[0][1]}): compare runs on the same items."
            )
    for number_, (key, row) in enumerate(ours.items(), 1):
        if row.truth != theirs[key].truth:
            raise ValueError(
                f"{first.source} row {number_} (id {row.id}) has another truth than {second.source}: take"
                " files of the same items."
            )
