# SPDX-License-Identifier: Apache-2.0
"""UniMedVL's own JSON lines and Parquet: the published fields, with or without those that a `Record` adds.

A row without an id gets one of its content; its licence and source are those that are given here. Patients of
published rows are not known, unless a row bears a pseudonym already.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from monai_unimedvl.data.ingest.listed import IngestRows, listed
from monai_unimedvl.data.record import ImageFile, InvalidRecord, Message, Record, stable_id
from monai_unimedvl.data.step import Item

IMAGES = ("input_img", "output_img")
OBJECTS = ("facts", "provenance")


@dataclass(frozen=True, kw_only=True)
class IngestUnimedvl(IngestRows):
    """Rows of UniMedVL-5M's form."""

    name: ClassVar[str] = "ingest-unimedvl"
    about: ClassVar[str] = "UniMedVL JSONL or Parquet: main_task_type, input_img, output_img, message ..."
    example: ClassVar[str] = "unimed/part1.jsonl --images unimed/images --out corpus --dataset unimed"

    def row(self, row: Mapping[str, Any], file: int) -> Iterator[Item]:
        """One record, its images written anew."""
        values: dict[str, Any] = {key: _opened(key, value) for key, value in row.items() if value is not None}
        values = {key: value for key, value in values.items() if not key.endswith("_info")}
        images = {key: listed(values.pop(key, [])) for key in IMAGES}
        said = listed(values.pop("message", []))
        for turn in said:
            if not isinstance(turn, Mapping) or not isinstance(turn.get("value"), str):
                raise InvalidRecord("bad-row", "a message is no object with from and value, expected one.")
        known = {
            "dataset": self.dataset, "licence": self.licence, "source": self.origin or self.dataset,
            "modality": self.modality or "unknown", "main_task_type": "unknown", "sub_task_type": "unknown",
            "id": stable_id(self.dataset, self.name, json.dumps(dict(row), sort_keys=True, default=repr)),
        }  # fmt: skip
        known |= {key: value for key, value in values.items() if value != ""}
        record = Record.from_json({**known, "input_img": [], "output_img": [], "message": []})
        told = {"message": {"by": "source"}} if said else {}
        shown, drawn = (tuple(self._image(each) for each in images[key]) for key in IMAGES)
        message = tuple(Message(turn.get("from", ""), self.text(turn["value"], "a message")) for turn in said)
        provenance = {**told, **record.provenance}
        yield replace(record, input_img=shown, output_img=drawn, message=message, provenance=provenance)

    def _image(self, given: Any) -> ImageFile:
        image = self.picture(given)
        place = given.get("place") if isinstance(given, Mapping) else None
        return replace(image, place=place) if isinstance(place, Mapping) else image


def _opened(key: str, value: Any) -> Any:
    """Lists and objects that a column of text holds."""
    if isinstance(value, str) and key in (*IMAGES, "message", *OBJECTS) and value[:1] in "[{":
        try:
            return json.loads(value)
        except (ValueError, RecursionError) as error:
            raise InvalidRecord("bad-row", f"column {key} is no JSON, expected a list of objects.") from error
    return value
