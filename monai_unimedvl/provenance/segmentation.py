# SPDX-License-Identifier: Apache-2.0
"""A label map as a DICOM segmentation (SEG) on the images it was drawn on, with names, codes and colours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.data import MetaTensor
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import generate_uid
from torch import Tensor

from monai_unimedvl import __version__
from monai_unimedvl.atomic import write
from monai_unimedvl.packages import needed
from monai_unimedvl.provenance.dicom import MAKER, SERIES_NUMBER, Source, origin, stamp, taking_over, to_bytes
from monai_unimedvl.provenance.facts import Facts, write_marked
from monai_unimedvl.provenance.files import ending
from monai_unimedvl.provenance.series import LPS, SQUARE

Colour = tuple[int, int, int]
ANATOMY, TISSUE = codes.SCT.AnatomicalStructure, codes.SCT.Tissue
ABNORMAL, SUBSTANCE = codes.SCT.MorphologicallyAbnormalStructure, codes.SCT.BodySubstance

# What the labels of our tasks are in SNOMED CT: category and type. Others get a code of our own scheme.
CODES: dict[str, tuple[Code, Code]] = {
    "grey matter": (TISSUE, codes.SCT.GrayMatter),
    "white matter": (TISSUE, codes.SCT.WhiteMatter),
    "csf": (SUBSTANCE, codes.SCT.CerebrospinalFluid),
    "tumour": (ABNORMAL, codes.SCT.Neoplasm),
    "bone": (TISSUE, codes.SCT.Bone),
    "lung": (ANATOMY, codes.SCT.Lung),
    "frontal": (ANATOMY, codes.SCT.FrontalLobe),
    "parietal": (ANATOMY, codes.SCT.ParietalLobe),
    "temporal": (ANATOMY, codes.SCT.TemporalLobe),
    "occipital": (ANATOMY, codes.SCT.OccipitalLobe),
    "cerebellum": (ANATOMY, codes.SCT.Cerebellum),
    "thalamus": (ANATOMY, codes.SCT.Thalamus),
    "liver": (ANATOMY, codes.SCT.Liver),
}
SCHEME = "99UNIMEDVL"


def write_segmentation(
    labels: Tensor | np.ndarray,
    path: str | Path,
    facts: Facts,
    *,
    source: Source,
    legend: Mapping[str, Colour],
    affine: np.ndarray | Tensor | None = None,
    names: Mapping[str, tuple[Code, Code]] | None = None,
    kind: str = "BINARY",
    keep_identity: bool = False,
) -> Path:
    """Write a label map as a marked DICOM SEG and its manifest; returns the path.

    Args:
        labels: (X, Y, Z) or (1, X, Y, Z) of whole numbers: columns, rows, slices. 0 is nothing, n the n-th
            name of `legend`.
        source: the images it was drawn on: DICOM folder, files or headers.
        legend: name -> colour (red, green, blue) of 0..255.
        affine: (4, 4) from voxels to RAS mm; a MetaTensor brings its own. The grid may differ from that of
            the images. Without one, slice n belongs to image n, for images without a place.
        names: name -> (category, type) as codes, beside those that are known here.
        kind: "BINARY", which every viewer reads, or the newer "LABELMAP".
        keep_identity: take patient and study over as they are.

    Raises:
        ValueError: highdicom is missing, no label is set, labels beyond the legend, no such source.
    """
    hd = needed("highdicom", "DICOM SEG", "dicom")
    path = ending(path, (".dcm",), "a segmentation")
    if kind not in ("BINARY", "LABELMAP"):
        raise ValueError(f"kind {kind!r} came, but 'BINARY' or 'LABELMAP' is expected.")
    whence = origin(source, keep_identity)
    facts = whence.facts(facts)
    made = _segmentation(
        hd, labels, path, whence.headers, legend, affine, names, kind,
        algorithm_type="AUTOMATIC", parameters={"task": facts.task or "unnamed", "seed": str(facts.seed)},
        content_label="SYNTHETIC", content_description="Labels drawn by a model; not for diagnosis",
        series_description=f"SYNTHETIC {facts.task}".strip()[:64],
    )  # fmt: skip
    mark = {**facts.manifest(), "invisible_mark": {"applied": False, "why": "labels keep their numbers"}}
    mark = stamp(made, facts, mark, keep_identity)
    return write_marked(to_bytes(made), path, mark)


def reviewed_segmentation(
    labels: Tensor | np.ndarray,
    path: str | Path,
    *,
    source: Source,
    legend: Mapping[str, Colour],
    affine: np.ndarray | Tensor | None = None,
) -> Path:
    """Write labels that a person has handed in as a DICOM SEG, filed under the patient; returns the path.

    It bears no mark of being synthetic, but says that it was made semi-automatically. Arguments and errors:
    as of `write_segmentation`.
    """
    hd = needed("highdicom", "DICOM SEG", "dicom")
    path = ending(path, (".dcm",), "a segmentation")
    made = _segmentation(
        hd, labels, path, origin(source, True).headers, legend, affine, None, "BINARY",
        algorithm_type="SEMIAUTOMATIC", parameters={"reviewed": "yes"},
        content_label="REVIEWED", content_description="Labels handed in by a person",
        series_description="Segmentation",
    )  # fmt: skip
    write(path, to_bytes(made))
    return path


def _segmentation(
    hd: Any, labels: Any, path: Path, headers: Sequence[Dataset], legend: Mapping[str, Colour], affine: Any,
    names: Mapping[str, tuple[Code, Code]] | None, kind: str, *, algorithm_type: str,
    parameters: Mapping[str, str], **described: str,
) -> Dataset:  # fmt: skip
    """highdicom's object of a label map on the images that it was drawn on."""
    if affine is None and isinstance(labels, MetaTensor) and labels.meta.get("placed", True):
        affine = labels.affine
    values = _checked(labels, legend)
    images = sorted(headers, key=lambda header: int(header.get("InstanceNumber") or 0))
    placed = affine is not None and all("ImagePositionPatient" in header for header in images)
    by_rows = np.ascontiguousarray(values.transpose(2, 1, 0))  # (slices, rows, columns)
    where = _planes(hd, LPS @ np.asarray(affine, dtype=np.float64), len(by_rows)) if placed else {}
    for header in images:  # highdicom asks for it, scanners may leave it out
        if placed and "SliceThickness" not in header:
            header.SliceThickness = where["pixel_measures"][0].SliceThickness
    algorithm = hd.AlgorithmIdentificationSequence(
        name=MAKER, version=__version__, family=codes.cid7162.ArtificialIntelligence,
        parameters=dict(parameters),
    )  # fmt: skip
    segments = [
        hd.seg.SegmentDescription(
            segment_number=number, segment_label=name[:64], algorithm_type=algorithm_type,
            segmented_property_category=_codes(name, names)[0],
            segmented_property_type=_codes(name, names)[1],
            algorithm_identification=algorithm, display_color=hd.color.CIELabColor.from_rgb(*colour),
        )
        for number, (name, colour) in enumerate(legend.items(), 1)
    ]  # fmt: skip
    with taking_over(path):
        return hd.seg.Segmentation(
            source_images=images, pixel_array=by_rows, segmentation_type=kind,
            segment_descriptions=segments,
            series_instance_uid=generate_uid(prefix=None), series_number=SERIES_NUMBER,
            sop_instance_uid=generate_uid(prefix=None), instance_number=1, manufacturer=MAKER,
            manufacturer_model_name=MAKER, software_versions=__version__, device_serial_number="0",
            **described, **where,
        )  # fmt: skip


def _checked(labels: Any, legend: Mapping[str, Sequence[int]]) -> np.ndarray:
    """(X, Y, Z) uint8 or uint16"""
    values = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    values = values[0] if values.ndim == 4 and values.shape[0] == 1 else values
    if values.ndim != 3 or (values.dtype.kind not in "biu" and (values % 1).any()):
        raise ValueError(
            f"write_segmentation got {values.dtype} of shape {values.shape}, expected whole numbers (X, Y,"
            " Z): pass a label map."
        )
    if not legend:
        raise ValueError(
            "the legend is empty, but each label needs a name and a colour: pass {'bone': (255, 240, 200)}."
        )
    if values.min() < 0 or values.max() > len(legend):
        raise ValueError(
            f"labels from {int(values.min())} to {int(values.max())} came, but the legend names 1 to"
            f" {len(legend)}: name every label."
        )
    if not values.any():
        raise ValueError(
            "no label is set anywhere, but a SEG needs one pixel at least: there is nothing to write."
        )
    return values.astype(np.uint8 if len(legend) < 256 else np.uint16)


def _planes(hd: Any, place: np.ndarray, count: int) -> dict[str, Any]:
    """Where the planes lie, from the affine (4, 4) to LPS mm; they need not be stacked at a right angle."""
    sizes = np.linalg.norm(place[:3, :2], axis=0)  # mm of a column and a row
    across, down = (place[:3, :2] / sizes).T
    if abs(float(across @ down)) > SQUARE:
        raise ValueError("rows and columns of the affine meet at no right angle: resample the labels first.")
    step = abs(float(np.cross(across, down) @ place[:3, 2]))
    return {
        "pixel_measures": hd.PixelMeasuresSequence(
            pixel_spacing=(sizes[1], sizes[0]), slice_thickness=step, spacing_between_slices=step
        ),
        "plane_orientation": hd.PlaneOrientationSequence("PATIENT", (*across, *down)),
        "plane_positions": [
            hd.PlanePositionSequence("PATIENT", tuple(place[:3] @ [0, 0, n, 1])) for n in range(count)
        ],
    }


def _codes(name: str, given: Mapping[str, tuple[Code, Code]] | None) -> tuple[Code, Code]:
    """Category and type of a label."""
    known = {**CODES, **{key.lower(): value for key, value in (given or {}).items()}}
    own = "".join(letter for letter in name.upper() if letter.isalnum())[:16] or "LABEL"
    return known.get(name.lower(), (ANATOMY, Code(own, SCHEME, name[:64])))
