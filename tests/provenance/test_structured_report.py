# SPDX-License-Identifier: Apache-2.0
"""Findings and impression as DICOM SR: valid, opened by highdicom, marked, and without the patient's name."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest

from monai_unimedvl.provenance import examine, manifest_path, read_report, write_report
from monai_unimedvl.transforms.deidentify import hashed_uid

hd = pytest.importorskip(
    "highdicom", reason="highdicom is not installed: pip install 'monai-unimedvl[dicom]'"
)

FINDINGS, IMPRESSION = "No mass. Ventricles of ordinary width (9 mm).\nÖdem: none.", "Normal study."


@pytest.fixture
def source(tmp_path, make_series):
    """A series of two slices."""
    return make_series(tmp_path / "in", np.zeros((10, 8, 2)), np.eye(4))


@pytest.mark.parametrize("kind", ["basic", "enhanced"])
def test_words_come_back_and_it_is_valid(tmp_path, facts, source, errors, kind):
    path = write_report(FINDINGS, IMPRESSION, tmp_path / "a.dcm", facts, source=source, kind=kind)
    said = read_report(path)
    assert (said.findings, said.impression) == (FINDINGS, IMPRESSION)
    assert errors(path) == []
    header = pydicom.dcmread(path)
    assert header.SOPClassUID.name == f"{'Basic Text' if kind == 'basic' else 'Enhanced'} SR Storage"
    assert (header.VerificationFlag, header.PreliminaryFlag) == ("UNVERIFIED", "PRELIMINARY")
    assert header.SyntheticData == "YES" and examine(path).case == "marked"
    evidence = header.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0]
    olds = [pydicom.dcmread(source / f"{n}.dcm").SOPInstanceUID for n in range(2)]
    assert {item.ReferencedSOPInstanceUID for item in evidence.ReferencedSOPSequence} == {
        *map(hashed_uid, olds)
    }


def test_highdicom_opens_it(tmp_path, facts, source):
    path = write_report(FINDINGS, IMPRESSION, tmp_path / "a.dcm", facts, source=source, kind="enhanced")
    report = hd.sr.srread(path)
    found = report.content[0].ContentSequence.find(hd.sr.CodedConcept("121070", "DCM", "Findings"))
    assert found[0].ContentSequence[0].value == FINDINGS
    path = write_report(FINDINGS, IMPRESSION, tmp_path / "b.dcm", facts, source=source)
    tree = hd.sr.ContentSequence.from_sequence(pydicom.dcmread(path).ContentSequence)
    assert (
        tree.find(hd.sr.CodedConcept("121072", "DCM", "Impressions"))[0].ContentSequence[0].value
        == IMPRESSION
    )


def test_the_patients_name_is_taken_out_of_words_and_prompt(tmp_path, facts, source):
    import dataclasses

    facts = dataclasses.replace(facts, prompt="Report on Jane Doe, MRN-QX11.")
    path = write_report("Jane has no mass.", "", tmp_path / "a.dcm", facts, source=source)
    assert read_report(path).findings == "[removed] has no mass."
    for content in (path.read_bytes(), manifest_path(path).read_bytes()):
        assert b"Jane" not in content and b"QX11" not in content and b"[removed]" in content
    path = write_report("Jane has no mass.", "", tmp_path / "b.dcm", facts, source=source, keep_identity=True)
    assert read_report(path).findings == "Jane has no mass." and pydicom.dcmread(path).PatientID == "MRN-QX11"


def test_a_report_needs_no_source(tmp_path, facts, errors):
    path = write_report("", IMPRESSION, tmp_path / "a.dcm", facts)
    assert read_report(path).impression == IMPRESSION and errors(path) == []


def test_a_changed_word_is_seen(tmp_path, facts, source):
    path = write_report(FINDINGS, IMPRESSION, tmp_path / "a.dcm", facts, source=source)
    path.write_bytes(path.read_bytes().replace(b"No mass", b"My mass"))
    assert examine(path).case == "altered" and "words were changed" in examine(path).why


@pytest.mark.parametrize(
    "words, options, message",
    [
        ((" ", ""), {}, "findings and impression are empty"),
        (("x", ""), {"kind": "video"}, "kind 'video' came"),
        (("x", ""), {"source": "nowhere"}, "nowhere does not exist"),
    ],
)
def test_bad_calls_are_refused_and_leave_nothing(tmp_path, facts, words, options, message):
    with pytest.raises(ValueError, match=message):
        write_report(*words, tmp_path / "a.dcm", facts, **options)
    assert not list(tmp_path.iterdir())


def test_a_report_is_read_from_reports_only(tmp_path, source):
    with pytest.raises(ValueError, match="0.dcm holds no findings"):
        read_report(source / "0.dcm")
    (tmp_path / "x.dcm").write_bytes(b"x")
    with pytest.raises(ValueError, match="x.dcm cannot be read as DICOM"):
        read_report(tmp_path / "x.dcm")


def test_a_header_that_cannot_be_taken_over_is_refused_without_repeating_it(tmp_path, facts, source):
    header = pydicom.dcmread(source / "0.dcm")
    header.PatientBirthDate = "19470231"  # no such day
    with pytest.raises(ValueError, match="a.dcm cannot be made from this source") as refused:
        write_report("x", "", tmp_path / "a.dcm", facts, source=header, keep_identity=True)
    assert "1947" not in str(refused.value)
    assert write_report("x", "", tmp_path / "a.dcm", facts, source=header)
