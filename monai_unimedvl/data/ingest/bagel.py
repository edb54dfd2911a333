# SPDX-License-Identifier: Apache-2.0
"""BAGEL's Parquet files: `t2i` (image, captions) and `editing` (image_list, instruction_list).

Of several captions or instructions one is chosen by the seed and the row; of a chain of edited images each
neighbouring pair is a record.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from monai_unimedvl.data.ingest.listed import IngestRows, listed
from monai_unimedvl.data.phrases import chance
from monai_unimedvl.data.record import InvalidRecord, Message, Record
from monai_unimedvl.data.step import option


@dataclass(frozen=True, kw_only=True)
class IngestBagel(IngestRows):
    """Both kinds, told apart by their columns."""

    name: ClassVar[str] = "ingest-bagel"
    about: ClassVar[str] = "BAGEL Parquet: t2i (image, captions) and editing (image_list, instruction_list)"
    example: ClassVar[str] = "bagel/t2i --out corpus --dataset ours-t2i --modality ct"
    seed: int = option(0, "of the choice among captions")
    suffixes: ClassVar[tuple[str, ...]] = (".parquet", ".pq")

    def row(self, row: Mapping[str, Any], file: int) -> Iterator[Record]:
        """One image with captions, or one chain of edits."""
        if "image_list" in row:
            yield from self._edits(row)
        elif "image" in row:
            yield self._drawn(row)
        else:
            raise InvalidRecord("bad-row", "a row has neither image nor image_list, expected a BAGEL row.")

    def _drawn(self, row: Mapping[str, Any]) -> Record:
        image = self.picture(row["image"])
        captions = row.get("captions")
        try:
            found = json.loads(captions) if isinstance(captions, str) else captions
        except (ValueError, RecursionError):
            found = captions  # plain words
        values = list(found.values()) if isinstance(found, Mapping) else listed(found)
        words = [
            self.text(each, "a caption")
            for value in values
            for each in listed(value)
            if isinstance(each, str)
        ]
        words = [each for each in words if each]
        if not words:
            raise InvalidRecord("empty-text", "a row has no caption, expected one.")
        chosen = chance(self.seed, image.path).choice(words)
        return self.record(
            (image.path, words), output_img=(image,), message=(Message("human", chosen),),
            main_task_type="text-to-image", sub_task_type="text-to-image", facts={"captions": words},
            provenance={"message": {"by": "source", "chosen": words.index(chosen), "seed": self.seed}},
        )  # fmt: skip

    def _edits(self, row: Mapping[str, Any]) -> Iterator[Record]:
        images = [self.picture(each) for each in listed(row["image_list"])]
        steps = listed(row.get("instruction_list"))
        if len(images) < 2 or len(steps) < len(images) - 1:
            raise InvalidRecord(
                "bad-row",
                f"a row has {len(images)} images and {len(steps)} instructions, expected n and n - 1.",
            )
        for number, (before, after) in enumerate(zip(images, images[1:], strict=False)):
            words = [
                self.text(each, "an instruction") for each in listed(steps[number]) if isinstance(each, str)
            ]
            words = [each for each in words if each]
            if not words:
                raise InvalidRecord("empty-text", "a step has no instruction, expected one.")
            chosen = chance(self.seed, before.path, after.path).choice(words)
            yield self.record(
                (before.path, after.path, words), input_img=(before,), output_img=(after,),
                message=(Message("human", chosen),), main_task_type="interleaved", sub_task_type="editing",
                provenance={"message": {"by": "source", "chosen": words.index(chosen), "seed": self.seed}},
            )  # fmt: skip
