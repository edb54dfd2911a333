# SPDX-License-Identifier: Apache-2.0
"""A step of the observation level: records in, records or rejects out, and a count of what became of each.

    step = make({"step": "coarse", "min_side": 128})
    tally = Tally()
    kept = [item for item in step(records, tally) if isinstance(item, Record)]
    tally.taken == tally.kept + tally.rejected       # always

A step is a frozen dataclass: its fields are its options, in Python, in a pipeline's YAML and as flags of
`unimedvl data STEP`. There are three kinds, and each says what one unit of its work is:

    Source   a file, series or line of a table: `parts()` lists them, `each(part)` reads one
    Each     one record, that needs no other: `each(record)`, in any process and in any order
    Stream   all records: `stream(records)` gives one item for each, in their order

What an earlier step rejected passes through unseen. A unit that breaks becomes a reject: the run goes on.
"""

from __future__ import annotations

import difflib
import importlib
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

from monai_unimedvl.atomic import machine_fault
from monai_unimedvl.data.record import InvalidRecord, Record, Reject
from monai_unimedvl.packages import MissingPackage

Item = Record | Reject

# name -> where its class stands; a name with a hyphen may be written in two words, such as `ingest dicom`.
STEPS: dict[str, str] = {
    "ingest-dicom": "monai_unimedvl.data.ingest.dicom:IngestDicom",
    "ingest-nifti": "monai_unimedvl.data.ingest.nifti:IngestNifti",
    "ingest-images": "monai_unimedvl.data.ingest.images:IngestImages",
    "ingest-table": "monai_unimedvl.data.ingest.table:IngestTable",
    "ingest-coco": "monai_unimedvl.data.ingest.coco:IngestCoco",
    "ingest-masks": "monai_unimedvl.data.ingest.masks:IngestMasks",
    "ingest-pairs": "monai_unimedvl.data.ingest.pairs:IngestPairs",
    "ingest-reports": "monai_unimedvl.data.ingest.reports:IngestReports",
    "ingest-conversations": "monai_unimedvl.data.ingest.conversations:IngestConversations",
    "ingest-bagel": "monai_unimedvl.data.ingest.bagel:IngestBagel",
    "ingest-unimedvl": "monai_unimedvl.data.ingest.unimedvl:IngestUnimedvl",
    "textify": "monai_unimedvl.data.textify:Textify",
    "coarse": "monai_unimedvl.data.quality:Coarse",
    "boilerplate": "monai_unimedvl.data.quality:Boilerplate",
    "align": "monai_unimedvl.data.align:Align",
    "caption": "monai_unimedvl.data.caption:Caption",
    "review-sample": "monai_unimedvl.data.quality:ReviewSample",
    "atlas": "monai_unimedvl.data.atlas_source:AtlasSource",
    "tasks": "monai_unimedvl.data.tasks:Tasks",
    "dedup": "monai_unimedvl.data.dedup:Dedup",
    "decontaminate": "monai_unimedvl.data.dedup:Decontaminate",
    "unique-ids": "monai_unimedvl.data.dedup:UniqueIds",
    "split": "monai_unimedvl.data.split:Split",
}
CODES = {"unexpected": "a step broke on this unit; a fault of ours or of a package"}


class Stop(ValueError):
    """The run cannot go on, whatever the record: a model that is not there, a disk that is full."""


@dataclass
class Tally:
    """What became of the units of a step; `taken == kept + rejected` when it has ended.

    Args:
        taken: units that came in.
        kept: those that gave at least one record.
        rejected: those that gave rejects only.
        records, rejects: items that came out; more than the units where one gives several.
        reasons: rejects by code.
        passed: rejects of earlier steps, which went through.
    """

    taken: int = 0
    kept: int = 0
    rejected: int = 0
    records: int = 0
    rejects: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    passed: int = 0

    def count(self, item: Item) -> None:
        """One item that came out."""
        if isinstance(item, Reject):
            self.rejects += 1
            self.reasons[item.code] += 1
        else:
            self.records += 1

    def end(self, kept: bool) -> None:
        """One unit is done."""
        self.taken += 1
        self.kept += kept
        self.rejected += not kept

    def add(self, other: Tally) -> None:
        """What another process counted."""
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))

    def to_json(self) -> dict[str, Any]:
        """{in, kept, rejected, records, rejects, reasons}"""
        counts = {"in": self.taken, "kept": self.kept, "rejected": self.rejected}
        counts |= {"records": self.records, "rejects": self.rejects}
        return {**counts, "reasons": dict(sorted(self.reasons.items()))}


def option(default: Any = MISSING, about: str = "", **more: Any) -> Any:
    """A field of a step with the words that `--help` shows; without a default it is required."""
    return field(default=default, metadata={"about": about, **more})


@dataclass(frozen=True, kw_only=True)
class Step(ABC):
    """What every step has: a name, a line about it, its options as fields."""

    name: ClassVar[str]
    about: ClassVar[str]
    example: ClassVar[str] = ""

    @abstractmethod
    def __call__(self, items: Iterable[Item] = (), tally: Tally | None = None) -> Iterator[Item]:
        """Records, and rejects that pass through -> records and rejects, counted."""

    def __getstate__(self) -> dict[str, Any]:
        """The options alone: models and tables that were loaded are loaded anew in another process."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    def options(self) -> dict[str, Any]:
        """The options by name, as a pipeline's YAML has them."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    def unit(self, work: Callable[[Any], Iterable[Item]], given: Any, tally: Tally) -> Iterator[Item]:
        """The items of one unit, counted; what it raises becomes a reject."""
        known = given.id if isinstance(given, Record) else ""
        kept = some = False
        try:
            for item in work(given):
                some, kept = True, kept or isinstance(item, Record)
                tally.count(item)
                yield item
        except Exception as error:  # whatever a damaged file makes a package raise
            some = True
            reject = self.refusal(error, known)
            tally.count(reject)
            yield reject
        assert some, f"step {self.name} lost a unit: it gave neither a record nor a reject"
        tally.end(kept)

    def refusal(self, error: Exception, id: str = "", place: str = "") -> Reject:
        """The reject of an error; of an unforeseen one only its kind and line, which name no patient.

        Raises:
            Stop: as it came, and so does a package that is missing; or the disk is full, or the like.
        """
        if isinstance(error, Stop | MemoryError | MissingPackage):
            raise error
        if fault := machine_fault(error):
            raise Stop(
                f"step {self.name} cannot go on ({fault.strerror}), which is no fault of a file: make room, "
                "or raise the limit, and run the same command again."
            ) from error
        if isinstance(error, InvalidRecord):
            return Reject(error.code, error.reason, id, self.name, place)
        trace = error.__traceback__
        where = ""
        while trace is not None:
            where = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
            trace = trace.tb_next
        reason = f"{type(error).__name__} at {where}, expected a unit that this step can do: report it."
        return Reject("unexpected", reason, id, self.name, place)


@dataclass(frozen=True, kw_only=True)
class Each(Step):
    """A step that does every record by itself."""

    @abstractmethod
    def each(self, record: Record) -> Iterable[Item]:
        """One record -> at least one item."""

    def __call__(self, items: Iterable[Item] = (), tally: Tally | None = None) -> Iterator[Item]:
        """See `Step`; in the order that they came."""
        tally = Tally() if tally is None else tally
        for item in items:
            if isinstance(item, Reject):
                tally.passed += 1
                yield item
            else:
                yield from self.unit(self.each, item, tally)


@dataclass(frozen=True, kw_only=True)
class Stream(Step):
    """A step that must see other records too: near-duplicates, splits, quantiles."""

    @abstractmethod
    def stream(self, records: Iterator[Record]) -> Iterator[Item]:
        """All records -> one item for each."""

    def __call__(self, items: Iterable[Item] = (), tally: Tally | None = None) -> Iterator[Item]:
        """See `Step`; rejects of earlier steps come out as soon as they can."""
        tally = Tally() if tally is None else tally
        waiting: deque[Reject] = deque()
        came = 0

        def records() -> Iterator[Record]:
            nonlocal came
            for item in items:
                if isinstance(item, Reject):
                    waiting.append(item)
                else:
                    came += 1
                    yield item

        for item in self.stream(records()):
            while waiting:
                tally.passed += 1
                yield waiting.popleft()
            tally.count(item)
            tally.end(isinstance(item, Record))
            yield item
        tally.passed += len(waiting)
        yield from waiting
        assert tally.taken == came, f"step {self.name} gave {tally.taken} items for {came} records"


@dataclass(frozen=True, kw_only=True)
class Source(Step):
    """A step that makes records out of files; what comes in goes through before them.

    A part may name a patient's file: keep its place in the list, never its text, in what is written.
    """

    @abstractmethod
    def parts(self) -> Sequence[Any]:
        """What there is to read, always in the same order.

        Raises:
            ValueError: nothing is there, or an option does not fit.
        """

    @abstractmethod
    def each(self, part: Any) -> Iterable[Item]:
        """One part -> at least one item."""

    def __call__(self, items: Iterable[Item] = (), tally: Tally | None = None) -> Iterator[Item]:
        """See `Step`; the units are the parts."""
        tally = Tally() if tally is None else tally
        yield from items
        for part in self.parts():
            yield from self.unit(self.each, part, tally)


def step_class(name: str) -> type[Step]:
    """The class of a step; `package.module:Class` is one of the user's own.

    Raises:
        ValueError: no step of this name.
    """
    if name not in STEPS and ":" not in name:
        near = difflib.get_close_matches(name, STEPS, 1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"step {name!r} is not known{hint}: use one of {', '.join(sorted(STEPS))}.")
    module, kind = STEPS.get(name, name).split(":", 1)
    try:
        found = getattr(importlib.import_module(module), kind, None)
    except ImportError as error:
        raise ValueError(f"step {name!r} cannot be imported ({error}), expected module:Class.") from error
    if not (isinstance(found, type) and issubclass(found, Step)):
        raise ValueError(
            f"step {name!r} is no class of a step, expected a subclass of Source, Each or Stream."
        )
    assert ":" in name or found.name == name, f"{kind} calls itself {found.name}, the table {name}"
    return found


def make(options: Mapping[str, Any]) -> Step:
    """A step of the options of a pipeline's YAML: {"step": "coarse", "min_side": 128}.

    `{"step": "ingest", "kind": "dicom", ...}` is the step "ingest-dicom".

    Raises:
        ValueError: no such step or option, or one that is missing or does not fit.
    """
    given = dict(options)
    name = given.pop("step", "")
    if name == "ingest" and "kind" in given:
        name = f"ingest-{given.pop('kind')}"
    kind = step_class(str(name))
    known = {each.name: each for each in fields(kind)}
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ValueError(
                f"step {name!r} has no option {key!r}{hint}: use one of {', '.join(known) or 'none'}."
            )
    for key, each in known.items():
        if each.default is MISSING and each.default_factory is MISSING and key not in given:
            raise ValueError(f"step {name!r} needs the option {key!r} ({each.metadata.get('about', '')}).")
    return kind(**given)
