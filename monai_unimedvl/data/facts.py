# SPDX-License-Identifier: Apache-2.0
"""What is known of a record's first image beyond its pixels: the names that steps write and read in `facts`.

Whoever reads a fact checks that it is there: most records have few of them. Of a pair they are about the
source. Boxes and masks count in the pixels of the record's own image, not of the file it was made of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

FACTS = {
    "contrast": 'what was imaged how, in words: "T2-weighted MRI"; else the modality stands for it',
    "organ": 'body region or organ: "brain"',
    "view": 'of a radiograph: "PA", "lateral"',
    "labels": 'findings that are there: ["cardiomegaly"]',
    "absent": "findings that are known not to be there",
    "side": 'side of the patient that is shown or affected: "left" | "right" | "both"',
    "patient_left": 'where the patient\'s left is on the image: "right" (radiological display) | "left"',
    "boxes": '[{"label": "nodule", "box": [left, top, right, bottom]}]; pixels, edges included',
    "mask": '{"path": "masks/ab/abc.png", "labels": ["tumour"]}; value n is the n-th label, 0 is none',
    "measurements": '[{"name": "diameter", "value": 12.5, "unit": "mm", "of": "tumour"}]',
    "captions": "sentences that describe it, the best first",
    "report": '{"findings": ..., "impression": ...}, as the radiologist wrote it',
    "pair": '{"from": "T1", "to": "T2"}: what the images of a pair show',
    "burned_in": '"yes" | "possible" | "no": text in the pixels, by the header',
    "dicom_modality": 'as the header has it: "MR"',
    "images": "files of the DICOM series",
    "alignment": '{"score": ..., "s": ..., "m": ..., "cut": ...} of `align`',
    "caption": '{"original": ..., "description": ...} of `caption`',
    "caption_refused": "why a record kept its own words",
    "review": "whether expert readers are to see it",
    "patient_from": '"patient" | "study" | "file": what the pseudonym of the patient was made of',
}

TOLD = {  # how the patient of a record was told from others -> in words
    "patient": "by a name or number", "study": "by study alone", "file": "by file alone",
    "none": "not at all",
}  # fmt: skip


def told_by(facts: Mapping[str, Any], patient: str, study: str = "") -> str:
    """How the patient of a record was told from others: a key of `TOLD`."""
    known = str(facts.get("patient_from") or "")
    return known if known in TOLD else "patient" if patient else "study" if study else "none"


def patients_told(counts: Mapping[str, int]) -> str:
    """A line on how patients were told from each other, with a warning where that may part one patient.

    Args:
        counts: records by `told_by`.
    """
    found = ", ".join(f"{words} in {counts[how]:,} records" for how, words in TOLD.items() if counts.get(how))
    line = f"patients were told from each other {found or 'in no record, as there is none'}"
    if not any(counts.get(how) for how in TOLD if how != "patient"):
        return f"{line}."
    return f"{line}; records of one patient can come into different splits where no name or number tells it."


@dataclass(frozen=True)
class Box:
    """A region of an image: what it shows, and its edges in pixels from the upper left corner."""

    label: str
    left: float
    top: float
    right: float
    bottom: float

    @property
    def centre(self) -> tuple[float, float]:
        """(x, y) in pixels."""
        return (self.left + self.right) / 2, (self.top + self.bottom) / 2

    @property
    def area(self) -> float:
        """Square pixels."""
        return (self.right - self.left) * (self.bottom - self.top)

    def to_json(self) -> dict[str, Any]:
        """As it stands in `facts`."""
        edges = (self.left, self.top, self.right, self.bottom)
        return {"label": self.label, "box": [round(edge, 2) for edge in edges]}


def boxes_of(facts: Mapping[str, Any]) -> list[Box]:
    """The boxes of a record's facts; what is no box with a label is left out."""
    found = []
    for each in facts.get("boxes") or []:
        edges = each.get("box") if isinstance(each, Mapping) else None
        if isinstance(edges, Sequence) and len(edges) == 4 and isinstance(each.get("label"), str):
            found.append(Box(each["label"], *(float(edge) for edge in edges)))
    return found


def words_of(facts: Mapping[str, Any], name: str) -> list[str]:
    """The texts of a fact that is a text or a list of texts, the empty ones left out."""
    value = facts.get(name) or []
    listed = [value] if isinstance(value, str) else value if isinstance(value, Sequence) else []
    return [each.strip() for each in listed if isinstance(each, str) and each.strip()]
