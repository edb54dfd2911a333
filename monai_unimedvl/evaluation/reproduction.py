# SPDX-License-Identifier: Apache-2.0
"""Scores of a second training beside those that were shipped: which lie within the shipped interval."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from monai_unimedvl.evaluation.tables import LOWER, Row, number, short, value

HEAD = ("task", "section", "of", "metric", "shipped (95 %)", "here (95 %)", "verdict")
NO_NUMBER = "no number"
VERDICTS = ("inside", "better", "near", "worse", NO_NUMBER)


@dataclass(frozen=True)
class Match:
    """The same row of two reports."""

    shipped: Row
    here: Row

    @property
    def verdict(self) -> str:
        """inside the shipped interval; else better than it; near, where the intervals overlap; or worse.

        A score or a shipped interval that is no number matches nothing: "no number".
        """
        shipped, here = self.shipped, self.here
        if any(map(math.isnan, (here.value, shipped.low, shipped.high))):
            return NO_NUMBER
        if shipped.low <= here.value <= shipped.high:
            return "inside"
        if (here.value < shipped.low) == (shipped.metric in LOWER):
            return "better"
        return "near" if here.low <= shipped.high and shipped.low <= here.high else "worse"


def matches(here: Iterable[Row], shipped: Iterable[Row]) -> list[Match]:
    """The rows of the short table that both have, in the order of the shipped one.

    Raises:
        ValueError: they share no row.
    """

    def key(row: Row) -> tuple[str, ...]:
        return row.task, row.section, row.group, row.setting, row.metric

    known = {key(row): row for row in here}
    found = [Match(row, known[key(row)]) for row in short(shipped) if key(row) in known]
    if not found:
        raise ValueError("The two reports share no row: score the same tasks in the same way.")
    return found


def table(found: Sequence[Match]) -> str:
    """A Markdown table, and below it how many rows lie where."""
    lines = [f"| {' | '.join(HEAD)} |", "|---|---|---|---|--:|--:|---|"]
    for one in found:
        row = one.shipped
        metric = f"{row.metric}, {row.setting}" if row.setting else row.metric
        cells = (row.task, row.section, row.group, metric, value(row), value(one.here), one.verdict)
        lines.append(f"| {' | '.join(cells)} |")
    counts = Counter(one.verdict for one in found)
    told = ", ".join(f"{name} {counts[name]}" for name in VERDICTS)
    return "\n".join([*lines, "", f"{len(found)} rows beside the shipped intervals: {told}."])


def worst(found: Sequence[Match]) -> list[str]:
    """The rows that are worse, or no number, one a line."""
    return [
        f"{one.shipped.task}, {one.shipped.section}, {one.shipped.group}, {one.shipped.metric}: "
        f"{number(one.here.metric, one.here.value)}, shipped {value(one.shipped)}"
        for one in found
        if one.verdict in ("worse", NO_NUMBER)
    ]
