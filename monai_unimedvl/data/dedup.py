# SPDX-License-Identifier: Apache-2.0
"""Steps that leave out what is there twice, and what a benchmark asks.

    steps: [{step: dedup}, {step: decontaminate, against: [vqa-rad.jsonl]}]

A duplicate says the same about the same pictures for the same task; the first stays. The same picture with
other questions, or another slice of the same patient, is none.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, product
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from monai_unimedvl.data.near import near_minhashes, near_packed_images
from monai_unimedvl.data.prints import (
    IMAGE_BYTES,
    PERMUTATIONS,
    ImagePrint,
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
    embedder: str = option("", "folder of a dual encoder: pictures of near vectors are alike too (FAISS)")
    cosine: float = option(0.98, "of two vectors, from which on pictures are alike")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.embedder:
            from monai_unimedvl.data.backends.local import checked

            checked(self.embedder)

    def note(self, record: Record) -> Note:
        """See `Whole`; with a vector of each picture where there is an encoder."""
        note = super().note(record)
        if self.embedder:
            from monai_unimedvl.data.vectors import vector_of

            for known, image in zip(note["images"], images_of(record), strict=True):
                known["vector"] = vector_of(image, self.embedder, self.root or None)
        return note

    def decide(self, notes: Iterable[Note]) -> Iterator[Verdict]:
        """See `Whole`; the first of those alike stays."""
        pictures, texts = _Pictures(), _Texts()
        owners, tasks = array("q"), _Numbers()  # of each picture: whose it is, as a hash
        rows = array("I")  # of each record: task, text, how many pictures, their numbers
        count = 0
        for note in notes:
            seen = [pictures.number(each) for each in note["images"]]
            owner = hash64(note["owner"]) >> 1 if note["owner"] else 0
            owners.extend([owner] * (len(pictures) - len(owners)))
            rows.extend((tasks.number(note["task"]), texts.number(note["words"]), len(seen), *seen))
            count += 1
        alike_pictures, alike_texts = self._alike(pictures, texts, owners)
        kept: set[int] = set()
        at = 0
        for _ in range(count):
            task, text, many = rows[at : at + 3]
            seen = rows[at + 3 : at + 3 + many].tolist()
            at += 3 + many
            key = hash((task, text, *seen))
            if key in kept:
                yield Verdict("duplicate", "a record with the same pictures, words and task came before it.")
                continue
            choices = [[text, *alike_texts.get(text, ())], *([n, *alike_pictures.get(n, ())] for n in seen)]
            others = islice(product(*choices), 1, COMBINATIONS)
            if any(hash((task, *other)) in kept for other in others):
                yield Verdict(
                    "near-duplicate",
                    "a record of the same task whose pictures and words are alike came before it.",
                )
                continue
            kept.add(key)
            yield KEEP

    def _alike(
        self, pictures: _Pictures, texts: _Texts, owners: Sequence[int]
    ) -> tuple[dict[int, list[int]], dict[int, list[int]]]:
        """Of each picture and text those alike; slices of one patient are alike by nature, so left out."""
        alike_pictures: dict[int, list[int]] = {}
        alike_texts: dict[int, list[int]] = {}
        if not self.near:
            return alike_pictures, alike_texts
        pairs = near_packed_images(pictures.packed, distance=self.distance, similarity=self.similarity)
        if self.embedder:
            from monai_unimedvl.data.vectors import near_vectors

            pairs = np.unique(np.concatenate([pairs, near_vectors(pictures.vectors, self.cosine)]), axis=0)
        for a, b in pairs.tolist():
            if not owners[a] or owners[a] != owners[b]:
                alike_pictures.setdefault(a, []).append(b)
                alike_pictures.setdefault(b, []).append(a)
        for a, b in texts.places(near_minhashes(texts.hashes, similarity=self.overlap)).tolist():
            alike_texts.setdefault(a, []).append(b)
            alike_texts.setdefault(b, []).append(a)
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
        pictures, texts = _Pictures(), _Texts()
        names: dict[str, list[str]] = {"image": [], "words": []}
        for path in [self.against] if isinstance(self.against, str) else self.against:
            for name, each in read_prints(path):
                if isinstance(each, ImagePrint):
                    pictures.number(each.to_json())
                    names["image"] += [name] * (len(pictures) - len(names["image"]))
                elif each.minhash:
                    texts.number(each.to_json())
                    names["words"] += [name] * (len(texts) - len(names["words"]))
        borders = {"image": len(pictures), "words": len(texts)}
        rows = []
        for note in notes:
            long = "minhash" in note["words"]
            seen = [pictures.number(each) for each in note["images"]]
            rows.append((seen, texts.number(note["words"]) if long else None))
        near_pictures = near_packed_images(
            pictures.packed, distance=self.distance, similarity=self.similarity
        )
        near_texts = texts.places(near_minhashes(texts.hashes, similarity=self.overlap))
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


class _Numbers:
    """Distinct keys, numbered as they came."""

    def __init__(self) -> None:
        self._numbers: dict[Any, int] = {}

    def __len__(self) -> int:
        return len(self._numbers)

    def number(self, key: Any) -> int:
        """The number of a key; a new one gets the next."""
        return self._numbers.setdefault(key, len(self._numbers))


class _Pictures(_Numbers):
    """Distinct pictures, their prints packed: 208 bytes each."""

    def __init__(self) -> None:
        super().__init__()
        self._bytes, self._vectors = bytearray(), bytearray()

    def number(self, key: Mapping[str, str]) -> int:
        """The number of the JSON of an `ImagePrint`, with or without a vector."""
        before = len(self)
        number = super().number(int(key["pixels"][:16], 16))
        if len(self) > before:
            self._bytes += bytes.fromhex(key["average"] + key["dct"] + key["thumb"])
            self._vectors += bytes.fromhex(key.get("vector", ""))
        return number

    @property
    def vectors(self) -> NDArray[np.float32]:
        """(N, D) of length 1"""
        width = len(self._vectors) // max(2 * len(self), 1)
        return np.frombuffer(self._vectors, "<f2").reshape(len(self), width).astype(np.float32)

    @property
    def packed(self) -> NDArray[np.uint8]:
        """(N, 208)"""
        return np.frombuffer(self._bytes, np.uint8).reshape(-1, IMAGE_BYTES)


class _Texts(_Numbers):
    """Distinct texts, and the MinHashes of those that are long."""

    def __init__(self) -> None:
        super().__init__()
        self._bytes, self._long = bytearray(), array("I")

    def number(self, key: Mapping[str, str]) -> int:
        """The number of the JSON of a `WordPrint`."""
        before = len(self)
        number = super().number(int(key["words"], 16))
        if len(self) > before and "minhash" in key:
            self._bytes += bytes.fromhex(key["minhash"])
            self._long.append(number)
        return number

    @property
    def hashes(self) -> NDArray[np.uint32]:
        """(M, 32) of the long ones"""
        return np.frombuffer(self._bytes, "<u4").reshape(-1, PERMUTATIONS)

    def places(self, pairs: NDArray[np.int64]) -> NDArray[np.int64]:
        """Pairs of long texts as pairs of texts."""
        return np.array(self._long, np.int64)[pairs]


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
