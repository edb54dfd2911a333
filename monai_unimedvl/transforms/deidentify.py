# SPDX-License-Identifier: Apache-2.0
"""What of a DICOM header is kept: pixels, geometry and technique; everything else is left out at the door.

A list of what stays, not of what goes, so that private elements, overlays, odd free text and whatever the
next edition adds are left out without being known. UIDs become hashes, the same for the same UID, so that
slices, series and references stay together. This meets the Basic Application Level Confidentiality Profile of
DICOM PS3.15, annex E, for the header; the pixels are not cleaned: text burnt into them stays (the ultrasound
recipe blanks it). docs/PROVENANCE.md has the table.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import uuid
from pathlib import Path

from pydicom import DataElement, Dataset
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataset import FileMetaDataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence
from pydicom.uid import UID

METHOD = "monai_unimedvl keep-list: PS3.15 E.1 Basic Profile, header only"
SECRET = "UNIMEDVL_SECRET"  # environment: with it hashes cannot be made again from known UIDs

CLASSES = "SOPClassUID"
LINKED = "SOPInstanceUID SeriesInstanceUID StudyInstanceUID FrameOfReferenceUID"  # hashed
PIXELS = """
    Rows Columns NumberOfFrames SamplesPerPixel PlanarConfiguration PhotometricInterpretation BitsAllocated
    BitsStored HighBit PixelRepresentation PixelAspectRatio PixelPaddingValue PixelPaddingRangeLimit
    SmallestImagePixelValue LargestImagePixelValue PixelData FloatPixelData DoubleFloatPixelData
    ExtendedOffsetTable ExtendedOffsetTableLengths LossyImageCompression LossyImageCompressionRatio
    LossyImageCompressionMethod
    RescaleSlope RescaleIntercept RescaleType WindowCenter WindowWidth VOILUTFunction PresentationLUTShape
    PixelIntensityRelationship PixelIntensityRelationshipSign LUTDescriptor LUTData
    RedPaletteColorLookupTableDescriptor GreenPaletteColorLookupTableDescriptor
    BluePaletteColorLookupTableDescriptor AlphaPaletteColorLookupTableDescriptor
    RedPaletteColorLookupTableData GreenPaletteColorLookupTableData BluePaletteColorLookupTableData
    AlphaPaletteColorLookupTableData SegmentedRedPaletteColorLookupTableData
    SegmentedGreenPaletteColorLookupTableData SegmentedBluePaletteColorLookupTableData
    BurnedInAnnotation RecognizableVisualFeatures
"""
GEOMETRY = """
    ImagePositionPatient ImageOrientationPatient PixelSpacing ImagerPixelSpacing NominalScannedPixelSpacing
    EstimatedRadiographicMagnificationFactor SliceThickness SpacingBetweenSlices SliceLocation
    PatientPosition PatientOrientation Laterality ImageLaterality ViewPosition BodyPartExamined
    InstanceNumber AcquisitionNumber SeriesNumber TemporalPositionIdentifier NumberOfTemporalPositions
    TotalPixelMatrixColumns TotalPixelMatrixRows ColumnPositionInTotalImagePixelMatrix
    RowPositionInTotalImagePixelMatrix ImagedVolumeWidth ImagedVolumeHeight ImagedVolumeDepth
    ImageOrientationSlide DimensionIndexValues InStackPositionNumber TemporalPositionIndex
    RegionSpatialFormat RegionDataType RegionFlags RegionLocationMinX0 RegionLocationMinY0
    RegionLocationMaxX1 RegionLocationMaxY1 ReferencePixelX0 ReferencePixelY0 PhysicalUnitsXDirection
    PhysicalUnitsYDirection PhysicalDeltaX PhysicalDeltaY
"""
TECHNIQUE = """
    Modality ImageType KVP Exposure ExposureTime XRayTubeCurrent GantryDetectorTilt
    ConversionType ScanningSequence SequenceVariant ScanOptions MRAcquisitionType RepetitionTime EchoTime
    InversionTime EchoTrainLength EchoNumbers FlipAngle MagneticFieldStrength DiffusionBValue
    FrameTime FrameTimeVector FrameIncrementPointer CineRate RecommendedDisplayFrameRate StartTrim StopTrim
    ContentQualification SyntheticData VolumetricProperties VolumeBasedCalculationTechnique
"""
NESTED = """
    SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence PixelMeasuresSequence
    PlanePositionSequence PlaneOrientationSequence PlanePositionSlideSequence FrameContentSequence
    PixelValueTransformationSequence FrameVOILUTSequence ModalityLUTSequence VOILUTSequence
    FrameAnatomySequence SequenceOfUltrasoundRegions TotalPixelMatrixOriginSequence
"""
WORD = re.compile(r"[A-Z0-9][A-Z0-9 _.]{0,15}")  # what a code string may look like


def _tags(*lists: str) -> frozenset[int]:
    found = {word: tag_for_keyword(word) for words in lists for word in words.split()}
    assert all(found.values()), [word for word, tag in found.items() if not tag]
    return frozenset(int(tag) for tag in found.values() if tag is not None)


KEPT = _tags(CLASSES, PIXELS, GEOMETRY, TECHNIQUE)
HASHED = _tags(LINKED)
SEQUENCES = _tags(NESTED)


def is_dicom(path: Path) -> bool:
    """Whether the file begins as DICOM files do, or at least calls itself one."""
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM" or path.suffix.lower() in (".dcm", ".dicom", ".ima")


def deidentify(header: Dataset, secret: str | None = None) -> Dataset:
    """A new header with the pixels, geometry and technique of the old one, and hashes for its UIDs.

    Args:
        header: as `pydicom.dcmread` gives it; it is not changed.
        secret: mixed into the hashes; by default what the environment variable `UNIMEDVL_SECRET` holds.
    """
    kept = _kept(header, secret)
    kept.PatientIdentityRemoved = "YES"
    kept.DeidentificationMethod = METHOD
    kept.file_meta = FileMetaDataset()
    meta = getattr(header, "file_meta", None)
    if meta is not None and "TransferSyntaxUID" in meta:
        kept.file_meta.TransferSyntaxUID = meta.TransferSyntaxUID
    return kept


def hashed_uid(uid: str, secret: str | None = None) -> UID:
    """Another UID, always the same for the same UID and secret; its root 2.25 needs no registry."""
    digest = hmac.new(_secret(secret), str(uid).strip("\0 ").encode(), hashlib.sha256).digest()
    return UID(f"2.25.{uuid.UUID(bytes=digest[:16], version=5).int}")


def pseudonym(header: Dataset, secret: str | None = None) -> str:
    """A name for the patient that says nothing.

    Made of the patient's number where there is a secret, else of the study's UID: numbers of patients are
    short, and without a secret anybody could hash them all and compare.
    """
    secret = os.environ.get(SECRET, "") if secret is None else secret
    words = _text(header, "PatientID") if secret else _text(header, "StudyInstanceUID")
    if not words:
        return "ANON"
    return "ANON-" + hmac.new(_secret(secret), words.encode(), hashlib.sha256).hexdigest()[:12].upper()


def _kept(header: Dataset, secret: str | None) -> Dataset:
    kept = Dataset()
    for tag in header.keys():
        if tag in KEPT:
            if dictionary_VR(tag) not in ("CS", "LO", "SH") or _plain(header, tag):
                kept[tag] = header.get_item(tag)  # type: ignore[assignment]
        elif tag in HASHED:
            uid = _text(header, tag)
            if uid:
                kept[tag] = DataElement(tag, "UI", hashed_uid(uid, secret))
        elif tag in SEQUENCES:
            items = header[tag].value or []
            kept[tag] = DataElement(tag, "SQ", Sequence([_kept(item, secret) for item in items]))
    return kept


def _plain(header: Dataset, tag: int) -> bool:
    """Whether a code string looks like one: no name, no sentence."""
    return all(WORD.fullmatch(part.strip()) for part in _text(header, tag).split("\\") if part.strip())


def _text(header: Dataset, tag: int | str) -> str:
    """The characters of an element, undecoded and unchecked, so that no reader's warning repeats them."""
    if tag not in header:
        return ""
    value = header.get_item(tag).value
    if isinstance(value, bytes):
        try:
            return value.decode("utf8").strip("\0 ")
        except UnicodeDecodeError:
            return value.decode("latin-1").strip("\0 ")
    if isinstance(value, list | tuple | MultiValue):
        return "\\".join(str(part) for part in value)
    return str("" if value is None else value).strip("\0 ")


def _secret(secret: str | None) -> bytes:
    return (os.environ.get(SECRET, "") if secret is None else secret).encode() or b"monai_unimedvl"
