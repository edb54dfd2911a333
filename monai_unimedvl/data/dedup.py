# SPDX-License-Identifier: Apache-2.0
"""Steps that leave out what is there twice, and what a benchmark asks.

    steps: [{step: dedup}, {step: decontaminate, against: [vqa-rad.jsonl]}]

A duplicate says the same about the same pictures for the same task; the first stays. The same picture with
other questions, or another slice of the same patient, is none.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, product
from typing import Any, ClassVar

from monai_unimedvl.data.near import near_images, near_words
from monai_unimedvl.data.prints import (
    ImagePrint,
    WordPrint,
    image_print,
    images_of,
    read_prints,
    word_print,
    words_of,
)
from monai_unimedvl.data.record import Record
from monai_unimedvl.data.step import option
from monai_unimedvl.data.whole import KEEP, Note, Verdict, Whole

CODES = {
    "duplicate": "the same words about the same pictures came before",
    "near-duplicate": "nearly the same words about pictures that look alike came before",
    "duplicate-id": "a record of this id came before",
    "benchmark-image": "a picture that a benchmark has, or one that looks like it",
    "benchmark-words": "a text that a benchmark has, or nearly",
}
COMBINATIONS = 256  # of alike pictures and texts that are looked up for one record


@dataclass(frozen=True, kw_only=True)
class Printed(Whole):
    """What deduplication and decontamination note of a record."""

    root: str = option("", "folder of the corpus, whose images/ the records name")
    distance: int = option(16, "bits of 256 by which two perceptual hashes may differ")
    similarity: float = option(0.99, "correlation of thumbnails from which on pictures look alike")
    overlap: float = option(0.9, "share of common three-word pieces from which on texts read alike")

    def __post_init__(self) -> None:
        if not (0 <= self.distance < 64 and 0 < self.similarity <= 1 and 0 < self.overlap <= 1):
            raise ValueError(
                f"step {self.name!r} got distance {self.distance}, similarity {self.similarity} and overlap "
                f"{self.overlap}, expected below 64 bits and shares in (0, 1]: change them."
            )

    def note(self, record: Record) -> Note:
        """{task, owner, images, words}; see `Whole`."""
        note: Note = {"task": record.sub_task_type, "owner": record.patient or record.study}
        note["images"] = [image_print(each, self.root or None).to_json() for each in images_of(record)]
        note["words"] = word_print(words_of(record)).to_json()
        return note


@dataclass(frozen=True, kw_only=True)
class Dedup(Printed):
    """Leave out a record that says the same about the same pictures as one before it."""

    name: ClassVar[str] = "dedup"
    about: ClassVar[str] = "leave out duplicates and near-duplicates"
    example: ClassVar[str] = "records.jsonl --out kept.jsonl"

    near: bool = option(True, "also what only looks and reads alike; false: equal pixels and words only")

    def decide(self, notes: Iterable[Note]) -> Iterator[Verdict]:
        """See `Whole`; the first of those alike stays."""
        pictures, texts = _Table(), _Table()
        owners: list[str] = []
        rows: list[tuple[str, tuple[int, ...], int]] = []
        for note in notes:
            seen = []
            for each in note["images"]:
                number = pictures.number(each["pixels"], ImagePrint(**each))
                seen.append(number)
                if number == len(owners):
                    owners.append(note["owner"])
            words = WordPrint(**note["words"])
            rows.append((note["task"], tuple(seen), texts.number(words.words, words)))
        alike_pictures, alike_texts = self._alike(pictures, texts, owners)
        kept: set[tuple[str, tuple[int, ...], int]] = set()
        for row in rows:
            task, seen_images, text = row
            if row in kept:
                yield Verdict("duplicate", "a record with the same pictures, words and task came before it.")
                continue
            choices = [[n, *alike_pictures[n]] for n in seen_images] + [[text, *alike_texts[text]]]
            others = islice(product(*choices), 1, COMBINATIONS)
            if any((task, other[:-1], other[-1]) in kept for other in others):
                yield Verdict(
                    "near-duplicate",
                    "a record of the same task whose pictures and words are alike came before it.",
                )
                continue
            kept.add(row)
            yield KEEP

    def _alike(
        self, pictures: _Table, texts: _Table, owners: Sequence[str]
    ) -> tuple[dict[int, list[int]], dict[int, list[int]]]:
        """Of each picture and each text, those alike; slices of one patient are alike by nature, so left."""
        alike_pictures: dict[int, list[int]] = defaultdict(list)
        alike_texts: dict[int, list[int]] = defaultdict(list)
        if not self.near:
            return alike_pictures, alike_texts
        pairs = near_images(pictures.prints, distance=self.distance, similarity=self.similarity).tolist()
        for a, b in pairs:
            if not owners[a] or owners[a] != owners[b]:
                alike_pictures[a].append(b)
                alike_pictures[b].append(a)
        for a, b in near_words(texts.prints, similarity=self.overlap).tolist():
            alike_texts[a].append(b)
            alike_texts[b].append(a)
        return alike_pictures, alike_texts


@dataclass(frozen=True, kw_only=True)
class Decontaminate(Printed):
    """Leave out a record with a picture or a text of a benchmark."""

    name: ClassVar[str] = "decontaminate"
    about: ClassVar[str] = "leave out what a benchmark has, by lists of its fingerprints"
    example: ClassVar[str] = "records.jsonl --against vqa-rad.jsonl --out kept.jsonl"

    against: tuple[str, ...] = option(about="lists that `unimedvl data prints` wrote")

    def decide(self, notes: Iterable[Note]) -> Iterator[Verdict]:
        """See `Whole`; short texts, which anybody may write, are no reason."""
        pictures, texts = _Table(), _Table()
        names: dict[str, list[str]] = {"image": [], "words": []}
        for path in [self.against] if isinstance(self.against, str) else self.against:
            for name, each in read_prints(path):
                if isinstance(each, ImagePrint):
                    if pictures.number(each.pixels, each) == len(names["image"]):
                        names["image"].append(name)
                elif each.minhash and texts.number(each.words, each) == len(names["words"]):
                    names["words"].append(name)
        borders = {"image": len(pictures.prints), "words": len(texts.prints)}
        rows = []
        for note in notes:
            words = WordPrint(**note["words"])
            seen = [pictures.number(each["pixels"], ImagePrint(**each)) for each in note["images"]]
            rows.append((seen, texts.number(words.words, words) if words.minhash else None))
        near_pictures = near_images(pictures.prints, distance=self.distance, similarity=self.similarity)
        near_texts = near_words(texts.prints, similarity=self.overlap)
        hit = {"image": _first_hits(near_pictures, borders["image"])}
        hit["words"] = _first_hits(near_texts, borders["words"])
        for seen, text in rows:
            asked = [("image", n) for n in seen] + [("words", text)] * (text is not None)
            benchmarks = [
                (kind, names[kind][n if n < borders[kind] else hit[kind][n]])
                for kind, n in asked if n is not None and (n < borders[kind] or n in hit[kind])
            ]  # fmt: skip
            if benchmarks:
                kind, name = benchmarks[0]
                what = "a picture" if kind == "image" else "words"
                yield Verdict(f"benchmark-{kind}", f"{what} of the benchmark {name}, or very like it.")
            else:
                yield KEEP


@dataclass(frozen=True, kw_only=True)
class UniqueIds(Whole):
    """Leave out a record whose id came before."""

    name: ClassVar[str] = "unique-ids"
    about: ClassVar[str] = "leave out records of an id that came before; every pipeline ends so"
    example: ClassVar[str] = "records.jsonl --out kept.jsonl"

    def note(self, record: Record) -> Note:
        """See `Whole`."""
        return {"id": record.id}

    def decide(self, notes: Iterable[Note]) -> Iterator[Verdict]:
        """See `Whole`; at once, note by note."""
        seen: set[int] = set()
        for note in notes:
            key = hash64(note["id"])
            if key in seen:
                yield Verdict("duplicate-id", "a record of this id came before, expected one.")
            else:
                seen.add(key)
                yield KEEP


class _Table:
    """Distinct prints by their digests, numbered as they came."""

    def __init__(self) -> None:
        self.prints: list[Any] = []
        self._numbers: dict[int, int] = {}

    def number(self, digest: str, whole: ImagePrint | WordPrint) -> int:
        """The number of a print; a new one gets the next."""
        number = self._numbers.setdefault(int(digest[:16], 16), len(self.prints))
        if number == len(self.prints):
            self.prints.append(whole)
        return number


def hash64(text: str) -> int:
    """64 bits of a text, the same in every process."""
    return int.from_bytes(hashlib.sha256(text.encode("utf8", "surrogatepass")).digest()[:8], "big")


def _first_hits(pairs: Any, border: int) -> dict[int, int]:
    """Thing of the corpus -> the first thing of a benchmark (numbered below `border`) that it is alike."""
    hits: dict[int, int] = {}
    for a, b in pairs.tolist():
        if a < border <= b:
            hits.setdefault(b, a)
    return hits
