# SPDX-License-Identifier: Apache-2.0
"""Small sources for the data room: DICOM files with a patient in thirty tags, volumes, pictures."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pydicom
from PIL import Image
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from monai_unimedvl.data.record import Record, Reject
from monai_unimedvl.data.step import Source, Tally

# What nobody may find again: thirty tags, public and private, top and nested, and what they hold.
PLANTED = {
    "PatientName": "Quasimodo^Esmeralda",
    "PatientID": "PID-4711-0815",
    "PatientBirthDate": "19310203",
    "PatientBirthTime": "031415",
    "OtherPatientNames": "Frollo^Claude",
    "PatientMotherBirthName": "Notre^Dame",
    "PatientAddress": "Rue Cloche 77",
    "PatientTelephoneNumbers": "0331-555-777",
    "Occupation": "Bellringer77",
    "PatientComments": "rings bells at dawn77",
    "AccessionNumber": "ACC99887766",
    "StudyID": "STID5544",
    "StudyDate": "20191231",
    "SeriesDate": "20191230",
    "ContentDate": "20191229",
    "StudyTime": "112233.445",
    "InstitutionName": "Hotel Dieu Clinic",
    "InstitutionAddress": "Parvis 1 Paris",
    "ReferringPhysicianName": "Hugo^Victor",
    "PerformingPhysicianName": "Phoebus^Captain",
    "OperatorsName": "Gringoire^Pierre",
    "StationName": "STATION-ND-9",
    "DeviceSerialNumber": "SN-8172635",
    "StudyDescription": "MR of Esmeralda77",
    "SeriesDescription": "T2 for Quasi77",
    "ProtocolName": "prot-Hugo77",
    "RequestingPhysician": "Gudule^Paquette",
    "ImageComments": "seen by Djali77",
    "MedicalRecordLocator": "LOC-31337",
}
PRIVATE = {0x00291010: "PRIV-SECRET-1", 0x00291011: "PRIV-SECRET-2"}
NESTED = "NESTED-PID-777"


def planted_words() -> list[str]:
    """Every text that was planted, and the parts of names."""
    found = [*PLANTED.values(), *PRIVATE.values(), NESTED]
    return sorted({part for text in found for part in [text, *text.split("^")] if len(part) > 4})


def dicom(
    path: Path, *, number: int = 0, series: str = "", study: str = "", place: float | None = None,
    values: np.ndarray | None = None, **tags: object,
) -> Path:  # fmt: skip
    """One MR slice of 32 x 32 with a patient planted in its header."""
    header = pydicom.Dataset()
    header.file_meta = pydicom.dataset.FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.file_meta.MediaStorageSOPClassUID = MRImageStorage
    header.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    header.SOPClassUID = MRImageStorage
    header.SOPInstanceUID = header.file_meta.MediaStorageSOPInstanceUID
    header.SeriesInstanceUID, header.StudyInstanceUID = series or generate_uid(), study or generate_uid()
    header.FrameOfReferenceUID = generate_uid()
    for key, text in PLANTED.items():
        setattr(header, key, text)
    item = pydicom.Dataset()
    item.PatientID = NESTED
    header.OtherPatientIDsSequence = pydicom.sequence.Sequence([item])
    header.add_new(0x00290010, "LO", "MAKER 1.0")
    for tag, text in PRIVATE.items():
        header.add_new(tag, "LO", text)
    header.Modality, header.BodyPartExamined = "MR", "BRAIN"
    header.Rows = header.Columns = 32
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated = header.BitsStored = 16
    header.HighBit, header.PixelRepresentation = 15, 0
    header.SliceThickness, header.PixelSpacing = 5, [5, 5]
    header.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    header.ImagePositionPatient = [0, 0, 5.0 * number if place is None else place]
    header.InstanceNumber = number + 1
    if values is None:
        values = np.zeros((32, 32), np.uint16)
        values[8:24, 4:28] = 100 * (number + 1) + np.arange(24, dtype=np.uint16)
    header.PixelData = values.tobytes()
    for key, value in tags.items():
        if value is None:
            delattr(header, key)
        else:
            setattr(header, key, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    header.save_as(path, enforce_file_format=True)
    return path


def series(folder: Path, count: int = 4, **tags: object) -> str:
    """A folder with one series; returns its UID."""
    uid, study = generate_uid(), generate_uid()
    for number in range(count):
        dicom(folder / f"IM{number:03d}", number=number, series=uid, study=study, **tags)
    return uid


def block(shape: tuple[int, ...] = (30, 40, 20)) -> np.ndarray:
    """A bright block in the dark, brighter upwards."""
    values = np.zeros(shape, np.float32)
    values[6:24, 8:32] = 50 + np.arange(shape[2])[None, None, :]
    return values


def nifti(path: Path, values: np.ndarray | None = None, affine: np.ndarray | None = None) -> Path:
    """A NIfTI of 5 mm voxels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = block() if values is None else values
    nibabel.save(nibabel.Nifti1Image(values, np.diag([5.0, 5, 5, 1]) if affine is None else affine), path)
    return path


def png(path: Path, seed: int = 0, size: tuple[int, int] = (40, 48), mode: str = "L") -> Path:
    """A picture of noise, (height, width)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = size if mode in ("L", "I;16") else (*size, 3)
    pixels = np.random.default_rng(seed).integers(0, 255, shape, np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def ingested(source: Source) -> tuple[list[Record], list[Reject], Tally]:
    """The records and rejects of a source, and what it counted."""
    tally = Tally()
    items = list(source((), tally))
    assert tally.taken == tally.kept + tally.rejected
    records = [item for item in items if isinstance(item, Record)]
    return records, [item for item in items if isinstance(item, Reject)], tally
