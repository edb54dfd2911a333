# SPDX-License-Identifier: Apache-2.0
"""Why two protocols give two numbers for one prediction file: the way from one to the other, rule by rule.

First the faults of the one are mended one after the other, then its parts are exchanged for those of the
other, then the other's faults are added. Each step is a protocol of its own, so the steps add up to the whole
difference; another order would give some rules another share of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from monai_unimedvl.evaluation.predictions import Prediction
from monai_unimedvl.evaluation.protocols import Protocol, Scored, protocol, score

PARTS = {
    "select": "which items count",
    "split": "which items are closed, open or choices",
    "read": "how both texts are normalised before they are compared",
    "closed": "when a closed answer is right",
    "open": "what an open answer gets",
    "choice": "which option an answer picks",
}
SHOWN = 3  # rows named of a step


@dataclass(frozen=True)
class Step:
    """One rule exchanged.

    Args:
        rule: such as "closed" or "fault substring". what: it does.
        entered, left: rows that begin and cease to count. up, down: rows whose score rises and falls.
        before, after: mean over the rows that count. n: of these, after the step.
        examples: (id, truth, answer, score before, score after) of some rows that moved.
    """

    rule: str
    what: str
    entered: int
    left: int
    up: int
    down: int
    before: float
    after: float
    n: int
    examples: list[tuple[str, str, str, float | None, float | None]]

    @property
    def moves(self) -> int:
        """Rows that the rule moves."""
        return self.entered + self.left + self.up + self.down


@dataclass(frozen=True)
class Explanation:
    """The way from one protocol to another on one prediction file.

    Args:
        a, b: the protocols. start, end: their means. n_start, n_end: items that count.
        steps: rules in the order in which they are exchanged, those that move nothing too.
        stops: rows at which the public code of a, or of b, would end; they are counted as wrong here.
    """

    a: str
    b: str
    start: float
    end: float
    n_start: int
    n_end: int
    steps: list[Step]
    stops: tuple[int, int] = (0, 0)

    def table(self) -> str:
        """Markdown: the rules that move rows, what they do, and some rows."""
        told = [
            f"{self.a}: {_share(self.start)} of {self.n_start} items. "
            f"{self.b}: {_share(self.end)} of {self.n_end} items.",
            "",
            "| rule | enter | leave | rise | fall | mean before | after |",
            "|---|--:|--:|--:|--:|--:|--:|",
        ]
        moving = [step for step in self.steps if step.moves]
        for step in moving:
            cells = (
                step.rule,
                step.entered,
                step.left,
                step.up,
                step.down,
                _share(step.before),
                _share(step.after),
            )
            told.append(f"| {' | '.join(map(str, cells))} |")
        if still := [step.rule for step in self.steps if not step.moves]:
            told += ["", f"Without effect on these rows: {', '.join(still)}."]
        for name, number in ((self.a, self.stops[0]), (self.b, self.stops[1])):
            if number:
                told += [
                    "",
                    f"The public code of {name} ends at {number} of these rows; they count as wrong here.",
                ]
        for step in moving:
            told += ["", f"{step.rule}: {step.what}"]
            for row, truth, answer, old, new in step.examples:
                texts = f"truth {_short(truth)}, answer {_short(answer)}"
                told.append(f"- {row}: {texts}: {_mark(old)} -> {_mark(new)}")
        return "\n".join(told)

    def as_json(self) -> dict[str, Any]:
        """The same as values."""
        return asdict(self)


def explain(rows: Sequence[Prediction], a: str | Protocol, b: str | Protocol) -> Explanation:
    """Which rules move how many rows from what protocol `a` says to what `b` says.

    Args:
        a, b: as `protocol` takes them, such as "llavamed-v1:faithful".

    Raises:
        ValueError: an unknown protocol or fault.
    """
    first, last = (protocol(one) if isinstance(one, str) else one for one in (a, b))
    before = start = score(rows, first)
    steps = []
    for rule, what, between in path(first, last):
        after = score(rows, between)
        steps.append(_step(rule, what, before, after))
        before = after
    assert before.hits == score(rows, last).hits  # the way ends where it should
    counts = (len(start.values()), len(before.values()))
    stops = (len(start.stops), len(before.stops))
    return Explanation(str(first), str(last), start.mean(), before.mean(), *counts, steps, stops)


def path(a: Protocol, b: Protocol) -> Iterator[tuple[str, str, Protocol]]:
    """(rule, what it does, protocol with it) for each step from one protocol to another."""
    same = a.name == b.name
    having = set(a.faithful)
    for fault in a.faults:
        if fault.name in having and not (same and fault.name in b.faithful):
            having.discard(fault.name)
            yield f"{a.name} without fault {fault.name}", fault.what, protocol(a.name, faithful=having)
    if not same:
        now, bare = protocol(a.name, faithful=having), protocol(b.name)
        for part, what in PARTS.items():
            changes: dict[str, Any] = {part: getattr(bare, part)}
            if part == "read":
                changes["read_truth"] = bare.read_truth
            now = replace(now, **changes)
            yield f"{part} of {b.name}", f"{what}: {bare.says.get(part, 'as its text says')}", now
        having = set()
    for fault in b.faults:
        if fault.name in b.faithful and fault.name not in having:
            having.add(fault.name)
            yield f"{b.name} with fault {fault.name}", fault.what, protocol(b.name, faithful=having)


def _step(rule: str, what: str, before: Scored, after: Scored) -> Step:
    entered = left = up = down = 0
    examples: list[tuple[str, str, str, float | None, float | None]] = []
    for row, old, new in zip(before.rows, before.hits, after.hits, strict=True):
        if old == new:
            continue
        entered += old is None
        left += new is None
        if old is not None and new is not None:
            up, down = up + (new > old), down + (new < old)
        if len(examples) < SHOWN:
            examples.append((row.id, row.truth, row.answer, old, new))
    means = before.mean(), after.mean()
    return Step(rule, what, entered, left, up, down, *means, len(after.values()), examples)


def _share(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"


def _mark(value: float | None) -> str:
    return "not counted" if value is None else f"{value:.3g}"


def _short(text: str, length: int = 60) -> str:
    plain = " ".join(text.split())
    return repr(plain if len(plain) <= length else f"{plain[: length - 3]}...")
