# SPDX-License-Identifier: Apache-2.0
"""Train, val and test without a patient, a study or a picture in two of them.

    steps: [{step: split, shares: {train: 0.8, val: 0.1, test: 0.1}, slabs: [atlas]}]

In this order:
  groups    records that share a patient, a study or the pixels of a picture stay together
  given     a split that a record already has holds for its group; a patient in two is rejected from one
  slabs     where asked, of each patient a contiguous run of slices, with a guard between that nobody gets
  shares    the other groups, so that each stratum is shared out alike
  held out  (modality, anatomy, task) triplets are tested and never trained on, their parts are
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from monai_unimedvl.data.prints import telling_prints
from monai_unimedvl.data.record import SPLITS, ImageFile, Record
from monai_unimedvl.data.step import option
from monai_unimedvl.data.whole import KEEP, Note, Verdict, Whole

CODES = {
    "patient-across-splits": "a patient, study or picture that is in another split too",
    "slab-guard": "a slice between the slabs of one volume, which would leak from one to the other",
    "held-out-triplet": "a modality, anatomy and task that are tested together and not trained together",
}
PROTECTED = ("test", "val", "train")  # the first of those that a group was given holds
STRATA = ("modality", "dataset", "main_task_type", "sub_task_type")
AXES = {"sagittal": 0, "coronal": 1, "axial": 2}
STEPS_OF_GUARD = 2  # slices on each side of a border, where no distance is known


@dataclass(frozen=True, kw_only=True)
class Split(Whole):
    """Share records out among train, val and test, patient by patient.

    Raises:
        ValueError: shares, strata or triplets that do not fit.
    """

    name: ClassVar[str] = "split"
    about: ClassVar[str] = "train, val and test, patient by patient"
    example: ClassVar[str] = "records.jsonl --out split.jsonl --root corpus"

    root: str = option("", "folder of the corpus, whose images/ the records name")
    shares: Mapping[str, float] = option(
        None, "of records: {train: 0.8, val: 0.1, test: 0.1}, or as 8 : 1 : 1"
    )
    stratify: tuple[str, ...] = option(
        ("modality", "sub_task_type"), f"shared out alike, of {', '.join(STRATA)}"
    )
    seed: int = option(0, "of the choice")
    slabs: tuple[str, ...] = option(
        (), "datasets whose patients are cut into runs of slices, for want of others"
    )
    guard_mm: float = option(6.0, "between two slabs; without a place in mm, two slices on each side")
    hold_out: tuple[str, ...] = option(
        (), "modality/anatomy/task triplets to test only, such as ct/liver/vqa"
    )
    hold_out_count: int = option(0, "or how many to choose, each part of which is trained elsewhere")

    def __post_init__(self) -> None:
        shares = self._shares
        numbers = all(isinstance(share, int | float) and share > 0 for share in shares.values())
        if not shares or set(shares) - set(SPLITS[1:]) or not numbers:
            raise ValueError(
                f"split got shares {dict(shares)}, expected numbers above 0 for some of train, val and test: "
                "change them."
            )
        if max(shares.values()) < 1 and abs(sum(shares.values()) - 1) > 0.005:
            raise ValueError(
                f"split got shares that add up to {sum(shares.values()):g}, expected 1, or whole "
                f"numbers such as 8, 1 and 1: change one of {dict(shares)}."
            )
        if unknown := [name for name in self.stratify if name not in STRATA]:
            raise ValueError(
                f"split got stratify {unknown[0]!r}, expected some of {', '.join(STRATA)}: change it."
            )
        if self.guard_mm < 0:
            raise ValueError(f"split got guard_mm {self.guard_mm}, expected 0 mm or more: raise it.")
        for triplet in self.hold_out:
            if len(str(triplet).split("/")) != 3:
                raise ValueError(
                    f"split got hold_out {triplet!r}, expected modality/anatomy/task such as ct/liver/vqa."
                )

    @property
    def _shares(self) -> dict[str, float]:
        return dict({"train": 0.8, "val": 0.1, "test": 0.1} if self.shares is None else self.shares)

    def note(self, record: Record) -> Note:
        """{keys, split, strata, dataset, triplet, plane, at}; see `Whole`."""
        note: Note = {"keys": self._keys(record), "split": record.split, "dataset": record.dataset}
        note["strata"] = [getattr(record, name) for name in self.stratify]
        anatomy = record.facts.get("organ") or record.facts.get("body") or "unknown"
        note["triplet"] = f"{record.modality}/{anatomy}/{record.sub_task_type}"
        if record.dataset in self.slabs:
            images = record.input_img or record.output_img
            note["plane"], note["at"] = _place(images[0]) if images else ("", None)
        return note

    def _keys(self, record: Record) -> list[str]:
        """What the record must not share with another split."""
        keys = [key for key in (record.patient, record.study) if key]
        keys += [known.pixels[:16] for known in telling_prints(record, self.root or None)]
        return keys or [f"id {record.id}"]

    def decide(self, notes: Iterable[Note]) -> Iterator[Verdict]:
        """See `Whole`."""
        rows, groups, keys = _read(notes)
        chosen: list[Verdict | None] = [None] * len(rows)
        members: dict[int, list[int]] = defaultdict(list)
        for place, group in enumerate(groups):
            members[group].append(place)
        cut = set(self.slabs)
        filled: dict[str, Counter] = {split: Counter() for split in self._shares}
        free: list[int] = []
        for group, places in members.items():
            if given := {rows[place].split for place in places} - {""}:
                if all(rows[place].dataset in cut and rows[place].split for place in places):
                    for place in places:  # slices that were cut into slabs before
                        chosen[place] = KEEP
                    continue
                split = next(name for name in PROTECTED if name in given)
                for place in places:
                    chosen[place] = _given(split, rows[place].split)
                _count(filled.setdefault(split, Counter()), rows, places)
            elif not all(rows[place].dataset in cut for place in places):
                free.append(group)
        sliced = [group for group, places in members.items() if chosen[places[0]] is None]
        for group in sorted(set(sliced) - set(free)):
            for place, verdict in self._slabs(rows, members[group]):
                chosen[place] = verdict
        for group, split in self._share_out(free, keys, members, rows, filled).items():
            for place in members[group]:
                chosen[place] = Verdict(fields={"split": split})
        held = self._held({row.triplet for row in rows})
        for row, found in zip(rows, chosen, strict=True):
            assert found is not None
            yield _held_out(row, found) if row.triplet in held and not found.code else found

    def _share_out(
        self, free: Sequence[int], keys: Mapping[int, str], members: Mapping[int, list[int]],
        rows: Sequence[_Row], filled: dict[str, Counter],
    ) -> dict[int, str]:  # fmt: skip
        """Group -> split: large ones first, each to where its strata are filled least."""
        shares = self._shares
        total = sum(shares.values())

        def drawn(group: int) -> str:
            return hashlib.sha256(f"{self.seed} {keys[group]}".encode()).hexdigest()

        ordered = sorted(free, key=lambda group: (-len(members[group]), drawn(group)))
        given: dict[int, str] = {}
        everything: Counter = Counter()
        for group in ordered:
            _count(everything, rows, members[group])
        for counter in filled.values():
            everything.update(counter)
        for group in ordered:
            mine: Counter = Counter()
            _count(mine, rows, members[group])

            def cost(split: str, mine: Counter = mine) -> float:
                share = shares[split] / total
                return sum(n * (filled[split][k] + n) / (share * everything[k]) for k, n in mine.items())

            given[group] = min(shares, key=lambda split: (cost(split), split))
            filled[given[group]].update(mine)
        sizes = Counter(given.values())
        for split in shares:  # a small corpus could leave one empty
            if not filled[split] and len(ordered) >= len(shares) and max(sizes.values()) > 1:
                largest = sizes.most_common(1)[0][0]
                moved = [group for group in reversed(ordered) if given[group] == largest][0]
                given[moved] = split
                sizes = Counter(given.values())
        return given

    def _slabs(self, rows: Sequence[_Row], places: Sequence[int]) -> Iterator[tuple[int, Verdict]]:
        """Of each plane of one patient the runs of slices; what has no place goes to train."""
        planes: dict[str, list[int]] = defaultdict(list)
        for place in places:
            if rows[place].at is None:
                yield place, Verdict(fields={"split": "train"})
            else:
                planes[rows[place].plane].append(place)
        for plane, inside in planes.items():
            at = {place: float(rows[place].at or 0.0) for place in inside}
            splits = _runs(sorted(set(at.values())), self._shares, self.guard_mm if plane in AXES else None)
            for place in inside:
                split = splits[at[place]]
                if split:
                    yield place, Verdict(fields={"split": split}, facts={"slab": plane or "index"})
                else:
                    reason = f"the slice lies within the guard of {self.guard_mm:g} mm between two slabs."
                    yield place, Verdict("slab-guard", reason)

    def _held(self, triplets: set[str]) -> set[str]:
        """The triplets that are held out: those named, and some whose parts all occur in others."""
        held = set(map(str, self.hold_out))
        wanted = len(held) + self.hold_out_count
        known = sorted(triplets - held, key=lambda t: hashlib.sha256(f"{self.seed} {t}".encode()).hexdigest())
        for triplet in known:
            others = [each.split("/") for each in known if each != triplet and each not in held]
            parts = triplet.split("/")
            if len(held) < wanted and all(any(other[n] == parts[n] for other in others) for n in range(3)):
                held.add(triplet)
        return held


def _given(split: str, own: str) -> Verdict:
    """A record whose group was given a split."""
    if own in ("", split):
        return Verdict(fields={"split": split} if not own else {})
    return Verdict(
        "patient-across-splits",
        f"its patient, study or picture is in split {split!r} too, and this record in {own!r}, expected one.",
    )


def _held_out(row: _Row, verdict: Verdict) -> Verdict:
    """A record of a triplet that is held out: tested, and not trained on."""
    if verdict.fields.get("split", row.split) == "test":
        return Verdict(fields=verdict.fields, facts={**verdict.facts, "held_out": row.triplet})
    return Verdict("held-out-triplet", f"{row.triplet} is held out for testing.")


def _runs(at: Sequence[float], shares: Mapping[str, float], guard: float | None) -> dict[float, str]:
    """Position -> split, "" in the guards: val and test are runs inside, with train before, between, after.

    Args:
        guard: mm between two runs; None: `STEPS_OF_GUARD` slices on each side.
    """
    total = sum(shares.values())
    train = shares.get("train", 0.0)
    plan = [("train", 0.4 * train), ("val", shares.get("val", 0.0)), ("train", 0.35 * train)]
    plan += [("test", shares.get("test", 0.0)), ("train", 0.25 * train)]
    splits: dict[float, str] = {}
    borders, start = [], 0.0
    for name, share in plan:
        stop = start + len(at) * share / total
        for value in at[round(start) : round(stop)]:
            splits[value] = name
        if share and 0 < round(start) < len(at):
            borders.append(round(start))
        start = stop
    for border in borders:
        middle = (at[border - 1] + at[border]) / 2
        for place, value in enumerate(at):
            steps = border - 1 - place if place < border else place - border
            if steps < STEPS_OF_GUARD if guard is None else abs(value - middle) < guard / 2:
                splits[value] = ""
    return splits


def _place(image: ImageFile) -> tuple[str, float | None]:
    """(plane, mm along its axis) of a picture, ("", number of the slice) or ("", None)."""
    place = image.place
    plane, at = str(place.get("plane", "")), place.get("position_mm", place.get("position"))
    if plane in AXES and isinstance(at, list | tuple) and len(at) == 3:
        return plane, float(at[AXES[plane]])
    if plane in AXES and isinstance(at, int | float):
        return plane, float(at)
    index = place.get("index")
    return "", float(index) if isinstance(index, int) else None


class _Row(NamedTuple):
    """What is kept of a note; its words are shared among the rows."""

    split: str
    dataset: str
    strata: tuple[str, ...]
    triplet: str
    plane: str
    at: float | None


def _read(notes: Iterable[Note]) -> tuple[list[_Row], list[int], dict[int, str]]:
    """The rows; the group of each, joined by the keys that they share; and the first key of each group."""
    rows: list[_Row] = []
    parent: list[int] = []
    first: dict[str, int] = {}
    words: dict[str, str] = {}
    strata: dict[tuple[str, ...], tuple[str, ...]] = {}

    def top(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    for number, note in enumerate(notes):
        parent.append(number)
        for key in note["keys"]:
            a, b = top(first.setdefault(key, number)), top(number)
            parent[max(a, b)] = min(a, b)
        known = tuple(note["strata"])
        plain = [words.setdefault(w, w) for w in (note["split"], note["dataset"], note["triplet"])]
        plane = words.setdefault(note.get("plane", ""), note.get("plane", ""))
        at = note.get("at")
        rows.append(_Row(plain[0], plain[1], strata.setdefault(known, known), plain[2], plane, at))
    groups = [top(row) for row in range(len(rows))]
    keys: dict[int, str] = {}
    for key, row in first.items():
        keys[groups[row]] = min(key, keys.get(groups[row], key))
    return rows, groups, keys


def _count(counter: Counter, rows: Sequence[_Row], places: Sequence[int]) -> None:
    """Add the rows to a counter, by stratum."""
    for place in places:
        counter[rows[place].strata] += 1
