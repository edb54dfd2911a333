# SPDX-License-Identifier: Apache-2.0
"""A step that must know a little of every record before it decides on any: near-duplicates, splits, ids.

    note = step.note(record)             # small, JSON: hashes, pseudonyms; in any process, in any order
    verdicts = step.decide(notes)        # in order, one for each: keep, change or leave out

Notes are a few hundred bytes where records hold images, so that a corpus of millions is decided on in the
memory of one machine while its records stay in files.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from monai_unimedvl.data.record import Record, Reject
from monai_unimedvl.data.step import Item, Stream

Note = dict[str, Any]


@dataclass(frozen=True)
class Verdict:
    """What becomes of a record: kept as it is, kept with some fields changed, or left out for a reason.

    Args:
        code, reason: of the reject; empty where the record is kept.
        fields: new values of fields that are plain words, such as {"split": "train"}.
        facts: entries that are added to `facts`.
    """

    code: str = ""
    reason: str = ""
    fields: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    def apply(self, record: Record, step: str) -> Item:
        """The record as it goes on, or its reject; new facts say which step they are from."""
        if self.code:
            return Reject(self.code, self.reason, record.id, step)
        if not self.fields and not self.facts:
            return record
        changes: dict[str, Any] = {**self.fields, "facts": {**record.facts, **self.facts}}
        changes["provenance"] = {**record.provenance, **{name: {"by": step} for name in self.fields}}
        return replace(record, **changes)

    def to_json(self) -> dict[str, Any]:
        """What is not empty."""
        known = {
            "code": self.code, "reason": self.reason, "fields": dict(self.fields), "facts": dict(self.facts)
        }  # fmt: skip
        return {name: value for name, value in known.items() if value}


KEEP = Verdict()


@dataclass(frozen=True, kw_only=True)
class Whole(Stream):
    """A `Stream` in two halves, of which the first needs one record at a time and the second no images."""

    @abstractmethod
    def note(self, record: Record) -> Note:
        """What the decision needs of a record, as JSON.

        Raises:
            InvalidRecord: the record cannot be judged; it becomes a reject.
        """

    @abstractmethod
    def decide(self, notes: Iterable[Note]) -> Iterator[Verdict]:
        """One verdict for each note, in their order."""

    def stream(self, records: Iterator[Record]) -> Iterator[Item]:
        """See `Stream`; holds the records until they are decided on. A pipeline keeps them in files."""
        waiting: deque[Item] = deque()

        def notes() -> Iterator[Note]:
            for record in records:
                try:
                    note = self.note(record)
                except Exception as error:
                    waiting.append(self.refusal(error, record.id))
                else:
                    waiting.append(record)
                    yield note

        def settled() -> Iterator[Item]:
            while waiting and isinstance(waiting[0], Reject):
                yield waiting.popleft()

        for verdict in self.decide(notes()):
            yield from settled()
            record = waiting.popleft()
            assert isinstance(record, Record)
            yield verdict.apply(record, self.name)
        yield from settled()
        assert not waiting, f"step {self.name} decided on all but {len(waiting)} records"
