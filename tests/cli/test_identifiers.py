# SPDX-License-Identifier: Apache-2.0
"""Thirty-six things that say who a patient is are planted in a series; none of them comes out anywhere."""

from __future__ import annotations

import json
import logging
import re
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

from monai_unimedvl.provenance import Facts, write_report, write_segmentation, write_series
from monai_unimedvl.transforms.read import read

TEXTS = {  # keyword -> what is planted
    "PatientName": "Quincewort^Zebulonia", "PatientID": "PIDX-90210-A",
    "PatientAddress": "17 Larkspur Mews", "PatientTelephoneNumbers": "+44 5550 917233",
    "OtherPatientIDs": "OPID-55512", "PatientAge": "087Y", "PatientBirthDate": "19370321",
    "PatientBirthName": "Vandersnoot^Z", "PatientComments": "of Bartholomy",
    "PatientMotherBirthName": "Grimblethorpe", "EthnicGroup": "Ruritanian", "Occupation": "Lamplighter",
    "AccessionNumber": "ACCN-771144", "StudyID": "SID-8876X", "StudyDate": "20190817",
    "StudyTime": "031416.159", "AcquisitionDateTime": "20190817031455.926",
    "ReferringPhysicianName": "Housemartin^G", "PerformingPhysicianName": "Strangelove^D",
    "OperatorsName": "Pumblechook^O", "InstitutionName": "Saint Elsewhere",
    "InstitutionAddress": "4 Nowhere Lane", "StationName": "SCANNERXQ7",
    "DeviceSerialNumber": "SERNO-443322", "StudyDescription": "Headache of Quincewort",
    "SeriesDescription": "T1 for Strangelove", "ProtocolName": "PROT-Elsewhere",
    "ImageComments": "see Bartholomy", "RequestedProcedureDescription": "rule out xanthoma",
    "BodyPartExamined": "HEAD^VANDERSN", "StudyInstanceUID": "1.2.826.9.71.1",
    "SeriesInstanceUID": "1.2.826.9.71.2", "FrameOfReferenceUID": "1.2.826.9.71.4",
}  # fmt: skip
PLANTED = [
    "Quincewort", "Zebulonia", "90210", "Larkspur", "917233", "55512", "087Y", "19370321", "Vandersn",
    "VANDERSN", "Bartholomy", "Grimblethorpe", "Ruritanian", "Lamplighter", "771144", "8876X", "20190817",
    "031416", "031455", "Housemartin", "Strangelove", "Pumblechook", "Elsewhere", "Nowhere", "SCANNERXQ7",
    "443322", "xanthoma", "1.2.826.9.71", "Privatissimo", "Nestedine", "Preamblia", "METAINFO-1", "AETITLE-9",
    "Overlayer", "Folderico", "Filenamo",
]  # fmt: skip

#: UIDs and digests that are made anew: any of the planted numbers may turn up among so many digits by chance
OURS = re.compile(rb"2\.25\.\d{30,39}|1\.2\.826\.0\.1\.3680043\.[\d.]+|[0-9a-f]{32,64}")


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """A folder of four MR slices that say who the patient is wherever that can be said."""
    folder = tmp_path / "in" / "Folderico Quincewort"
    folder.mkdir(parents=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for n in range(4):
            _slice(n).save_as(folder / f"Filenamo_{n}.dcm", enforce_file_format=True)
    return folder


def _slice(n: int) -> Dataset:
    header = Dataset()
    for keyword, text in TEXTS.items():
        setattr(header, keyword, text)
    header.preamble = b"Preamblia Quincewort".ljust(128, b"\0")
    header.file_meta = pydicom.dataset.FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.file_meta.SourceApplicationEntityTitle = "AETITLE-9"
    header.file_meta.PrivateInformationCreatorUID = "1.2.826.9.71.9"
    header.file_meta.PrivateInformation = b"METAINFO-1"
    header.SOPClassUID, header.SOPInstanceUID = MRImageStorage, f"1.2.826.9.71.3.{n}"
    header.file_meta.MediaStorageSOPClassUID = MRImageStorage
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
    inner, outer = Dataset(), Dataset()
    inner.OperatorsName = "Nestedine^N"
    inner.private_block(0x0011, "NESTEDINE", create=True).add_new(1, "LO", "Nestedine Quincewort")
    outer.PersonIdentificationCodeSequence = [inner]
    header.OperatorIdentificationSequence = [outer]
    other = Dataset()
    other.PatientID = "OPID-55512"
    header.OtherPatientIDsSequence = [other]
    block = header.private_block(0x0009, "PRIVATISSIMO", create=True)
    block.add_new(1, "LO", "Privatissimo Quincewort")
    block.add_new(2, "OB", b"Privatissimo")
    header.add_new(0x60000010, "US", 8)
    header.add_new(0x60000011, "US", 8)
    header.add_new(0x60000040, "CS", "G")
    header.add_new(0x60004000, "LT", "Overlayer Quincewort")
    header.add_new(0x60003000, "OW", b"Overlayer")
    header.Modality, header.InstanceNumber = "MR", n + 1
    header.Rows = header.Columns = 32
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated = header.BitsStored = 16
    header.HighBit, header.PixelRepresentation = 15, 0
    header.PixelSpacing, header.ImageOrientationPatient = [5, 5], [1, 0, 0, 0, 1, 0]
    header.ImagePositionPatient = [0, 0, 5 * n]
    values = np.zeros((32, 32), np.uint16)
    values[8:24, 4:28] = 100 * (n + 1)
    header.PixelData = values.tobytes()
    return header


def leaks(content: bytes | str) -> list[str]:
    """The planted words in a text or file, in any case."""
    known = content.encode() if isinstance(content, str) else content
    low = OURS.sub(b"", known.lower())
    return [word for word in PLANTED if word.lower().encode() in low]


def test_they_are_really_planted(planted):
    content = (planted / "Filenamo_0.dcm").read_bytes() + str(planted / "Filenamo_0.dcm").encode()
    assert set(leaks(content)) == set(PLANTED) and len(PLANTED) >= 30


def test_a_planted_number_is_found_beside_digits_that_are_made_anew():
    assert leaks(f"2.25.{'1' * 20}55512{'1' * 14}") == [] and leaks("0a55512b" * 8) == []
    assert leaks("2.25.55512") == ["55512"] and leaks(f"2.25.{'1' * 39} OPID-55512") == ["55512"]


def test_none_comes_out_of_any_verb(command, planted, tmp_path, caplog, recwarn):
    caplog.set_level(logging.DEBUG)
    out = tmp_path / "out"
    runs = [
        ("ask", planted, "Is anything wrong?", "--max-words", "4", "--out", out / "answer.json"),
        ("ask", planted, "Is anything wrong?", "--max-words", "4", "--out", out / "answer.dcm"),
        ("report", planted, "--max-words", "4", "--json"),
        ("edit", planted, "Turn it into T2.", "--steps", "1", "--out", out / "edited.png"),
        ("edit", planted, "Turn it into T2.", "--steps", "1", "--out", out / "edited.nii.gz"),
        ("edit", planted, "Turn it into T2.", "--steps", "1", "--format", "dicom", "--out", out / "series"),
        ("edit", planted, "Into T2.", "--steps", "1", "--whole", "--format", "dicom", "--out", out / "whole"),
        ("segment", planted, "--task", "tissue", "--steps", "1", "--out", out / "mask.png"),
    ]
    said = []
    for words in runs:
        code, shown, err = command(*words)
        assert code == 0, err
        said += [shown, err]
    assert leaks("\n".join(said)) == []
    assert leaks(caplog.text) == [] and leaks(str([str(w.message) for w in recwarn])) == []
    files = [path for path in out.rglob("*") if path.is_file()]
    assert len(files) >= 16
    for path in files:
        assert leaks(path.read_bytes()) == [] and leaks(path.name) == [], path.name
    manifest = json.loads((out / "edited.png.json").read_text())
    assert manifest["sources"][0].startswith("2.25.")
    assert leaks(json.dumps(dict(Image.open(out / "edited.png").text))) == []


def test_none_comes_out_of_words_that_repeat_them_whatever_the_result_is(command, planted, tmp_path):
    header = pydicom.dcmread(planted / "Filenamo_0.dcm")
    header.SpecificCharacterSet, header.PatientName = "GB18030", "Li^Wu=李^小武"
    header.save_as(tmp_path / "one.dcm")
    words = "李小武 (Li, Wu, 21 March 1937, pidx-90210-a): is anything wrong?"
    history = ("--history", "Mrs Li came on foot")
    out = tmp_path / "out"
    runs = [
        ("ask", tmp_path / "one.dcm", words, *history, "--max-words", "4", "--out", out / "answer.json"),
        ("ask", tmp_path / "one.dcm", words, *history, "--max-words", "4", "--json"),
        ("edit", tmp_path / "one.dcm", words, "--steps", "1", "--out", out / "edited.png", "--json"),
        ("edit", planted, "Zebulonia into T2.", "--steps", "1", "--whole", "--out", out / "edited.nii.gz"),
    ]
    for run in runs:
        code, shown, err = command(*run)
        assert code == 0, err
        files = "".join(path.read_text("utf8", "ignore") for path in out.rglob("*.json"))
        for said in (shown + err, files):
            assert not re.search(r"李|小武|\bLi\b|\bWu\b|1937|90210|Zebulonia|\\u674e", said), said
    assert "[removed]" in files


def test_none_comes_out_of_the_writers_even_when_words_repeat_them(planted, tmp_path, caplog, recwarn):
    pytest.importorskip("highdicom", reason="highdicom is not installed: pip install 'monai-unimedvl[dicom]'")
    out = tmp_path / "out"
    facts = Facts("Zebulonia Quincewort (PIDX-90210-A): is she well?", 1, "ab" * 32, "ask")
    volume = read(planted)
    write_series(volume, out / "series", facts, source=planted)
    labels = (volume > 100).byte()
    write_segmentation(labels, out / "seg.dcm", facts, source=planted, legend={"bone": (255, 240, 200)})
    write_report("Mrs Quincewort is well.", "ACCN-771144: well.", out / "sr.dcm", facts, source=planted)
    files = [path for path in out.rglob("*") if path.is_file()]
    assert len(files) == 4 + 1 + 2 + 2
    for path in files:
        assert leaks(path.read_bytes()) == [], path.name
    assert leaks(caplog.text) == [] and leaks(str([str(w.message) for w in recwarn])) == []
