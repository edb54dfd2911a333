# SPDX-License-Identifier: Apache-2.0
"""A folder of NIfTI or NRRD volumes as records: slices by a stated policy, each with its place in mm.

Names after BIDS say what is shown: `sub-01_ses-2_T2w.nii.gz` is subject 01, session 2, T2-weighted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from monai_unimedvl.data.ingest.base import Ingest, digest_of, patient_left
from monai_unimedvl.data.step import Item, option
from monai_unimedvl.transforms.read import VOLUMES

SUFFIXES = {
    "t1w": "T1-weighted MRI", "t2w": "T2-weighted MRI", "flair": "FLAIR MRI", "pdw": "PD-weighted MRI",
    "t2starw": "T2*-weighted MRI", "dwi": "diffusion-weighted MRI", "bold": "functional MRI",
    "angio": "MR angiography", "pet": "PET", "ct": "CT",
}  # fmt: skip
LABELS = re.compile(r"(?:^|[_.-])(?:mask|seg|dseg|label|labels|probseg)$", re.IGNORECASE)
ENDINGS = re.compile(r"(\.nii(\.gz)?|\.nrrd)$")


@dataclass(frozen=True, kw_only=True)
class IngestNifti(Ingest):
    """NIfTI and NRRD volumes of any depth; label maps (..._mask, ..._seg, ...) are left to ingest-masks."""

    name: ClassVar[str] = "ingest-nifti"
    about: ClassVar[str] = "NIfTI or NRRD folder: slices by a stated policy, each with its place in mm"
    example: ClassVar[str] = "scans/ --out corpus --dataset ours --modality mri --slices 8 --public"
    patient_in: str = option(
        r"sub-([A-Za-z0-9]+)", "pattern that finds the patient in a path; else each file is one"
    )
    study_in: str = option(r"ses-([A-Za-z0-9]+)", "pattern that finds the study in a path")

    def __post_init__(self) -> None:
        super().__post_init__()
        for pattern in (self.patient_in, self.study_in):
            check_pattern(pattern)
        _ = self.secret

    def files(self) -> list[Path]:
        """The .nii, .nii.gz and .nrrd that are no label maps."""
        found = [path for path in super().files() if path.name.lower().endswith(VOLUMES)]
        return [path for path in found if not LABELS.search(ENDINGS.sub("", path.name.lower()))]

    def parts(self) -> Sequence[str]:
        """The volumes."""
        if not self.order:
            raise ValueError(f"{self.path} holds no .nii, .nii.gz or .nrrd, expected some: check the path.")
        return list(self.order)

    def each(self, part: str) -> Iterable[Item]:
        """One volume -> a record for each slice."""
        return self.guarded(self._slices(Path(part)), part)

    def _slices(self, path: Path) -> Iterator[Item]:
        pictures = self.pictures(path)
        who = self.who(path)
        digest = digest_of(path)
        for place, picture in enumerate(pictures):
            image = self.save(picture)
            facts = {"patient_left": patient_left(picture), **who["facts"]}
            yield self.record(
                (digest, image.place.get("plane", ""), image.place.get("index", place)),
                **{**who, "facts": facts}, input_img=(image,),
            )  # fmt: skip

    def who(self, path: Path) -> dict[str, Any]:
        """Pseudonyms, and what the name says of the contrast."""
        return who_of(self, path, self.patient_in, self.study_in)


def who_of(source: Ingest, path: Path, patient_in: str, study_in: str = "") -> dict[str, Any]:
    """Pseudonyms of a file by patterns in its path; without a match the file is the patient."""
    folder = Path(source.path)
    within = path.relative_to(folder).as_posix() if folder.is_dir() else path.name
    patient = re.search(patient_in, within) if patient_in else None
    study = re.search(study_in, within) if study_in else None
    suffix = re.split(r"[_\s]", re.sub(r"\..*$", "", path.name))[-1].lower()
    named = patient.group(1) if patient else ""
    return {
        "patient": source.patient(named or f"file {within}"),
        "study": source.study(f"{named} {study.group(1)}") if study else "",
        "facts": {
            "patient_from": "patient" if patient else "file",
            **({"contrast": SUFFIXES[suffix]} if suffix in SUFFIXES and not source.contrast else {}),
        },
    }


def check_pattern(pattern: str) -> None:
    """A regular expression with one group.

    Raises:
        ValueError: it is none.
    """
    try:
        groups = re.compile(pattern).groups if pattern else 1
    except re.error as error:
        raise ValueError(f"pattern {pattern!r} is no regular expression ({error}): mend it.") from error
    if groups != 1:
        raise ValueError(f"pattern {pattern!r} has {groups} groups, expected one in brackets: mend it.")
