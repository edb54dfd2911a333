# SPDX-License-Identifier: Apache-2.0
"""A folder of pictures whose subfolders are classes: `images/pneumonia/17.png` shows pneumonia.

A picture that lies in no subfolder has no label. Subfolders named train, val and test are splits.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from monai_unimedvl.data.ingest.base import Ingest, digest_of, patient_left
from monai_unimedvl.data.ingest.nifti import check_pattern, who_of
from monai_unimedvl.data.step import Item, option
from monai_unimedvl.transforms.read import DICOM, PICTURES, VOLUMES

SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}


@dataclass(frozen=True, kw_only=True)
class IngestImages(Ingest):
    """Pictures, and any other file that a recipe opens, labelled by the folder they lie in."""

    name: ClassVar[str] = "ingest-images"
    about: ClassVar[str] = "image folder with class subfolders: labels are the names of folders"
    example: ClassVar[str] = "fundus/ --out corpus --dataset ours --modality fundus --organ eye --public"
    exclusive: bool = option(True, "classes exclude each other, so that one is there and the others are not")
    patient_in: str = option("", "pattern that finds the patient in a path; else each file is one")
    keep_splits: bool = option(True, "folders named train, val and test give the split")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_pattern(self.patient_in)
        _ = self.secret

    def parts(self) -> Sequence[str]:
        """Every file: those that are no picture become rejects."""
        if not self.order:
            raise ValueError(f"{self.path} holds no file, expected pictures: check the path.")
        return list(self.order)

    def each(self, part: str) -> Iterable[Item]:
        """One file -> a record with all its pictures."""
        return self.guarded(self._labelled(Path(part)), part)

    def _labelled(self, path: Path) -> Iterator[Item]:
        split, label = self.meaning(path)
        who = who_of(self, path, self.patient_in)
        facts = dict(who["facts"])
        if label:
            facts["labels"] = [label]
            others = sorted(self.classes - {label})
            facts |= {"absent": others} if self.exclusive and others else {}
        pictures = self.pictures(path)
        if len(pictures) == 1:
            facts["patient_left"] = patient_left(pictures[0])
        yield self.record(  # a label of a volume is about all its slices together
            (digest_of(path), label), **{**who, "facts": facts}, split=split,
            input_img=tuple(self.save(picture) for picture in pictures),
            provenance={"facts": {"by": self.name, "from": "folder"}},
        )  # fmt: skip

    @functools.cached_property
    def classes(self) -> set[str]:
        """The labels of all files that look like pictures."""
        known = (*PICTURES, *VOLUMES, *DICOM)
        found = {self.meaning(Path(path))[1] for path in self.order if path.lower().endswith(known)}
        return found - {""}

    def meaning(self, path: Path) -> tuple[str, str]:
        """(split, label) of a file, by the folders that it lies in."""
        within = path.relative_to(self.path).parts[:-1] if Path(self.path).is_dir() else ()
        split = ""
        names = []
        for name in within:
            if self.keep_splits and name.lower() in SPLITS and not split:
                split = SPLITS[name.lower()]
            else:
                names.append(name)
        return split, names[0].replace("_", " ").strip() if names else ""
