# SPDX-License-Identifier: Apache-2.0
"""Results as NIfTI, TIFF and DICOM, of one slice and of whole volumes, at the place of their source."""

from __future__ import annotations

import json
import re
import sys

import nibabel
import numpy as np
import pydicom
import pytest
import torch
from cli.conftest import NAME, volume

from monai_unimedvl import provenance
from monai_unimedvl.cli import verbs, writing
from monai_unimedvl.transforms.read import read

TRUTH = volume() > 0  # the bright block of `scan`


def overlap(found, truth):
    return 2 * (found & truth).sum() / (found.sum() + truth.sum())


@pytest.mark.parametrize(
    "words", [[], ["--plane", "coronal"], ["--fuse-planes"]], ids=["axial", "coronal", "fused"]
)
def test_a_whole_volume_comes_back_in_the_space_of_its_source(command, scan, tmp_path, painter, words):
    out = tmp_path / "mask.nii.gz"
    code, said, err = command(
        "segment", scan, "--task", "tissue", "--modality", "mri", "--whole", "--out", out, *words
    )
    assert code == 0 and re.search(r"2 white matter \(\d{4,} voxels\)", said), err
    mask, whole = nibabel.load(out), nibabel.load(scan)
    assert mask.shape == whole.shape and np.abs(mask.affine - whole.affine).max() < 1e-6
    assert overlap(np.asarray(mask.dataobj) == 2, TRUTH) > 0.9
    assert provenance.verify(out)["task"] == "seg-tissue"


def test_an_edited_volume_keeps_grid_and_type(command, scan, tmp_path, painter):
    out = tmp_path / "out.nii"
    words = ("edit", scan, "Sharpen.", "--modality", "mri", "--whole", "--format", "nifti", "--out", out)
    assert command(*words)[0] == 0
    made = nibabel.load(out)
    assert made.shape == TRUTH.shape and made.get_data_dtype() == np.float32
    assert overlap(np.asarray(made.dataobj) > 60, TRUTH) > 0.9


@pytest.mark.parametrize(
    ("modality", "words", "shades"),
    [("mri", ["--slice", "2"], [0, 1]), ("ct", ["--window", "[-20, 100]", "--whole"], [-20, 100])],
    ids=["slice", "volume"],
)  # fmt: skip
def test_an_edit_as_nifti_says_what_its_values_mean(
    command, scan, tmp_path, painter, modality, words, shades
):  # fmt: skip
    out, flag = tmp_path / "out.nii", ("--modality", modality)
    words = ("edit", scan, "Sharpen.", *flag, *words, "--format", "nifti", "--out", out)
    code, said, err = command(*words, "--json")
    assert code == 0 and json.loads(said)["shades"] == shades, err
    values = np.asarray(nibabel.load(out).dataobj)
    assert shades[0] <= values.min() and values.max() <= shades[1] and values.std() > 0.1
    assert "values: {} is black, {} is white".format(*shades) in command(*words)[1]


def test_a_seg_of_a_series_refers_to_its_slices(command, series, tmp_path, painter):
    highdicom = pytest.importorskip("highdicom", reason="the extra dicom is not installed")
    for words in (["--whole"], ["--slice", "2"]):
        out = tmp_path / f"mask{len(words)}.dcm"
        code, _, err = command(
            "segment", series, "--task", "tissue", "--format", "dicom", "--out", out, *words
        )
        assert code == 0, err
        made = highdicom.seg.segread(out)
        assert made.get_segment_numbers(segment_label="white matter")
        frames = made.get_volume(combine_segments=True) if "--whole" in words else None
        if frames is not None:
            bright = read(series).as_tensor()[0, :, :, 1:].numpy() > 0  # the first slice is too dark
            assert overlap(np.moveaxis(frames.array, 0, -1).transpose(1, 0, 2) > 0, bright) > 0.9
        header = pydicom.dcmread(out)
        assert header.SyntheticData == "YES" and NAME not in str(header.PatientName)


def test_a_series_comes_back_at_the_place_of_the_source(command, series, tmp_path, painter):
    source = read(series)
    words = ("edit", series, "Sharpen.", "--format", "dicom")
    assert command(*words, "--whole", "--out", tmp_path / "whole")[0] == 0
    made = read(tmp_path / "whole")
    assert made.shape == source.shape and torch.allclose(made.affine, source.affine, atol=1e-6)
    assert overlap(made.as_tensor().numpy()[..., 1:] > 150, source.as_tensor().numpy()[..., 1:] > 0) > 0.9
    code, _, err = command(*words, "--slice", "2", "--out", tmp_path / "one")
    assert code == 0, err
    (file,) = (tmp_path / "one").iterdir()
    one = pydicom.dcmread(file)
    assert one.ImagePositionPatient == [0, 0, 10] and one.ImageType[:2] == ["DERIVED", "SECONDARY"]
    assert (one.Rows, one.Columns) == (32, 32) and (tmp_path / "one.json").is_file()
    shown = one.pixel_array * one.RescaleSlope + one.RescaleIntercept > 0.5
    assert overlap(shown, source.as_tensor()[0, :, :, 2].numpy().T > 0) > 0.9  # not mirrored, not turned


def test_the_identity_is_taken_over_only_when_asked_for(command, series, tmp_path, painter):
    words = ("edit", series, "Sharpen.", "--format", "dicom", "--slice", "0")
    assert command(*words, "--out", tmp_path / "a")[0] == 0
    assert command(*words, "--keep-identity", "--out", tmp_path / "b")[0] == 0
    a, b = (pydicom.dcmread(next((tmp_path / name).iterdir())) for name in "ab")
    source = pydicom.dcmread(series / "0.dcm")
    assert NAME not in str(a) and a.StudyInstanceUID != source.StudyInstanceUID
    assert b.PatientName == NAME and b.StudyInstanceUID == source.StudyInstanceUID
    assert b.SeriesInstanceUID != source.SeriesInstanceUID


def test_a_drawing_as_dicom_and_tiff(command, tmp_path):
    words = ("draw", "T1", "--steps", "1")
    assert command(*words, "--format", "dicom", "--out", tmp_path / "d", "--count", "2")[0] == 0
    made = pydicom.dcmread(next((tmp_path / "d-1").iterdir()))
    assert (made.Rows, made.Columns, made.SamplesPerPixel) == (64, 64, 3)
    assert command(*words, "--out", tmp_path / "d.tiff")[0] == 0
    assert provenance.read_mark(tmp_path / "d.tiff")["prompt"] == "T1"


def test_a_report_as_dicom(command, series, tmp_path, monkeypatch):
    pytest.importorskip("highdicom", reason="the extra dicom is not installed")
    out = tmp_path / "report.dcm"
    code, said, err = command("report", series, "--max-words", "5", "--out", out)
    assert code == 0, err
    assert provenance.read_report(out).findings.split() == said.splitlines()[0].split()


def test_a_report_as_dicom_is_refused_before_the_work_where_highdicom_is_missing(
    command, series, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "highdicom", None)
    monkeypatch.setattr(verbs, "read_images", lambda *words, **more: pytest.fail("it was begun"))
    code, _, err = command("report", series, "--out", tmp_path / "report.dcm")
    assert code == 2 and re.search("needs highdicom, which is not installed: pip install", err)


def test_several_volumes_are_refused_before_the_work_and_one_is_drawn(command, bad, tmp_path, painter):
    words = (
        "edit",
        bad / "series.nii",
        "Go.",
        "--modality",
        "mri",
        "--whole",
        "--out",
        tmp_path / "a.nii.gz",
    )
    code, _, err = command(*words)
    assert code == 2 and "holds 3 volumes, but one comes out: choose it by --settings volume=0" in err
    assert command(*words, "--settings", "volume=1")[0] == 0
    assert nibabel.load(tmp_path / "a.nii.gz").shape == (30, 40, 20)


def test_nothing_is_copied_into_a_queue_that_cannot_be_sent_from(command, series, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynetdicom", None)
    words = ("--to", "dicom://A@localhost:1", "--queue", tmp_path / "queue", "--unmarked")
    code, _, err = command("send", series, *words, own_model=True)
    assert code == 2 and "C-STORE needs pynetdicom" in err and not (tmp_path / "queue").exists()


def test_a_folder_that_may_not_be_written_to_is_told_before_the_work(command, scan, tmp_path, monkeypatch):
    monkeypatch.setattr(writing.os, "access", lambda *words: False)
    monkeypatch.setattr(verbs, "read_images", lambda *words, **more: pytest.fail("it was begun"))
    code, _, err = command("edit", scan, "Go.", "--modality", "mri", "--out", tmp_path / "new" / "a.png")
    assert code == 2 and "a.png cannot be written, as" in err and not (tmp_path / "new").exists()


def test_an_answer_for_each_slice(command, scan, tmp_path):
    words = (
        "--modality",
        "mri",
        "--count",
        "3",
        "--per-slice",
        "--max-words",
        "1",
        "--out",
        tmp_path / "a.json",
    )
    code, out, _ = command("ask", scan, "Which plane?", *words)
    assert code == 0 and len(out.splitlines()) == 4
    assert [line.split(",")[0] for line in out.splitlines()[:3]] == [
        "axial slice 3 of 0 to 19", "axial slice 10 of 0 to 19", "axial slice 16 of 0 to 19"
    ]  # fmt: skip
    assert len(json.loads((tmp_path / "a.json").read_text())["slices"]) == 3


def test_a_list_of_series_as_dicom_is_done_once(command, series, tmp_path, painter):
    (tmp_path / "list.txt").write_text("series\nabsent\n")
    words = ("--input-list", tmp_path / "list.txt", "--format", "dicom", "--out", tmp_path / "r", "--quiet")
    code, out, _ = command("edit", "Sharpen.", *words, "--whole")
    assert code == 1 and "1 of 2 done" in out and "absent does not exist" in out
    files = sorted((tmp_path / "r" / "edit-00001").iterdir())
    assert len(files) == 4
    code, out, _ = command("edit", "Sharpen.", *words, "--whole")
    assert "(1 were there already)" in out
    files[0].write_bytes(b"cut")  # what is damaged is made anew
    assert "(1 were there already)" not in command("edit", "Sharpen.", *words, "--whole")[1]
    assert pydicom.dcmread(files[0]).Rows == 32


BAD = [
    (
        ["segment", "{scan}", "--task", "bone", "--modality", "mri", "--format", "dicom"],
        "a SEG refers to the DICOM",
    ),
    (["segment", "{scan}", "--task", "bone", "--whole", "--format", "png"], "--whole makes a volume"),
    (
        ["segment", "{scan}", "--task", "bone", "--whole", "--out", "{made}/a.png"],
        "a name in .nii.gz or .nii or",
    ),
    (["edit", "{scan}", "Go.", "--modality", "mri", "--whole", "--slice", "3"], "--whole takes them all"),
    (["edit", "{scan}", "Go.", "--modality", "mri", "--fuse-planes"], "add --whole"),
    (["edit", "{picture}", "Go.", "--whole"], "stain.png is read as .*no volume"),
    (["edit", "{picture}", "Go.", "--keep-identity"], "--keep-identity is for DICOM"),
    (
        ["edit", "{series}", "Go.", "--format", "dicom", "--out", "{made}/a.png"],
        "a new folder",
    ),
    (
        ["ask", "{scan}", "?", "--format", "dicom", "--out", "{made}/a.json"],
        "a name in .dcm",
    ),
]


@pytest.mark.parametrize("words, message", BAD, ids=range(len(BAD)))
def test_formats_that_do_not_fit_are_one_line(words, message, command, scan, picture, series, tmp_path):
    places = {"scan": scan, "picture": picture, "series": series, "made": tmp_path / "made"}
    code, out, err = command(*(word.format(**places) for word in words), "--quiet")
    assert (code, out) == (2, "") and err.count("\n") == 1 and re.search(message, err), err
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("words", "modality", "shades"),
    [
        (["--task", "ct-to-bone"], "ct", (-500, 1500)),
        ([" show this CT in the bone window. "], "ct", (-500, 1500)),
        (["Sharpen."], "ct", (-150, 250)),
        (["--task", "t1-to-gm"], "mri", (0, 1)),
    ],
)
def test_a_volume_has_the_values_of_what_was_asked_for(
    command, scan, tmp_path, painter, words, modality, shades
):
    out = tmp_path / "out.nii"
    assert command("edit", scan, *words, "--modality", modality, "--whole", "--out", out)[0] == 0
    values = np.asarray(nibabel.load(out).dataobj)
    low, high = shades
    painted = low + (high - low) * 240 / 255  # by `painter`
    assert values.max() == pytest.approx(painted, abs=1e-3)
