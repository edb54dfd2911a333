# SPDX-License-Identifier: Apache-2.0
"""A label map as DICOM SEG: on its images, with names, codes and colours, and marked."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
from provenance.conftest import OBLIQUE, right_angled
from pydicom.sr.codedict import codes

from monai_unimedvl.provenance import examine, verify, write_segmentation
from monai_unimedvl.transforms.deidentify import hashed_uid
from monai_unimedvl.transforms.read import read

hd = pytest.importorskip(
    "highdicom", reason="highdicom is not installed: pip install 'monai-unimedvl[dicom]'"
)

LEGEND = {"grey matter": (220, 50, 50), "white matter": (240, 240, 240), "odd thing": (50, 90, 230)}
GRID = np.diag([-1.5, -2.0, 4.0, 1.0])


def labels() -> np.ndarray:
    """(10, 8, 4), with all three labels, and nothing in the last slice."""
    made = np.zeros((10, 8, 4), np.uint8)
    made[1:4, 2:5, 0], made[5:, 3:, 1], made[2, :, 2], made[7, 7, 0] = 1, 2, 3, 2
    return made


def planes(path) -> dict[tuple[float, ...], np.ndarray]:
    """position of a plane -> labels (rows, columns) as highdicom reads them"""
    seg = hd.seg.segread(path)
    frames = seg.pixel_array if seg.pixel_array.ndim == 3 else seg.pixel_array[None]
    found: dict[tuple[float, ...], np.ndarray] = {}
    for frame, group in zip(frames, seg.PerFrameFunctionalGroupsSequence, strict=True):
        place = tuple(round(float(v), 4) for v in group.PlanePositionSequence[0].ImagePositionPatient)
        plane = found.setdefault(place, np.zeros(frame.shape, np.uint8))
        if "SegmentIdentificationSequence" in group:
            frame = frame * int(group.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        plane += frame.astype(np.uint8)
    return found


@pytest.mark.parametrize("affine", [GRID, right_angled(OBLIQUE)], ids=["straight", "tilted"])
@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_labels_names_and_place_come_back(tmp_path, facts, make_series, errors, kind, affine):
    source = make_series(tmp_path / "in", np.zeros((10, 8, 4)), affine)
    given = labels()
    path = write_segmentation(
        given, tmp_path / "a.dcm", facts, source=source, legend=LEGEND, affine=read(source).affine, kind=kind
    )
    found = planes(path)
    for n in range(4):
        header = pydicom.dcmread(source / f"{n}.dcm")
        place = tuple(round(float(v), 4) for v in header.ImagePositionPatient)
        if given[..., n].any():
            assert np.array_equal(found[place], given[..., n].T)
    seg = hd.seg.segread(path)
    named = {s.SegmentLabel: s for s in seg.SegmentSequence if s.SegmentNumber}
    assert [*named] == [*LEGEND]
    assert named["grey matter"].SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Gray Matter"
    assert named["odd thing"].SegmentedPropertyTypeCodeSequence[0].CodingSchemeDesignator == "99UNIMEDVL"
    shade = hd.color.CIELabColor.from_dicom_value(named["odd thing"].RecommendedDisplayCIELabValue)
    assert np.abs(np.array(shade.to_rgb()) - LEGEND["odd thing"]).max() <= 2
    if kind == "BINARY":  # dciodvfy of 2022 does not know label maps
        assert errors(path) == []


def test_it_refers_to_its_images_and_is_marked(tmp_path, facts, make_series):
    source = make_series(tmp_path / "in", np.zeros((10, 8, 4)), GRID)
    path = write_segmentation(
        labels(), tmp_path / "a.dcm", facts, source=source, legend=LEGEND, affine=read(source).affine
    )
    seg = pydicom.dcmread(path)
    old = {pydicom.dcmread(source / f"{n}.dcm").SOPInstanceUID for n in range(4)}
    referred = {
        item.ReferencedSOPInstanceUID for item in seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    }
    assert referred <= {hashed_uid(uid) for uid in old} and referred
    assert seg.SyntheticData == "YES" and seg.ContentQualification == "RESEARCH"
    assert seg.SegmentSequence[0].SegmentAlgorithmType == "AUTOMATIC"
    assert str(seg.PatientName).startswith("Anonymous^") and b"Doe" not in path.read_bytes()
    assert examine(path).case == "marked" and verify(path)["task"] == facts.task
    seg.PixelData = bytes(reversed(seg.PixelData))
    seg.save_as(path)
    assert examine(path).case == "altered"


def test_images_without_a_place_take_labels_too(tmp_path, facts, make_series, errors):
    source = make_series(tmp_path / "in", np.zeros((10, 8, 1)), GRID)
    header = pydicom.dcmread(source / "0.dcm")
    del header.ImagePositionPatient, header.ImageOrientationPatient, header.FrameOfReferenceUID
    header.Modality, header.SOPClassUID = "CR", "1.2.840.10008.5.1.4.1.1.1"
    path = write_segmentation(
        labels()[..., :1], tmp_path / "a.dcm", facts, source=header, legend=LEGEND,
        names={"odd thing": (codes.SCT.AnatomicalStructure, codes.SCT.Heart)},
    )  # fmt: skip
    seg = hd.seg.segread(path)
    assert seg.SegmentSequence[2].SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Heart"
    assert np.array_equal(seg.pixel_array[0] + 2 * seg.pixel_array[1], labels()[..., 0].T)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"labels": np.zeros((10, 8, 4), np.uint8)}, "no label is set anywhere"),
        ({"labels": np.full((10, 8, 4), 9)}, "labels from 9 to 9 came, but the legend names 1 to 3"),
        ({"labels": np.full((10, 8, 4), 0.5)}, "expected whole numbers"),
        ({"labels": np.ones((8, 4))}, r"shape \(8, 4\)"),
        ({"legend": {}}, "the legend is empty"),
        ({"kind": "FRACTIONAL"}, "kind 'FRACTIONAL' came"),
        ({"path": "a.nii"}, "a name in .dcm"),
        ({"source": "nowhere"}, "nowhere does not exist"),
    ],
)
def test_bad_calls_are_refused_and_leave_nothing(tmp_path, facts, make_series, change, message):
    source = make_series(tmp_path / "in", np.zeros((10, 8, 4)), GRID)
    given = {"labels": labels(), "path": "a.dcm", "source": source, "legend": LEGEND, **change}
    with pytest.raises(ValueError, match=message):
        write_segmentation(
            given.pop("labels"),
            tmp_path / "out" / given.pop("path"),
            facts,
            affine=read(source).affine,
            **given,
        )
    assert not (tmp_path / "out").exists()
