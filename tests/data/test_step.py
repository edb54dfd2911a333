# SPDX-License-Identifier: Apache-2.0
"""What every step promises: nothing is lost, what was rejected passes, and what breaks becomes a reject."""

from __future__ import annotations

import copy
import errno
import os
import pickle
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest

from monai_unimedvl.data import step as steps
from monai_unimedvl.data.record import InvalidRecord, Record, Reject
from monai_unimedvl.data.step import Each, Item, Source, Stop, Stream, Tally, make, option


def record(id: str) -> Record:
    return Record(
        id=id,
        main_task_type="text",
        sub_task_type="qa",
        modality="mri",
        dataset="d",
        licence="MIT",
        source="s",
    )


@dataclass(frozen=True, kw_only=True)
class Odd(Each):
    """Keeps odd ids twice, refuses 2, breaks at 4."""

    name: ClassVar[str] = "odd"
    about: ClassVar[str] = "keeps odd ids"
    least: int = option(0, "smallest id")
    must: str = option(about="something")

    def each(self, record: Record) -> Iterable[Item]:
        """Twice, or not at all."""
        number = int(record.id)
        if number == 2:
            raise InvalidRecord("is-two", "the id is 2, expected an odd one.")
        if number == 4:
            raise KeyError("Mueller^Hans")
        yield record
        yield replace(record, id=f"{number}b")


@dataclass(frozen=True, kw_only=True)
class Last(Stream):
    """Rejects all but the last."""

    name: ClassVar[str] = "last"
    about: ClassVar[str] = "keeps the last"
    lose: bool = option(False)

    def stream(self, records: Iterator[Record]) -> Iterator[Item]:
        """Sees all first."""
        *others, last = records
        yield from (Reject("not-last", "one came after it.", each.id, self.name) for each in others)
        if not self.lose:
            yield last


@dataclass(frozen=True, kw_only=True)
class Numbers(Source):
    """The ids 0 and 1."""

    name: ClassVar[str] = "numbers"
    about: ClassVar[str] = "two records"

    def parts(self) -> Sequence[Any]:
        """Two."""
        return ["0", "1"]

    def each(self, part: Any) -> Iterable[Item]:
        """One record."""
        yield record(part)


EARLIER = Reject("bad-json", "no JSON.")


def test_what_comes_in_is_kept_or_rejected_and_earlier_rejects_pass() -> None:
    tally = Tally()
    items = list(Odd(must="x")([record("1"), EARLIER, record("2"), record("3")], tally))
    assert [getattr(item, "id", "") for item in items] == ["1", "1b", "", "2", "3", "3b"]
    assert (tally.taken, tally.kept, tally.rejected, tally.records) == (3, 2, 1, 4)
    assert tally.to_json()["reasons"] == {"is-two": 1} and tally.passed == 1


def test_what_breaks_is_a_reject_that_names_the_line_and_no_patient() -> None:
    tally = Tally()
    (broken, *rest) = Odd(must="x")([record("4"), record("1")], tally)
    assert isinstance(broken, Reject) and broken.code == "unexpected" and broken.id == "4"
    assert "KeyError at test_step.py:" in broken.reason and "Mueller" not in broken.reason
    assert len(rest) == 2 and tally.taken == 2


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_full_disk_is_no_fault_of_a_record_and_ends_the_run(wrapped: bool) -> None:
    class Writing(Odd):
        def each(self, record: Record) -> Iterable[Item]:
            full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "Mueller.png")
            if not wrapped:
                raise full
            raise InvalidRecord("unreadable", "it cannot be read.") from full

    with pytest.raises(Stop, match=r"step odd cannot go on \(No space left on device\).*run the same"):
        list(Writing(must="x")([record("1")]))


def test_a_unit_that_gives_nothing_is_a_fault() -> None:
    class Silent(Odd):
        def each(self, record: Record) -> Iterable[Item]:
            return []

    with pytest.raises(AssertionError, match="lost a unit"):
        list(Silent(must="x")([record("1")]))


def test_a_stream_gives_one_item_a_record_and_passes_rejects() -> None:
    tally = Tally()
    items = list(Last()([record("1"), EARLIER, record("2"), EARLIER], tally))
    assert sorted(type(item).__name__ for item in items) == ["Record", "Reject", "Reject", "Reject"]
    assert (tally.taken, tally.kept, tally.rejected, tally.passed) == (2, 1, 1, 2)
    with pytest.raises(AssertionError, match="gave 1 items for 2 records"):
        list(Last(lose=True)([record("1"), record("2")]))


def test_a_source_adds_its_records_behind_what_came() -> None:
    tally = Tally()
    assert [item.id for item in Numbers()([record("9")], tally)] == ["9", "0", "1"]
    assert tally.taken == tally.kept == 2


def test_tallies_of_several_processes_add_up() -> None:
    one, two = Tally(), Tally()
    list(Odd(must="x")([record("2")], one))
    list(Odd(must="x")([record("2"), record("3")], two))
    one.add(copy.deepcopy(two))
    assert one.to_json() == {
        "in": 3, "kept": 1, "rejected": 2, "records": 2, "rejects": 2, "reasons": {"is-two": 2},
    }  # fmt: skip


def test_a_step_is_sent_to_another_process_as_its_options() -> None:
    step = Odd(must="x", least=3)
    object.__setattr__(step, "_model", lambda: None)  # cannot be pickled
    assert step.__getstate__() == step.options() == {"least": 3, "must": "x"}
    assert pickle.loads(pickle.dumps(Last(lose=True))) == Last(lose=True)


def test_options_make_a_step_or_say_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(steps.STEPS, "odd", f"{__name__}:Odd")
    monkeypatch.setattr(
        steps.importlib, "import_module", lambda name: __import__("types").SimpleNamespace(Odd=Odd)
    )
    assert make({"step": "odd", "must": "x", "least": 2}) == Odd(must="x", least=2)
    with pytest.raises(ValueError, match="did you mean 'odd'"):
        make({"step": "od"})
    with pytest.raises(ValueError, match="no option 'leest' .did you mean 'least'"):
        make({"step": "odd", "must": "x", "leest": 2})
    with pytest.raises(ValueError, match="needs the option 'must'"):
        make({"step": "odd"})


def test_every_step_of_the_table_is_there() -> None:
    for name in steps.STEPS:
        kind = steps.step_class(name)
        assert kind.about and issubclass(kind, (Each, Stream, Source)), name
