# SPDX-License-Identifier: Apache-2.0
"""What every DICOM object that we write has in common: whose it is, what made it, and that it is synthetic.

Whose: by default nobody's. The patient becomes a pseudonym and every UID a hash, so that results of one study
stay together without saying of whom; `keep_identity=True` takes both over, for an archive that files by them.
Synthetic: Synthetic Data (0008,001C) YES, Content Qualification RESEARCH, Contributing Equipment with the
purpose "Synthesizing Equipment", and the whole mark as JSON in a private block.
"""

from __future__ import annotations

import io
import json
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom import DataElement, Dataset
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from monai_unimedvl import __version__
from monai_unimedvl.provenance.facts import NOTICE, Facts, Mark, of_array, of_text, sealed
from monai_unimedvl.transforms.deidentify import deidentify, hashed_uid, is_dicom, pseudonym
from monai_unimedvl.transforms.identifiers import identifiers, scrub

MAKER = "monai_unimedvl"
GROUP, CREATOR, WHOLE = 0x0E1D, "MONAI_UNIMEDVL", 0x01  # where the mark lies as JSON
SERIES_NUMBER = 9000  # of results, away from those of scanners

Source = str | Path | Dataset | Sequence[str | Path | Dataset] | None

# The patient and study modules: what an archive files by.
FILED_BY = """
    PatientName PatientID IssuerOfPatientID PatientBirthDate PatientSex StudyInstanceUID StudyID StudyDate
    StudyTime AccessionNumber ReferringPhysicianName StudyDescription SpecificCharacterSet
""".split()


@dataclass(frozen=True)
class Origin:
    """What a result is derived from.

    Args:
        headers: of the source's images, de-identified or not, with patient and study filled in.
        known: identifiers that free text must not repeat; none where the identity is kept.
        kept: whether the identity is kept.
    """

    headers: list[Dataset]
    known: list[str]
    kept: bool

    @property
    def first(self) -> Dataset:
        """The header that stands for the study."""
        return self.headers[0]

    def facts(self, facts: Facts) -> Facts:
        """Without the patient's names and numbers in the prompt, with the hashed UIDs of the source."""
        uids = {str(header.get("SeriesInstanceUID", "")) for header in self.headers} - {""}
        hashed = sorted(map(hashed_uid, uids)) if self.kept else sorted(uids)
        return replace(facts, prompt=scrub(facts.prompt, self.known), sources=facts.sources or tuple(hashed))


def origin(source: Source, keep_identity: bool) -> Origin:
    """The headers of a file, a folder of files, or data sets; a new study of nobody where there is none.

    Raises:
        ValueError: no such file, no DICOM images in it, or identity to keep where there is no source.
    """
    if source is None:
        if keep_identity:
            raise ValueError("keep_identity=True came without a source, but only a source has one: pass it.")
        nobody = Dataset()
        nobody.StudyInstanceUID = generate_uid(prefix=None)
        return Origin([_filed(nobody, nobody, False)], [], False)
    headers = _read(source)
    known = [] if keep_identity else identifiers(headers)
    filed = [_filed(copy(h) if keep_identity else deidentify(h), h, keep_identity) for h in headers]
    return Origin(filed, known, keep_identity)


def known_in(paths: Iterable[str | Path]) -> list[str]:
    """What the headers of DICOM files, and of those in folders, know of the patient: see `identifiers`.

    Raises:
        ValueError: a header that cannot be read.
    """
    every = [file for path in map(Path, paths) for file in (path.iterdir() if path.is_dir() else [path])]
    return identifiers([_header(file) for file in sorted(every) if file.is_file() and is_dicom(file)])


def new_dataset(origin: Origin, sop_class: str, modality: str) -> Dataset:
    """Patient, study, series and SOP common modules of a result."""
    made = Dataset()
    for keyword in FILED_BY:
        if keyword in origin.first:
            setattr(made, keyword, origin.first[keyword].value)
    made.SOPClassUID, made.SOPInstanceUID = sop_class, generate_uid(prefix=None)
    made.SeriesInstanceUID, made.SeriesNumber = generate_uid(prefix=None), SERIES_NUMBER
    made.Modality = modality
    now = datetime.now()
    made.InstanceCreationDate = made.ContentDate = made.SeriesDate = now.strftime("%Y%m%d")
    made.InstanceCreationTime = made.ContentTime = made.SeriesTime = now.strftime("%H%M%S")
    made.Manufacturer = made.ManufacturerModelName = MAKER
    made.SoftwareVersions = __version__
    return made


def stamp(made: Dataset, facts: Facts, mark: Mark, known: bool = False) -> Mark:
    """Say in a data set that it is synthetic, in standard elements and a private block; returns the mark.

    Args:
        known: the identity is kept, so nothing is said about its removal.
    """
    made.SyntheticData = "YES"
    made.ContentQualification = "RESEARCH"
    if not known:
        made.PatientIdentityRemoved = "YES"
        made.DeidentificationMethod = "monai_unimedvl keep-list: PS3.15 E.1 Basic Profile, header only"
    words = f"{NOTICE} Task: {facts.task or 'unnamed'}. Seed {facts.seed}. Weights sha256 {facts.weights}."
    equipment = Dataset()
    equipment.PurposeOfReferenceCodeSequence = [code(codes.DCM.SynthesizingEquipment)]
    equipment.Manufacturer = equipment.ManufacturerModelName = MAKER
    equipment.SoftwareVersions = __version__
    equipment.ContributionDateTime = datetime.now().strftime("%Y%m%d%H%M%S")
    equipment.ContributionDescription = words[:1024]
    made.ContributingEquipmentSequence = [*made.get("ContributingEquipmentSequence", []), equipment]
    sealed_mark = sealed({**mark, "content": content_of(made)})
    block = made.private_block(GROUP, CREATOR, create=True)
    block.add_new(WHOLE, "UT", json.dumps(sealed_mark))
    return sealed_mark


def read_stamp(header: Dataset) -> Mark | None:
    """The mark in a data set; None where there is none."""
    try:
        return json.loads(header.private_block(GROUP, CREATOR)[WHOLE].value)
    except (KeyError, ValueError):
        return None


def content_of(made: Dataset) -> str:
    """sha256 of the pixels, or of a report's words."""
    if "PixelData" in made:
        return of_array(pixels_of(made))
    return of_text("\n".join(str(item.TextValue) for item in walk(made) if "TextValue" in item))


def pixels_of(made: Dataset) -> np.ndarray:
    """As stored, ([N,] rows, columns[, 3])."""
    if "TransferSyntaxUID" not in getattr(made, "file_meta", {}):
        made.file_meta = FileMetaDataset()
        made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return made.pixel_array


def walk(header: Dataset) -> list[Dataset]:
    """The items of a report, in order, from its root."""
    nested = (walk(item) for item in header.get("ContentSequence", []))
    return [header, *(one for items in nested for one in items)]


def to_bytes(made: Dataset) -> bytes:
    """The data set as a file; explicit little endian, unless it says otherwise."""
    meta = getattr(made, "file_meta", None) or FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = made.SOPClassUID, made.SOPInstanceUID
    if "TransferSyntaxUID" not in meta:
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationVersionName = "MONAI_UNIMEDVL"
    made.file_meta = meta
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, made, enforce_file_format=True)
    return stream.getvalue()


@contextmanager
def taking_over(path: Path) -> Iterator[None]:
    """Where highdicom takes over a source's header: quiet, because its warnings repeat names of patients.

    Raises:
        ValueError: in place of whatever it raises, without the words that it quotes.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        reason = re.sub(
            r"""(["'])(.*?)\1""", lambda said: said[2] if tag_for_keyword(said[2]) else "...", first
        )
        raise ValueError(
            f"{path.name} cannot be made from this source ({reason}): check its header."
        ) from None


def code(value: Code) -> Dataset:
    """An item of a code sequence."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value[:3]
    return item


def _filed(made: Dataset, header: Dataset, keep: bool) -> Dataset:
    """The header with all of the patient and study modules; those of nobody, unless they are kept."""
    if keep:
        for keyword in FILED_BY[:-2]:
            if keyword not in made and keyword != "IssuerOfPatientID":
                setattr(made, keyword, "")
        if not made.StudyInstanceUID:
            made.StudyInstanceUID = generate_uid(prefix=None)
        made.decode()  # from the source's character set, which may lack letters of a prompt or report
        made.SpecificCharacterSet = "ISO_IR 192"
        return made
    name = pseudonym(header)
    made.PatientName, made.PatientID = f"Anonymous^{name.removeprefix('ANON-')}", name
    for keyword in FILED_BY:
        if keyword not in made and keyword not in ("IssuerOfPatientID", "StudyDescription"):
            setattr(made, keyword, "")
    made.StudyInstanceUID = made.StudyInstanceUID or generate_uid(prefix=None)
    made.SpecificCharacterSet = "ISO_IR 192"
    return made


def _read(source: Any) -> list[Dataset]:
    if isinstance(source, Dataset):
        return [source]
    if isinstance(source, str | Path):
        path = Path(source)
        if not path.exists():
            raise ValueError(
                f"{path} does not exist, but a DICOM file or folder is expected: check the path."
            )
        files = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
        return _images([_header(p) for p in files if is_dicom(p)], path.name)
    return _images([one for item in source for one in _read(item)], "the source")


def _images(headers: list[Dataset], name: str) -> list[Dataset]:
    found = [header for header in headers if "Rows" in header]
    if not found:
        raise ValueError(
            f"{name} holds no DICOM images, but a result must say whence it came: name a series."
        )
    studies = {str(header.get("StudyInstanceUID")) for header in found}
    if len(studies) > 1:
        raise ValueError(
            f"{name} holds images of {len(studies)} studies, but one is expected: name one series."
        )
    return found


def _header(path: Path) -> Dataset:
    try:
        return pydicom.dcmread(path, force=True, stop_before_pixels=True)
    except Exception as error:  # pydicom raises many kinds for damaged headers
        raise ValueError(
            f"{path.name} cannot be read as DICOM ({type(error).__name__}): copy it again."
        ) from error


def element(keyword: str, value: Any) -> DataElement:
    """A decimal string that holds as many digits as fit."""
    made = Dataset()
    values = [pydicom.valuerep.DSfloat(float(v), auto_format=True) for v in np.atleast_1d(value)]
    setattr(made, keyword, values if len(values) > 1 else values[0])
    return made[keyword]
