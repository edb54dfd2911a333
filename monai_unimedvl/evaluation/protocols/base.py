# SPDX-License-Identifier: Apache-2.0
"""What a protocol is: parts with names, from the prompt's suffix to the aggregate, that score one row each.

    scored = score(read_predictions("p.parquet").rows, protocol("strict-v1"))
    scored.mean()                       # share of right answers, of all that count
    scored.why[3]                       # why row 3 does not count, or ""

A fault of a public code is a name in `Protocol.faithful`: without it the part does what its text says, with
it the part does what the code does. So two protocols differ by parts and faults, and each can be exchanged
alone, which is what `evaluation.explain` does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from monai_unimedvl.evaluation.predictions import Prediction

KINDS = ("closed", "open", "choice")
PARTS = ("select", "split", "read", "read_truth", "closed", "open", "choice")  # in the order of their work

Rule = Callable[[str, str, Prediction], float | None]  # answer, truth, as read -> score; None: does not count
Measures = Callable[[str, str, Prediction], Mapping[str, float]]


class PublicCodeStops(Exception):
    """The public code of a protocol ends with an error at this row."""


@dataclass(frozen=True)
class Fault:
    """What a public code does and does not say.

    Args:
        name: in one word. what: what happens to which answers. where: in the public code.
    """

    name: str
    what: str
    where: str


def no_rule(said: str, truth: str, row: Prediction) -> float | None:
    """The rule of a protocol for a kind of item that it does not know: the item does not count."""
    return None


def _open_only(row: Prediction, kind: str) -> bool:
    return kind == "open"


def _verdict(rule: float, right: bool | None, row: Prediction, kind: str) -> float:
    return rule if right is None else float(right)


@dataclass(frozen=True)
class Protocol:
    """A named, versioned way of turning answers into one number.

    Args:
        name, version: together they name what was counted.
        about: what it is, in a sentence. source: the public code that it agrees with.
        select: row -> "" if it counts, else why it does not.
        split: row -> one of `KINDS`.
        read: (answer, row, kind) -> the answer as the rules see it. read_truth: the same of the truth.
        closed, open, choice: rule of each kind. measures: kind -> name of what its rule gives.
        suffixes: kind -> language -> what is added to the question.
        details: kind -> further measures.
        apart: fields whose values are never averaged together. says: part -> what it does, in words.
        faults: all that the public code is known to have. faithful: those that this object has.
        judged: (row, kind) -> whether a judge, if there is one, is asked. combine: (score of the rule, the
            verdict or None if not asked, row, kind) -> score, where there is a judge.
        unscored: why an item does not count that one of the rules gives no score.
    """

    name: str
    version: str
    about: str
    source: str
    select: Callable[[Prediction], str]
    split: Callable[[Prediction], str]
    read: Callable[[str, Prediction, str], str]
    read_truth: Callable[[str, Prediction, str], str]
    closed: Rule = no_rule
    open: Rule = no_rule
    choice: Rule = no_rule
    measures: Mapping[str, str] = field(default_factory=dict)
    suffixes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    details: Mapping[str, Measures] = field(default_factory=dict)
    apart: tuple[str, ...] = ()
    says: Mapping[str, str] = field(default_factory=dict)
    faults: tuple[Fault, ...] = ()
    faithful: frozenset[str] = frozenset()
    judged: Callable[[Prediction, str], bool] = _open_only
    combine: Callable[[float, bool | None, Prediction, str], float] = _verdict
    unscored: str = "left out by the rule of its kind"

    def __str__(self) -> str:
        if not self.faithful:
            return f"{self.name} {self.version}"
        whole = self.faithful == {fault.name for fault in self.faults}
        having = "as published" if whole else ", ".join(sorted(self.faithful))
        return f"{self.name} {self.version}, faults {having}"

    def prompt(self, question: str, kind: str, language: str = "en") -> str:
        """The question with this protocol's suffix."""
        return question + self.suffixes.get(kind, {}).get(language, "")


@dataclass(frozen=True)
class Scored:
    """What a protocol says of each row.

    Args:
        kinds: of each row. hits: score of each row, None where it does not count.
        why: why a row does not count, "" where it does.
        stops: number of each row at which the public code would have ended, and how: no number exists then,
            and the one here counts such rows as wrong.
        details: measure -> of each row, None where there is none.
        judge: model and prompt of the judge, "" without one. unparsed: verdicts that could not be read,
            counted as wrong.
    """

    protocol: Protocol
    rows: Sequence[Prediction]
    kinds: list[str]
    hits: list[float | None]
    why: list[str]
    stops: dict[int, str] = field(default_factory=dict)
    details: dict[str, list[float | None]] = field(default_factory=dict)
    judge: str = ""
    unparsed: int = 0

    def values(
        self, kind: str | None = None, where: Callable[[Prediction], bool] | None = None
    ) -> list[float]:
        """The scores that count, of a kind or of all, in the order of the rows."""
        return [
            hit
            for hit, found, row in zip(self.hits, self.kinds, self.rows, strict=True)
            if hit is not None and kind in (None, found) and (where is None or where(row))
        ]

    def mean(self, kind: str | None = None, where: Callable[[Prediction], bool] | None = None) -> float:
        """Mean of `values`, the same in any order of the rows; NaN where nothing counts."""
        found = self.values(kind, where)
        return math.fsum(found) / len(found) if found else math.nan


def score(rows: Sequence[Prediction], protocol: Protocol, *, details: bool = False) -> Scored:
    """Score every row of a prediction file by a protocol.

    Args:
        details: its further measures too, which take longer.
    """
    kinds: list[str] = []
    hits: list[float | None] = []
    why: list[str] = []
    stops: dict[int, str] = {}
    more: dict[str, list[float | None]] = {}
    rules = {"closed": protocol.closed, "open": protocol.open, "choice": protocol.choice}
    for place, row in enumerate(rows):
        kind = protocol.split(row)
        kinds.append(kind)
        reason = protocol.select(row)
        hit: float | None = None
        if not reason:
            said, truth = protocol.read(row.answer, row, kind), protocol.read_truth(row.truth, row, kind)
            try:
                hit = rules[kind](said, truth, row)
            except PublicCodeStops as error:
                stops[place] = str(error)
                hit = 0.0
            if hit is None:
                reason = f"no score for {kind} items" if rules[kind] is no_rule else protocol.unscored
            elif details and kind in protocol.details:
                for name, value in protocol.details[kind](said, truth, row).items():
                    more.setdefault(f"{kind} {name}", [None] * len(rows))[place] = value
        hits.append(hit)
        why.append(reason)
    return Scored(protocol, rows, kinds, hits, why, stops, more)
