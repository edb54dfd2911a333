# SPDX-License-Identifier: Apache-2.0
"""A folder of DICOM files, in whatever order and depth, as records: one for each picture of each series.

Files are told apart by their Series Instance UID, not by folder or name. Of a header only what
`transforms.deidentify` keeps is looked at; patient and study become pseudonyms of the site's secret.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pydicom

from monai_unimedvl.data.ingest.base import Ingest, patient_left
from monai_unimedvl.data.record import InvalidRecord, Reject, stable_id
from monai_unimedvl.data.step import Item, option
from monai_unimedvl.transforms.choosing import FROM_DICOM
from monai_unimedvl.transforms.deidentify import deidentify, hashed_uid, is_dicom
from monai_unimedvl.transforms.dicom import read_series

VOLUMES = ("mri", "ct")  # their series are stacks of slices; of other recipes each file is a picture
SCREENS = ("US", "IVUS", "ES", "XC", "SC", "OT", "DMS", "GM")  # pictures of a screen often have text in them
CAPTURE = "1.2.840.10008.5.1.4.1.1.7"  # Secondary Capture Image Storage, and its multi-frame kin
HEADERS = (
    "PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID", "Modality", "BodyPartExamined",
    "BurnedInAnnotation", "ImageType", "Laterality", "ImageLaterality", "ViewPosition", "InstanceNumber",
    "Rows", "MRAcquisitionType", "ScanningSequence",
)  # fmt: skip
SIDES = {"L": "left", "R": "right", "B": "both"}


@dataclass(frozen=True)
class Series:
    """The files of one series, in the order of names; `broken` are of none, since they cannot be read."""

    uid: str
    paths: tuple[str, ...]
    broken: bool = False


@dataclass(frozen=True, kw_only=True)
class IngestDicom(Ingest):
    """DICOM files of any depth, grouped by series, de-identified; text in the pixels is flagged."""

    name: ClassVar[str] = "ingest-dicom"
    about: ClassVar[str] = "DICOM folder: a record for each picture of each series, de-identified"
    example: ClassVar[str] = "/export/pacs --out corpus --dataset our-mri --licence LicenseRef-internal"
    needs_modality: ClassVar[bool] = False
    burned_in: str = option("flag", "pictures with text in their pixels, by the header: flag or reject")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.burned_in not in ("flag", "reject"):
            raise ValueError(f"burned_in is {self.burned_in!r}, expected 'flag' or 'reject': choose one.")
        _ = self.secret

    def files(self) -> list[Path]:
        """What begins as DICOM files do, or calls itself one."""
        return [path for path in super().files() if path.name.upper() != "DICOMDIR" and is_dicom(path)]

    def parts(self) -> Sequence[Series]:
        """The series in the order of their UIDs' hashes, then the files that cannot be read."""
        found: dict[str, list[str]] = {}
        broken: list[Series] = []
        for path in map(Path, self.order):
            try:
                header = pydicom.dcmread(
                    path, force=True, stop_before_pixels=True, specific_tags=["SeriesInstanceUID", "Rows"]
                )
                uid = str(header.get("SeriesInstanceUID", "") or "")
                known = "Rows" in header or len(header) > 0
            except Exception:  # pydicom raises many kinds for damaged headers
                known = False
            if not known:
                broken.append(Series("", (str(path),), broken=True))
            else:
                name = str(hashed_uid(uid, self.secret)) if uid else f"file {self.order[str(path)]}"
                found.setdefault(name, []).append(str(path))
        if not found and not broken:
            raise ValueError(f"{self.path} holds no DICOM file, expected some: check the path.")
        return [*(Series(uid, tuple(found[uid])) for uid in sorted(found)), *broken]

    def each(self, part: Series) -> Iterable[Item]:
        """One series -> a record for each picture, or the reject of what cannot be read."""
        if part.broken:
            what = "cannot be read as DICOM" if Path(part.paths[0]).stat().st_size else "is empty (0 bytes)"
            return [self.refused(ValueError(f"the file {what}: copy it again."), part.paths[0])]
        return self._series(part)

    def _series(self, part: Series) -> Iterator[Item]:
        paths = [Path(path) for path in part.paths]
        try:
            header = pydicom.dcmread(
                paths[0], force=True, stop_before_pixels=True, specific_tags=list(HEADERS)
            )
            known = self._known(header)
        except InvalidRecord as error:
            yield self._refused(error, part, paths[0])
            return
        except Exception:  # values that a header holds in another form than the standard's
            yield self._refused(ValueError("the header cannot be read."), part, paths[0])
            return
        known["facts"]["images"] = len(paths)
        if known["modality"] in VOLUMES and len(paths) > 1:
            yield from self._pictures(
                part, known, functools.partial(read_series, paths[0].parent, paths), paths[0]
            )
            return
        for path in paths:
            yield from self._pictures(part, known, lambda path=path: path, path)

    def _pictures(self, part: Series, known: dict[str, Any], load: Any, path: Path) -> Iterator[Item]:
        """A record for each picture of a file, or of the stack of a series."""
        number = part.paths.index(str(path))
        try:
            for place, picture in enumerate(self.pictures(load(), known["modality"])):
                facts = {**known["facts"], "patient_left": patient_left(picture)}
                image = self.save(picture)
                yield self.record(
                    (part.uid, number, image.place.get("plane", ""), image.place.get("index", place)),
                    **{**known, "facts": facts}, input_img=(image,),
                )  # fmt: skip
        except ValueError as error:
            yield self._refused(error, part, path)

    def _refused(self, error: ValueError, part: Series, path: Path) -> Reject:
        series = "" if not part.uid or self.show_names else f", series {stable_id(part.uid)[:12]}"
        return self.refused(error, path, at=series, others=part.paths)

    def _known(self, header: pydicom.Dataset) -> dict[str, Any]:
        """Pseudonyms, recipe and facts of a series, by its first header.

        Raises:
            InvalidRecord: no recipe for its modality, or text in its pixels where that is refused.
        """
        patient, study = (_plain(header, key) for key in ("PatientID", "StudyInstanceUID"))
        kept = deidentify(header, self.secret)
        kind = str(kept.get("Modality", ""))
        modality = self.modality or FROM_DICOM.get(kind, "")
        if not modality:
            raise InvalidRecord(
                "modality-unknown",
                f"modality {kind or 'none'} of the header has no recipe, expected one of "
                f"{', '.join(FROM_DICOM)}: name one with modality.",
            )
        burned = burned_in(kept)
        if self.burned_in == "reject" and burned != "no":
            raise InvalidRecord(
                "burned-in", f"text in the pixels is {burned!r} by the header, expected 'no': blank it first."
            )
        side = str(kept.get("ImageLaterality") or kept.get("Laterality") or "")
        facts = {
            "dicom_modality": kind,
            "burned_in": burned,
            "patient_from": "patient" if patient else "study" if study else "",
            "organ": self.organ or str(kept.get("BodyPartExamined", "")).replace("_", " ").lower().strip(),
            "view": str(kept.get("ViewPosition", "")),
            "side": SIDES.get(side, ""),
        }
        return {
            "modality": modality,
            "patient": self.patient(patient or (f"study {study}" if study else "")),
            "study": self.study(study),
            "facts": {name: value for name, value in facts.items() if value},
        }


def burned_in(header: pydicom.Dataset) -> str:
    """Whether text stands in the pixels, by the header: "yes", "no", or "possible" where it does not say.

    Args:
        header: of a picture, de-identified or not.
    """
    said = str(header.get("BurnedInAnnotation", "")).strip().upper()
    if said in ("YES", "NO"):
        return said.lower()
    kinds = [str(word) for word in header.get("ImageType") or []]
    capture = str(header.get("SOPClassUID", "")).startswith(CAPTURE) or "SECONDARY" in kinds[1:]
    return "possible" if capture or str(header.get("Modality", "")) in SCREENS else "no"


def _plain(header: pydicom.Dataset, key: str) -> str:
    value = header.get(key)
    return "" if value is None else str(value).strip("\0 ")
