# SPDX-License-Identifier: Apache-2.0
"""A CSV or JSON table of images and what is known of them: labels, measurements, captions, questions.

Columns of usual names are found by themselves; others are named by `columns`: `image=Path labels=Edema|Mass`.
Columns that nobody asked for are left out, since they may hold anything about a patient. All pictures of a
volume stay in one record, because a row is about the whole of it. How labels may be written: `findings`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from monai_unimedvl.data.ingest.base import Ingest, inside, patient_left
from monai_unimedvl.data.ingest.findings import LABELS, UNSURE, Findings, usual
from monai_unimedvl.data.ingest.headings import sections
from monai_unimedvl.data.ingest.nifti import check_pattern
from monai_unimedvl.data.ingest.rows import Rows
from monai_unimedvl.data.record import InvalidRecord, Message, Record
from monai_unimedvl.data.step import Item, option

USUAL = {
    "image": "image image_path path file filename file_name img image_id image_index",
    "patient": "patient patient_id patientid subject subject_id",
    "study": "study study_id studyid accession",
    "split": "split section partition fold",
    "labels": LABELS,
    "caption": "caption captions description text",
    "findings": "findings",
    "impression": "impression conclusion",
    "report": "report",
    "question": "question",
    "answer": "answer",
    "side": "side laterality",
    "view": "view view_position viewposition projection",
    "organ": "organ body_part bodypart anatomy region",
    "modality": "modality",
    "contrast": "contrast sequence",
}
SIDES = {"l": "left", "left": "left", "r": "right", "right": "right", "b": "both", "both": "both"}
SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
MEASURED = re.compile(r"^(?P<name>.+?)[_ ]\(?(?P<unit>mm|cm|mm2|cm2|ml|hu|%|bpm)\)?$", re.IGNORECASE)
SIZES = {"mm", "cm", "mm2", "cm2", "ml", "%", "bpm"}  # never below 0; HU and what has no unit may be


@dataclass(frozen=True, kw_only=True)
class IngestTable(Ingest):
    """Rows of a table, each about an image."""

    name: ClassVar[str] = "ingest-table"
    about: ClassVar[str] = "CSV or JSON table: labels, measurements, captions, reports, questions of images"
    example: ClassVar[str] = (
        "labels.csv --images png/ --out corpus --dataset ours --modality xray --columns image=Path"
    )
    images: str = option("", "folder of the images (default: that of the table)")
    patient_in: str = option("", "pattern that finds the patient in the path of an image, without a column")
    columns: Mapping[str, str] = option(
        None, f"ours=theirs, of {', '.join(USUAL)}, measurements; several as A|B"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_pattern(self.patient_in)
        unknown = sorted(set(self.columns or {}) - {*USUAL, "measurements"})
        if unknown:
            raise ValueError(
                f"columns names {unknown[0]!r}, expected {', '.join([*USUAL, 'measurements'])}: change it."
            )
        _ = self.findings

    @functools.cached_property
    def rows(self) -> Rows:
        """The table."""
        return Rows(self.path)

    @functools.cached_property
    def folder(self) -> Path:
        """Of the images."""
        return Path(self.images) if self.images else Path(self.path).parent

    @functools.cached_property
    def named(self) -> dict[str, list[str]]:
        """Our name -> names of the columns."""
        there = self._header()
        found = {}
        for ours, words in USUAL.items():
            like = [name for name in there if usual(name) in words.split()]
            if like:
                found[ours] = like[:1]
        found["measurements"] = [name for name in there if MEASURED.match(name)]
        for ours, theirs in (self.columns or {}).items():
            wanted = str(theirs).split("|")
            for name in wanted:
                if name not in there:
                    raise ValueError(
                        f"the table has no column {name!r}, expected one of {', '.join(there)}: check it."
                    )
            found[ours] = wanted
        if "image" not in found and "question" not in found:
            raise ValueError(
                f"the table has the columns {', '.join(there)}, expected one of images: name it with "
                "columns image=NAME."
            )
        return found

    @functools.cached_property
    def findings(self) -> Findings:
        """The columns of labels."""
        return Findings(self.rows, self.named.get("labels", []))

    def _header(self) -> list[str]:
        there: dict[str, None] = {}
        for number in range(min(len(self.rows), 50)):
            try:
                there |= dict.fromkeys(map(str, self.rows[number]))
            except InvalidRecord:
                continue
        if not there:
            raise ValueError("the table has no row that can be read, expected some: check the file.")
        return list(there)

    def parts(self) -> Sequence[int]:
        """The numbers of the rows."""
        return range(len(self.rows))

    def each(self, part: int) -> Iterable[Item]:
        """One row -> a record."""
        return self.guarded(self._row(part), self._where(part), at=f"row {part + 1}")

    def place(self, path: Path | str, at: str = "") -> str:
        """The row; the image's name where names are shown."""
        return f"{at}, {Path(path).name}" if self.show_names and str(path) else at

    def _where(self, number: int) -> str:
        try:
            return str(self._cell(self.rows[number], "image")) or "row"
        except InvalidRecord:
            return "row"

    def _row(self, number: int) -> Iterator[Record]:
        row = self.rows[number]
        image = self._cell(row, "image")
        facts = self._facts(row)
        question, answer = (self.text(self._cell(row, key), f"the {key}") for key in ("question", "answer"))
        known = set(facts) & {"labels", "absent", "captions", "report", "measurements"}
        if bool(question) != bool(answer) or not (known or question):
            raise InvalidRecord("no-label", "a row says nothing about its image, expected a label or words.")
        if not image and not question and "report" not in known:
            raise InvalidRecord("image-missing", "a row names no image, expected one beside its labels.")
        pictures = self.pictures(inside(self.folder, image)) if image else []
        shown = tuple(self.save(picture) for picture in pictures)
        if len(pictures) == 1:
            facts["patient_left"] = patient_left(pictures[0])
        marks = "<image> " * len(shown)
        message = (Message("human", marks + question), Message("gpt", answer)) if question else ()
        kind = (
            {"main_task_type": "image-to-text" if shown else "text", "sub_task_type": "vqa"}
            if question
            else {}
        )
        split = self._cell(row, "split").lower()
        patient, study = self._cell(row, "patient"), self._cell(row, "study")
        if not patient and self.patient_in and (found := re.search(self.patient_in, image)):
            patient = found.group(1)
        facts["patient_from"] = "patient" if patient else "study" if study else ""
        yield self.record(
            (number, [each.path for each in shown], question, sorted(known)),
            input_img=shown, message=message, facts=facts, split=SPLITS.get(split, ""),
            patient=self.patient(patient or (f"study {study}" if study else "")), study=self.study(study),
            provenance={"facts": {"by": self.name, "from": "columns"}}, **kind,
        )  # fmt: skip

    def _cell(self, row: Mapping[str, Any], ours: str) -> str:
        name = next(iter(self.named.get(ours, ())), "")
        value = row.get(name)
        return "" if value is None or isinstance(value, dict | list) else str(value).strip()

    def _facts(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """What the columns say, see `facts`."""
        labels = ([self.text(name, "a label") for name in names] for names in self.findings.of(row))
        facts: dict[str, Any] = dict(zip(("labels", "absent"), labels, strict=True)) | {"measurements": []}
        for name in self.named["measurements"]:
            facts["measurements"] += self._measured(name, row.get(name))
        if caption := self.text(self._cell(row, "caption"), "the caption"):
            facts["captions"] = [caption]
        report = {
            key: self.text(self._cell(row, key), f"the {key}") for key in ("findings", "impression", "report")
        }
        if whole := report.pop("report"):
            report = {**sections(whole), **{key: words for key, words in report.items() if words}}
        facts["report"] = {key: words for key, words in report.items() if words}
        side = self._cell(row, "side").lower()
        facts["side"] = SIDES.get(side, "")
        facts |= {key: self.text(self._cell(row, key)) for key in ("view", "organ", "contrast")}
        facts["organ"] = facts["organ"] or self.organ
        facts["contrast"] = facts["contrast"] or self.contrast
        return {key: value for key, value in facts.items() if value}

    def _measured(self, name: str, value: Any) -> Iterator[dict[str, Any]]:
        told = MEASURED.match(name)
        words = str("" if value is None else value).strip()
        if words.lower() in UNSURE - {"-1", "-1.0"}:
            return
        try:
            number = float(words)
        except ValueError:
            number = float("nan")
        if not abs(number) < 1e9:
            raise InvalidRecord("bad-label", f"column {name!r} holds no number, expected one.")
        unit = told["unit"].lower() if told else ""
        if unit in SIZES and number == -1:
            return  # not known, as among labels
        if unit in SIZES and number < 0:
            raise InvalidRecord(
                "bad-label",
                f"column {name!r} holds a size below 0, expected 0 or more, and -1 or nothing for not known.",
            )
        what = (told["name"] if told else name).replace("_", " ").strip()
        yield {"name": what, "value": number, "unit": unit}
