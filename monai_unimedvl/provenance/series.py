# SPDX-License-Identifier: Apache-2.0
"""A generated volume, or slices of one, as a derived DICOM series in the place of its source.

CT and MR stay CT and MR images, so that viewers rebuild the volume; all else becomes secondary captures,
which hold geometry as well. Image Type is DERIVED\\SECONDARY, and what a scanner would have set is empty.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from monai.data import MetaTensor
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import CTImageStorage, MRImageStorage, SecondaryCaptureImageStorage, generate_uid
from torch import Tensor

from monai_unimedvl.atomic import new_folder, write
from monai_unimedvl.provenance.dicom import (
    Origin,
    Source,
    code,
    element,
    new_dataset,
    origin,
    stamp,
    to_bytes,
)
from monai_unimedvl.provenance.facts import Facts, manifest_path, sealed, sha256, to_json
from monai_unimedvl.provenance.files import display_span, mark_slices, unseen_mark
from monai_unimedvl.provenance.invisible import CT_WINDOW

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # RAS mm <-> DICOM's patient axes
CLASSES = {"CT": CTImageStorage, "MR": MRImageStorage}
TAKEN_OVER = """
    BodyPartExamined Laterality PatientPosition LossyImageCompression LossyImageCompressionRatio
    LossyImageCompressionMethod BurnedInAnnotation
""".split()
SQUARE = 1e-4  # cosine between rows and columns that is still rounding


def write_series(
    volume: Tensor | np.ndarray,
    folder: str | Path,
    facts: Facts,
    *,
    affine: np.ndarray | Tensor | None = None,
    source: Source = None,
    modality: str | None = None,
    description: str = "",
    keep_identity: bool = False,
    invisible: bool = True,
) -> list[Path]:
    """Write a volume as a series of marked DICOM files into a new folder, and FOLDER.json; returns the paths.

    Args:
        volume: (X, Y, Z), (1, X, Y, Z) or in colours (3, X, Y, Z): columns, rows, slices, as `read` gives a
            series. HU for CT. Whole numbers are stored as they are, others with a rescale to 16 bits;
            colours are floats in [0, 1] or uint8.
        affine: (4, 4) from voxels to RAS mm; a MetaTensor brings its own. Without one there is no place.
        source: what it was made from: DICOM folder, files or headers. It gives study, patient (as pseudonym),
            frame of reference and modality.
        modality: of the result; by default the source's, else "OT".
        description: of the series, behind "SYNTHETIC".
        keep_identity: take patient and study over as they are, for an archive that files by them.
        invisible: also mark the pixels of slices of 256 x 256 and more.

    Raises:
        ValueError: a shape, affine or range that DICOM cannot hold, a folder that is not new, no such source.
    """
    folder = Path(folder)
    values, place = _checked(volume, affine)
    whence = origin(source, keep_identity)
    facts = whence.facts(facts)
    modality = modality or str(whence.first.get("Modality", "") or "OT")
    shown = CT_WINDOW if modality == "CT" else display_span(values[0])
    mark = facts.manifest()
    if values.shape[0] == 1:
        grey, applied = mark_slices(values[0], facts, shown, invisible, labels=False)
        values = grey[None]
    else:
        values, applied = _mark_colours(values, facts, invisible)
    mark["invisible_mark"] = applied
    common = _common(whence, facts, values, place, modality, description, shown)
    with new_folder(folder) as aside:
        for index in range(values.shape[3]):
            made = _slice(common, values[..., index], index, place, whence)
            stamp(made, facts, mark, keep_identity)
            (aside / f"{index + 1:04d}.dcm").write_bytes(to_bytes(made))
    files = sorted(folder.iterdir())
    whole = {**sealed(mark), "files": len(files), "output": sha256(folder)}
    try:
        write(manifest_path(folder), to_json(whole))
    except ValueError:
        for file in files:
            file.unlink()
        folder.rmdir()
        raise
    return files


def _checked(volume: Any, affine: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """(1 or 3, X, Y, Z) and the affine to LPS mm."""
    if affine is None and isinstance(volume, MetaTensor) and volume.meta.get("placed", True):
        affine = volume.affine
    values = volume.detach().cpu().numpy() if isinstance(volume, Tensor) else np.asarray(volume)
    values = values[None] if values.ndim == 3 else values
    if values.ndim != 4 or values.shape[0] not in (1, 3) or 0 in values.shape:
        raise ValueError(
            f"write_series got shape {values.shape}, expected (X, Y, Z), (1, X, Y, Z) or (3, X, Y, Z): pass"
            " one volume."
        )
    if values.dtype.kind not in "biuf" or not np.isfinite(values).all():
        raise ValueError(
            f"write_series got {values.dtype} with values that are no finite numbers: replace NaN and Inf."
        )
    if values.shape[0] == 3 and values.dtype != np.uint8:
        values = np.rint(np.clip(values.astype(np.float64), 0, 1) * 255).astype(np.uint8)
    if affine is None:
        return values, None
    place = LPS @ np.asarray(affine, dtype=np.float64)
    across, down = (place[:3, i] / max(np.linalg.norm(place[:3, i]), 1e-12) for i in (0, 1))
    if place.shape != (4, 4) or not np.isfinite(place).all() or abs(np.linalg.det(place)) < 1e-9:
        raise ValueError(
            "the affine cannot be inverted, but mm per voxel are expected: pass that of the source."
        )
    if abs(float(across @ down)) > SQUARE:
        raise ValueError(
            f"rows and columns of the affine meet at cosine {float(across @ down):.3f}, but DICOM knows right"
            " angles only: resample the volume first."
        )
    return values, place


def _common(
    whence: Origin,
    facts: Facts,
    values: np.ndarray,
    place: np.ndarray | None,
    modality: str,
    description: str,
    shown: tuple[float, float],
) -> Dataset:
    """What all files of the series share."""
    grey = values.shape[0] == 1
    sop_class = CLASSES.get(modality, SecondaryCaptureImageStorage) if grey and place is not None else None
    made = new_dataset(whence, sop_class or SecondaryCaptureImageStorage, modality)
    made.SeriesDescription = f"SYNTHETIC {description or facts.task}".strip()[:64]
    made.ImageType = ["DERIVED", "SECONDARY"]
    made.DerivationDescription = f"Made by a model, {facts.task or 'unnamed task'}; not for diagnosis"[:1024]
    made.ImageComments = "SYNTHETIC: made by a model, not by a scanner. Not for diagnosis."
    for keyword in TAKEN_OVER:
        if keyword in whence.first:
            setattr(made, keyword, whence.first[keyword].value)
    made.Rows, made.Columns = values.shape[2], values.shape[1]
    as_source = (made.Rows, made.Columns) == (whence.first.get("Rows"), whence.first.get("Columns"))
    turned = whence.first.get("PatientOrientation") if place is None and as_source else None
    made.PatientOrientation = turned or ""
    made.SamplesPerPixel = values.shape[0]
    if grey:
        _stored_as(made, values, modality, shown)
    else:
        made.PhotometricInterpretation, made.PlanarConfiguration = "RGB", 0
        made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 8, 8, 7, 0
    if place is not None:
        made.FrameOfReferenceUID = whence.first.get("FrameOfReferenceUID") or generate_uid(prefix=None)
        made.PositionReferenceIndicator = ""
        across, down, along = (place[:3, i] for i in range(3))
        normal = np.cross(across, down) / np.linalg.norm(np.cross(across, down))
        made["PixelSpacing"] = element("PixelSpacing", [np.linalg.norm(down), np.linalg.norm(across)])
        made["SliceThickness"] = element("SliceThickness", abs(along @ normal))
        direction = [*across / np.linalg.norm(across), *down / np.linalg.norm(down)]
        made["ImageOrientationPatient"] = element("ImageOrientationPatient", direction)
    if sop_class == CTImageStorage:
        axial = place is not None and abs(place[2, 2]) >= max(abs(place[0, 2]), abs(place[1, 2]))
        made.ImageType = ["DERIVED", "SECONDARY", "AXIAL" if axial else "OTHER"]
        made.KVP, made.AcquisitionNumber = "", ""
    elif sop_class == MRImageStorage:
        made.ImageType = ["DERIVED", "SECONDARY", "OTHER"]
        made.ScanningSequence, made.SequenceVariant = "RM", "NONE"  # research mode: no scanner ran
        for keyword in ("ScanOptions", "MRAcquisitionType", "EchoTime", "EchoTrainLength", "RepetitionTime"):
            setattr(made, keyword, "")
    else:
        made.ConversionType = "SYN"
    for keyword in ("PatientPosition", "Laterality"):
        if keyword not in made and (keyword == "Laterality" or sop_class is not None):
            setattr(made, keyword, "")
    return made


def _stored_as(made: Dataset, values: np.ndarray, modality: str, shown: tuple[float, float]) -> None:
    """How numbers become 16 bits: whole ones as they are, HU rounded, others by slope and intercept."""
    low, high = float(values.min()), float(values.max())
    slope, intercept = 1.0, 0.0
    whole = values.dtype.kind in "biu" or modality == "CT" or not (values % 1).any()
    if not whole or high - low > 65535:
        slope, intercept = max(high - low, 1e-12) / 65535, low
    elif low < -32768 or high > 65535 or (low < 0 and high > 32767):
        intercept = np.floor(low)
    signed = low < 0 and intercept == 0 and slope == 1
    made.PhotometricInterpretation = "MONOCHROME2"
    made.BitsAllocated, made.BitsStored, made.HighBit = 16, 16, 15
    made.PixelRepresentation = int(signed)
    if modality in CLASSES or slope != 1 or intercept != 0:
        made["RescaleSlope"], made["RescaleIntercept"] = (
            element("RescaleSlope", slope), element("RescaleIntercept", intercept),
        )  # fmt: skip
        made.RescaleType = "HU" if modality == "CT" else "US"
    made["WindowCenter"] = element("WindowCenter", (shown[0] + shown[1]) / 2)
    made["WindowWidth"] = element("WindowWidth", max(shown[1] - shown[0], slope))
    made.VOILUTFunction = "LINEAR_EXACT"


def _slice(
    common: Dataset, values: np.ndarray, index: int, place: np.ndarray | None, whence: Origin
) -> Dataset:
    """One file: `common` and slice `values` (1 or 3, X, Y)."""
    made = Dataset()
    made.update({tag: common[tag] for tag in common.keys()})
    made.SOPInstanceUID, made.InstanceNumber = generate_uid(prefix=None), index + 1
    shown = values.transpose(2, 1, 0)  # (rows, columns, 1 or 3)
    if values.shape[0] == 1:
        slope, intercept = float(made.get("RescaleSlope", 1)), float(made.get("RescaleIntercept", 0))
        kind = np.int16 if made.PixelRepresentation else np.uint16
        limits = np.iinfo(kind)
        stored = np.rint((shown.astype(np.float64) - intercept) / slope).clip(limits.min, limits.max)
        made.PixelData = np.ascontiguousarray(stored.astype(kind)).tobytes()
        made["PixelData"].VR = "OW"
    else:
        stored_bytes = np.ascontiguousarray(shown).tobytes()
        made.PixelData = stored_bytes + b"\0" * (len(stored_bytes) % 2)
        made["PixelData"].VR = "OB"
    if place is not None:
        position = place @ [0, 0, index, 1]
        made["ImagePositionPatient"] = element("ImagePositionPatient", position[:3])
        reference = _source_image(made, whence)
        if reference is not None:
            made.SourceImageSequence = [reference]
    return made


def _source_image(made: Dataset, whence: Origin) -> Dataset | None:
    """The slice of the source that lies in the plane of this one, as a reference."""
    direction = np.array(made.ImageOrientationPatient, float)
    normal = np.cross(direction[:3], direction[3:])
    here = float(np.array(made.ImagePositionPatient, float) @ normal)
    best, nearest = None, float(made.SliceThickness) / 2
    for header in whence.headers:
        if not all(
            key in header for key in ("ImagePositionPatient", "ImageOrientationPatient", "SOPInstanceUID")
        ):
            continue
        other = np.array(header.ImageOrientationPatient, float)
        away = abs(float(np.array(header.ImagePositionPatient, float) @ normal) - here)
        if abs(float(np.cross(other[:3], other[3:]) @ normal)) > 0.999 and away < nearest:
            best, nearest = header, away
    if best is None:
        return None
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = best.SOPClassUID, best.SOPInstanceUID
    item.PurposeOfReferenceCodeSequence = [code(codes.DCM.SourceImageForImageProcessingOperation)]
    return item


def _mark_colours(values: np.ndarray, facts: Facts, wanted: bool) -> tuple[np.ndarray, dict[str, Any]]:
    """(3, X, Y, Z) uint8 with each slice marked."""
    marked = np.empty_like(values)
    applied = None
    for index in range(values.shape[3]):
        pixels = np.ascontiguousarray(values[..., index].transpose(2, 1, 0))
        pixels, one = unseen_mark(pixels, facts, (0.0, 255.0), wanted, labels=False)
        marked[..., index] = pixels.transpose(2, 1, 0)
        applied = one if applied is None or one.id else applied
    assert applied is not None
    return marked, applied.manifest()
