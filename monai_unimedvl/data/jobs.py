# SPDX-License-Identifier: Apache-2.0
"""What one worker does of a build: a part of a pass, or a shard; written whole or not at all.

    WORK/corpus/images/...               every picture once, under a hash
    WORK/pass-0/part-00012/              records.jsonl, rejects.jsonl, tally.json, and a notes-N.jsonl for
                                         each decision to come
    WORK/verdicts-0-1/part-00012.jsonl   of pass 0 the second decision: a line for each record
    WORK/shards/shard-00000.json         what is in a shard that is written

A job that is done again writes the same bytes: it does not matter who did it, how often, or who was killed.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from monai_unimedvl.atomic import write
from monai_unimedvl.data.bare import content_name
from monai_unimedvl.data.dialogue import read_content, shared_pixels
from monai_unimedvl.data.facts import told_by
from monai_unimedvl.data.files import write_json
from monai_unimedvl.data.leaks import leak_row
from monai_unimedvl.data.prints import images_of, words_of
from monai_unimedvl.data.record import ImageFile, InvalidRecord, Record, Reject, read_jsonl
from monai_unimedvl.data.shards import COUNTED, write_shard
from monai_unimedvl.data.step import Item, Source, Step, Tally, make
from monai_unimedvl.data.whole import Verdict, Whole

Job = dict[str, Any]
RECORDS, REJECTS, TALLY, WEIGHTS = "records.jsonl", "rejects.jsonl", "tally.json", "weights.json"
CHARACTERS = (0, 10, 30, 100, 300, 1000, 3000)  # borders of the report's histograms
SIDES = (0, 64, 128, 256, 512, 1024, 2048)


def run_job(job: Job) -> Job:
    """Do a job, unless its result is there; returns a few words about it.

    Args:
        job: as `pipeline` makes it; all JSON, so that any engine can send it anywhere.
    """
    kind = {"read": _read_part, "map": _map_part, "shard": _write_one}[job["kind"]]
    return {"job": job["name"], **kind(job)}


def part_name(number: int) -> str:
    """part-00012"""
    return f"part-{number:05d}"


@functools.lru_cache(maxsize=256)
def step_of(options: str) -> Step:
    """The step of options as JSON; made once a process, so that a model is loaded once."""
    return make(json.loads(options))


@functools.lru_cache(maxsize=64)
def parts_of(options: str) -> Sequence[Any]:
    """What a source has to read; listed once a process."""
    source = step_of(options)
    assert isinstance(source, Source)
    return source.parts()


def _read_part(job: Job) -> Job:
    """Some parts of a source, and the steps that follow."""
    source = step_of(job["source"])
    assert isinstance(source, Source)
    tally = Tally()

    def items() -> Iterator[Item]:
        for part in parts_of(job["source"])[job["first"] : job["stop"]]:
            yield from source.unit(source.each, part, tally)

    return _write_part(job, items(), [(f"{job['label']}", tally)])


def _map_part(job: Job) -> Job:
    """A part of the pass before, as it was decided on, and the steps that follow."""
    work = Path(job["work"])
    items = (item for item in decided(work, job["before"], job["number"], job["decisions"]))
    return _write_part(job, (item for item in items if isinstance(item, Record)), [])


def _write_part(job: Job, items: Iterable[Item], tallies: list[tuple[str, Tally]]) -> Job:
    """Run the steps over the items and write what comes out, with notes for the decisions that follow."""
    work = Path(job["work"])
    final = work / f"pass-{job['pass']}" / part_name(job["number"])
    if final.is_dir():
        return {"records": None}
    for options in job["steps"]:
        step, tally = step_of(options), Tally()
        tallies.append((step.name, tally))
        items = step(items, tally)
    deciding = [step_of(options) for options in job["notes"]]
    final.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=".tmp-", dir=final.parent))
    corpus = work / "corpus"
    weights: list[int] = []
    made: set[str] = set()  # ids of records that others were made of
    checks = Tally()
    tallies.append(("check", checks))
    try:
        with (aside / RECORDS).open("w", encoding="utf8") as kept, \
                (aside / REJECTS).open("w", encoding="utf8") as left:  # fmt: skip
            notes = [(aside / f"notes-{n}.jsonl").open("w", encoding="utf8") for n in range(len(deciding))]
            for item in items:
                if isinstance(item, Reject):
                    _line(left, item.to_json())
                    continue
                record = stored(item, corpus)
                made.add(str(record.provenance.get("id", {}).get("from", "")))
                said = _noted(record, deciding)
                weight: int | Reject = 0
                if job["check"] and not isinstance(said, Reject):
                    weight = _checked(record, corpus, record.id in made)
                if isinstance(said, Reject) or isinstance(weight, Reject):
                    refused = said if isinstance(said, Reject) else weight
                    assert isinstance(refused, Reject)
                    _line(left, refused.to_json())
                    checks.count(refused)
                    checks.end(kept=False)
                    continue
                checks.count(record)
                checks.end(kept=True)
                _line(kept, record.to_json())
                weights.append(weight)
                for stream, note in zip(notes, said, strict=True):
                    _line(stream, note)
            for stream in notes:
                stream.close()
        (aside / WEIGHTS).write_text(json.dumps(weights))
        counted = [[name, tally.to_json()] for name, tally in tallies]
        (aside / TALLY).write_text(json.dumps({"records": len(weights), "steps": counted}))
        os.chmod(aside, 0o755)  # a temporary folder is for its owner only
        try:
            os.rename(aside, final)
        except OSError:  # somebody who was thought dead has done it too
            if not final.is_dir():
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return {"records": len(weights)}


def _write_one(job: Job) -> Job:
    """A shard out of rows of parts, and what is in it."""
    work, out = Path(job["work"]), Path(job["out"])
    told = work / "shards" / f"{job['name']}.json"
    path = out / f"{job['name']}.parquet"
    if told.is_file():
        known = json.loads(told.read_text("utf8"))
        if path.is_file() and path.stat().st_size == known["shard"]["bytes"]:
            return {"records": None}
    contents = Contents()
    aside = Path(tempfile.mkdtemp(prefix=".tmp-", dir=work))
    try:
        with (aside / "leaks.jsonl").open("w", encoding="utf8") as leaks:

            def records() -> Iterator[Record]:
                for number, first, stop in job["rows"]:
                    rows = islice(decided(work, job["before"], number, job["decisions"]), first, stop)
                    for item in rows:
                        if isinstance(item, Record):
                            record = embedded(item, work / "corpus")
                            contents.add(record)
                            if job["leaks"]:
                                _line(leaks, leak_row(record))
                            yield record

            shard = write_shard(records(), aside, path.name)
        os.chmod(aside / path.name, 0o644)
        if job["leaks"]:
            told.parent.mkdir(exist_ok=True)
            os.replace(aside / "leaks.jsonl", told.with_name(f"{job['name']}.leaks.jsonl"))
        os.replace(aside / path.name, path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    write_json(told, {"shard": shard, **contents.to_json()})
    return {"records": shard["rows"]}


def decided(work: Path, before: int, number: int, decisions: int) -> Iterator[Item]:
    """The records of a part in their order, as the decisions after its pass left them; those left out too."""
    folder = work / f"pass-{before}" / part_name(number)
    verdicts = [
        read_lines(work / f"verdicts-{before}-{n}" / f"{part_name(number)}.jsonl") for n in range(decisions)
    ]
    for record, *said in zip(read_jsonl(folder / RECORDS), *verdicts, strict=True):
        assert isinstance(record, Record), f"{folder.name} holds what is no record: {record}"
        item: Item = record
        for row in said:
            if row and isinstance(item, Record):
                item = judged(item, row)
        yield item


def judged(record: Record, row: Mapping[str, Any]) -> Item:
    """A record and a line of verdicts -> what becomes of it."""
    if "record" in row:
        return Record.from_json(row["record"])
    said = {name: value for name, value in row.items() if name != "step"}
    return Verdict(**said).apply(record, row["step"])


def read_lines(path: Path) -> Iterator[Any]:
    """The JSON of each line."""
    with path.open(encoding="utf8") as stream:
        for line in stream:
            yield json.loads(line)


def stored(record: Record, corpus: Path) -> Record:
    """The record with embedded images as files of the corpus, under the hash of their bytes."""
    if all(image.content is None for image in images_of(record)):
        return record
    return replace(
        record,
        input_img=tuple(_stored(image, corpus) for image in record.input_img),
        output_img=tuple(_stored(image, corpus) for image in record.output_img),
    )


def _stored(image: ImageFile, corpus: Path) -> ImageFile:
    if image.content is None:
        return image
    name = content_name(image.content)  # nothing of its own name, where a patient's may stand
    path = corpus / name
    if not path.is_file():
        write(path, image.content)
    return replace(image, path=name, content=None)


def embedded(record: Record, corpus: Path) -> Record:
    """The record with the bytes of its images."""
    return replace(
        record,
        input_img=tuple(replace(each, content=read_content(each, corpus)) for each in record.input_img),
        output_img=tuple(replace(each, content=read_content(each, corpus)) for each in record.output_img),
    )


def _noted(record: Record, deciding: Sequence[Step]) -> list[Any] | Reject:
    """What the decisions to come need to know of a record, or why it cannot be judged."""
    said = []
    for step in deciding:
        try:
            said.append(step.note(record) if isinstance(step, Whole) else None)
        except Exception as error:  # as in Step.unit: a damaged picture must not end the run
            return step.refusal(error, record.id)
    return said


def _checked(record: Record, corpus: Path, used: bool) -> int | Reject:
    """Bytes that a record will take in a shard, if something is learnt from it and its images can be read.

    Args:
        used: whether other records were made of it.
    """
    if not record.output_img and not any(m.speaker == "gpt" and m.value.strip() for m in record.message):
        if used:
            reason = "the image without words is done with, since records with words were made of it."
            return Reject("bare-image", reason, record.id, "check")
        reason = "the record has no answer and no image to draw, expected either: add a step that makes them."
        return Reject("nothing-to-learn", reason, record.id, "check")
    try:
        return 1000 + sum(
            _size(each.path, each.height, each.width, str(corpus)) for each in images_of(record)
        )
    except InvalidRecord as error:
        return Reject(error.code, error.reason, record.id, "check")


@functools.lru_cache(maxsize=512)
def _size(path: str, height: int, width: int, corpus: str) -> int:
    """Bytes of an image that can be read."""
    image = ImageFile(path, height, width)
    content = read_content(image, corpus)
    shared_pixels(replace(image, content=content))
    return len(content)


class Contents:
    """Counts and histograms of the records of a shard, as they go by."""

    def __init__(self) -> None:
        self.rows = 0
        self.counts = {name: Counter[str]() for name in (*COUNTED, "licence")}
        self.sources, self.words_by, self.told_by = Counter[str](), Counter[str](), Counter[str]()
        self.owners: dict[str, set[str]] = {}
        self.examples: dict[str, int] = {}
        self.characters, self.sides = Counter[int](), Counter[int]()

    def add(self, record: Record) -> None:
        """One more."""
        for name, counter in self.counts.items():
            counter[getattr(record, name)] += 1
        self.sources[f"{record.dataset}\t{record.source}\t{record.licence}"] += 1
        self.words_by[str(record.provenance.get("message", {}).get("by", "as it came"))] += 1
        self.told_by[told_by(record.facts, record.patient, record.study)] += 1
        self.owners.setdefault(record.split, set()).update([record.patient] if record.patient else [])
        self.examples.setdefault(f"{record.sub_task_type}\t{record.modality}", self.rows)
        self.characters[bin_of(len(words_of(record)), CHARACTERS)] += 1
        for image in images_of(record)[:1]:
            self.sides[bin_of(min(image.height, image.width), SIDES)] += 1
        self.rows += 1

    def to_json(self) -> dict[str, Any]:
        """By name; the keys of tables in order."""
        return {
            "counts": {name: dict(sorted(counter.items())) for name, counter in self.counts.items()},
            "sources": dict(sorted(self.sources.items())),
            "words_by": dict(sorted(self.words_by.items())),
            "told_by": dict(sorted(self.told_by.items())),
            "patients": {split: sorted(names) for split, names in sorted(self.owners.items())},
            "examples": self.examples,
            "characters": [self.characters[n] for n in range(len(CHARACTERS))],
            "sides": [self.sides[n] for n in range(len(SIDES))],
        }


def bin_of(value: int, borders: Sequence[int]) -> int:
    """The number of the bin that a value lies in, each from its border to the next; the last is open."""
    return max(place for place, border in enumerate(borders) if value >= border)


def _line(stream: Any, row: Any) -> None:
    stream.write(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n")
