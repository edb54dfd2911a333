# SPDX-License-Identifier: Apache-2.0
"""What a clinician knows beside the picture, as a prompt; and an answer, as a report in parts.

In: history, laboratory values, the prior study with its report, regions. Out: findings and impression as text
and JSON; `provenance.write_report` makes DICOM SR of them.
"""

from __future__ import annotations

import csv
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from monai.data import MetaTensor
from torch import Tensor

from monai_unimedvl.transforms.regions import Region, regions_in, without_regions
from monai_unimedvl.transforms.slices import place_in_words

COLUMNS = ("name", "value", "unit", "low", "high")
REPORT_PROMPT = "Write a report with the headings Findings and Impression."
# heading of a report's part -> how it may be written; first the one we write
HEADINGS = {
    "technique": ("Technique", "Examination", "Procedure"),
    "comparison": ("Comparison", "Prior"),
    "findings": ("Findings", "Finding", "Observations"),
    "impression": ("Impression", "Conclusion", "Summary", "Assessment"),
}
TEMPLATES = {
    "short": ("findings", "impression"),
    "full": ("technique", "comparison", "findings", "impression"),
}


@dataclass(frozen=True)
class Lab:
    """One laboratory value.

    Args:
        name: of what was measured.
        value: the number, or words such as "negative".
        unit: as it is written.
        low, high: of the normal range, in the unit; None where there is no such limit.
    """

    name: str
    value: float | str
    unit: str = ""
    low: float | None = None
    high: float | None = None

    def words(self) -> str:
        """Such as "CRP 110 mg/L (high, normal up to 5)"."""
        said = self.value if isinstance(self.value, str) else f"{self.value:g}"
        text = " ".join(filter(None, [self.name, said, self.unit]))
        if self.low is None and self.high is None:
            return text
        if self.low is None:
            normal = f"up to {self.high:g}"
        else:
            normal = f"from {self.low:g}" if self.high is None else f"{self.low:g} to {self.high:g}"
        return f"{text} ({self._level()}normal {normal})"

    def _level(self) -> str:
        if isinstance(self.value, str):
            return ""
        if self.low is not None and self.value < self.low:
            return "low, "
        return "high, " if self.high is not None and self.value > self.high else ""


def read_labs(source: str | os.PathLike[str] | Iterable[Mapping[str, Any]]) -> list[Lab]:
    """Laboratory values out of a table: a CSV file, or rows as mappings.

    Columns: name, value, and if known unit, low, high. Comma, semicolon or tab part the columns of a file.

    Raises:
        ValueError: no such file, no column name or value, a limit that is no number; with file and row.
    """
    name = "the table"
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        name = path.name
        if not path.is_file():
            raise ValueError(
                f"{path} does not exist, but a table of laboratory values is expected: check it."
            )
        try:
            text = path.read_text("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"{name} is no text in UTF-8, expected a CSV file: save it as one.") from error
        first = text.split("\n", 1)[0]
        comma = max(",;\t", key=first.count)
        rows: list[Mapping[str, Any]] = list(csv.DictReader(text.splitlines(), delimiter=comma))
    else:
        rows = list(source)
    return [_lab(row, f"{name}, row {number}") for number, row in enumerate(rows, 1)]


def _lab(row: Mapping[str, Any], where: str) -> Lab:
    known = {str(key).strip().lower(): value for key, value in row.items() if key is not None}
    if not str(known.get("name") or "").strip() or str(known.get("value") or "").strip() == "":
        raise ValueError(
            f"{where} has columns {', '.join(known)}, but a name and a value are expected among "
            f"{', '.join(COLUMNS)}: fill them in."
        )
    limits = []
    for key in ("low", "high"):
        limit = known.get(key)
        limit = None if limit is None or str(limit).strip() == "" else _number(limit)
        if isinstance(limit, str):
            raise ValueError(f"{where} has {key} {limit!r}, but a number or nothing is expected: correct it.")
        limits.append(limit)
    unit = str(known.get("unit") or "").strip()
    return Lab(str(known["name"]).strip(), _number(known["value"]), unit, limits[0], limits[1])


def _number(value: Any) -> float | str:
    """A finite number, or the words that it is not; a decimal comma is a point."""
    text = str(value).strip()
    try:
        number = float(text.replace(",", ".") if text.count(",") == 1 and "." not in text else text)
    except ValueError:
        return text
    return number if math.isfinite(number) else text


@dataclass(frozen=True)
class Case:
    """What is known of a patient, and what is asked; `prompt()` is what an inferer takes.

    Parts that are empty say nothing. The words of the prompt are fixed, so that a model can learn them.

    Args:
        images: of the current study, (3, H, W) in [0, 1].
        question: or task; by default a report is asked for.
        history, indication: in words.
        labs: laboratory values.
        prior_images, prior_report: of an earlier study.
        regions: boxes and points on the first image.
        places: say where each slice lies in mm.
    """

    images: Sequence[Tensor] = ()
    question: str = REPORT_PROMPT
    history: str = ""
    indication: str = ""
    labs: Sequence[Lab] = ()
    prior_images: Sequence[Tensor] = ()
    prior_report: str = ""
    regions: Sequence[Region] = ()
    places: bool = False

    def prompt(self) -> list[str | Tensor]:
        """Words and pictures in order: history, laboratory, prior study, current study, regions, question.

        Raises:
            ValueError: nothing is asked; regions without an image, or outside of it.
        """
        if not self.question.strip():
            raise ValueError("Case got an empty question, expected some words: ask something.")
        parts: list[str | Tensor] = []
        for name, text in (("History", self.history), ("Indication", self.indication)):
            if text.strip():
                parts.append(f"{name}: {_sentence(text)}")
        if self.labs:
            parts.append(f"Laboratory: {'; '.join(lab.words() for lab in self.labs)}.")
        if self.prior_images or self.prior_report.strip():
            parts += ["Prior study:", *self._shown(self.prior_images)]
            if self.prior_report.strip():
                parts.append(f"Prior report: {_sentence(self.prior_report)}")
            parts.append("Current study:")
        parts += self._shown(self.images)
        if self.regions:
            first = next(iter(self.images), None)
            if not isinstance(first, MetaTensor):
                raise ValueError(
                    "Case got regions without an image of a recipe, expected one: regions lie on it."
                )
            parts.append(f"Region: {', '.join(region.words(first) for region in self.regions)}.")
        return [*parts, self.question]

    def _shown(self, images: Sequence[Tensor]) -> list[str | Tensor]:
        shown: list[str | Tensor] = []
        for image in images:
            if self.places and isinstance(image, MetaTensor) and "source" in image.meta:
                shown.append(f"{place_in_words(image.meta['source'])}:")
            shown.append(image)
        return shown


@dataclass(frozen=True)
class StructuredReport:
    """A report in parts.

    Args:
        findings: a sentence, or a paragraph, each.
        impression, technique, comparison: in words; may be empty.
        regions: what the findings point at, as `Region.told` says it.
    """

    findings: tuple[str, ...] = ()
    impression: str = ""
    technique: str = ""
    comparison: str = ""
    regions: tuple[dict[str, Any], ...] = field(default=())

    @property
    def findings_text(self) -> str:
        """All findings as one text."""
        return "\n".join(self.findings)

    def text(self, template: str = "short") -> str:
        """The parts under their headings; a part without words is left out.

        Raises:
            ValueError: an unknown template.
        """
        if template not in TEMPLATES:
            raise ValueError(f"template {template!r} is not known: use one of {', '.join(TEMPLATES)}.")
        said = {**asdict(self), "findings": self.findings_text}
        parts = [f"{HEADINGS[part][0]}:\n{said[part]}" for part in TEMPLATES[template] if said[part]]
        return "\n\n".join(parts)

    def json(self) -> str:
        """Every part, as one JSON object."""
        return json.dumps(asdict(self), ensure_ascii=False, indent=2)


def parse_report(answer: str, pictures: Sequence[MetaTensor] = ()) -> StructuredReport:
    """What a model said, in parts, by its headings; words before the first, or without any, are findings.

    Args:
        answer: the text, or an `Answer`.
        pictures: that were shown; boxes in the answer are taken to lie on the first and are led back to its
            source.
    """
    text = str(answer)
    regions = [region.told(pictures[0]) for region in regions_in(text, pictures[0])] if pictures else []
    names = {word.lower(): part for part, words in HEADINGS.items() for word in words}
    heading = re.compile(rf"(?im)(?:^|(?<=[.!?\n]))[\s*_#]*({'|'.join(names)})[\s*_]*:[\s*_]*")
    said: dict[str, list[str]] = {part: [] for part in HEADINGS}
    part, start = "findings", 0
    for mark in heading.finditer(text):
        said[part].append(text[start : mark.start()])
        part, start = names[mark[1].lower()], mark.end()
    said[part].append(text[start:])
    clean = {name: without_regions(" ".join(found)) for name, found in said.items()}
    sentences = [one.strip() for one in re.split(r"(?<=[.!?])\s+", clean.pop("findings"))]
    return StructuredReport(tuple(filter(None, sentences)), regions=tuple(regions), **clean)


def _sentence(text: str) -> str:
    text = re.sub(r"\s+", " ", text).strip()
    return text if text.endswith((".", "!", "?")) else f"{text}."
