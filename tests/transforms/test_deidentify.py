# SPDX-License-Identifier: Apache-2.0
"""Of a DICOM header only pixels, geometry and technique get in."""

from __future__ import annotations

import warnings
from pathlib import Path

import data_store
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from monai_unimedvl.transforms import recipe
from monai_unimedvl.transforms.deidentify import deidentify, hashed_uid, pseudonym
from monai_unimedvl.transforms.dicom import series_uids
from monai_unimedvl.transforms.read import read

FILES = Path(data_store.__file__).parent / "data"
SAME = ["RG1_UNCR", "693_UNCI", "color-pl", "emri_small", "mlut_18", "vlut_04", "US1_UNCR", "SC_rgb_rle"]


def header() -> Dataset:
    """One of a patient, with identifiers in places where they hide."""
    made = Dataset()
    made.PatientName, made.PatientID, made.PatientBirthDate = "Doe^Jane", "MRN-778812", "19470231X"
    made.Modality, made.StudyInstanceUID, made.SOPInstanceUID = "MR", "1.2.840.77.1", "1.2.840.77.3"
    made.BodyPartExamined, made.RescaleType, made.Rows = "DOE^JANE", "Jane's units, 1947", 4
    block = made.private_block(0x0009, "DOE PRIVATE", create=True)
    block.add_new(1, "LO", "Jane Doe")
    inner = Dataset()
    inner.PixelSpacing, inner.OperatorsName = [1, 1], "Nurse^Nelly"
    measures = Dataset()
    measures.PixelMeasuresSequence = [inner]
    made.SharedFunctionalGroupsSequence = [measures]
    other = Dataset()
    other.PatientID = "OLD-47QX11"
    made.OtherPatientIDsSequence = [other]
    return made


def test_only_the_list_stays_and_the_source_is_not_changed():
    before = header()
    after = deidentify(before)
    assert before == header()
    said = str(after)
    for secret in ("Doe", "DOE", "Jane", "MRN", "1947", "1.2.840.77", "Nelly", "47QX11", "0009"):
        assert secret not in said, secret
    assert after.Modality == "MR" and after.Rows == 4 and after.PatientIdentityRemoved == "YES"
    assert after.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing == [1, 1]
    assert deidentify(after).Rows == 4


def test_hashes_hold_references_together_and_depend_on_the_secret(monkeypatch):
    one, two = deidentify(header()), deidentify(header())
    assert one.StudyInstanceUID == two.StudyInstanceUID == hashed_uid("1.2.840.77.1")
    assert one.StudyInstanceUID.is_valid and len(one.StudyInstanceUID) <= 64
    assert deidentify(header(), secret="ward 7").StudyInstanceUID != one.StudyInstanceUID
    monkeypatch.setenv("UNIMEDVL_SECRET", "ward 7")
    assert deidentify(header()).StudyInstanceUID == deidentify(header(), secret="ward 7").StudyInstanceUID


def test_a_patient_is_linked_over_studies_only_with_a_secret():
    later = header()
    later.StudyInstanceUID = "1.2.840.77.9"
    assert pseudonym(header(), "") != pseudonym(later, "")
    assert pseudonym(header(), "ward 7") == pseudonym(later, "ward 7") != pseudonym(header(), "ward 8")
    assert pseudonym(Dataset()) == "ANON" and pseudonym(header()).startswith("ANON-")


def test_no_warning_repeats_an_identifier():
    raw = pydicom.filebase.DicomBytesIO()
    raw.is_little_endian, raw.is_implicit_VR = True, True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pydicom.filewriter.write_dataset(raw, header())
    raw.seek(0)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        found = deidentify(pydicom.dcmread(raw, force=True))
    assert found.Rows == 4 and not [w for w in heard if "1947" in str(w.message)]


@pytest.mark.parametrize("name", SAME)
def test_real_files_keep_their_pixels(name):
    path = FILES / f"{name}.dcm"
    if not path.is_file():
        path = Path(pydicom.data.get_testdata_file(f"{name}.dcm"))
    assert np.array_equal(deidentify(pydicom.dcmread(path)).pixel_array, pydicom.dcmread(path).pixel_array)


def test_what_is_read_carries_no_identifier_but_the_path():
    path = FILES / "RG1_UNCR.dcm"
    original = pydicom.dcmread(path, stop_before_pixels=True)
    for image in (read(path), recipe("xray")(path)[0]):
        meta = str({k: v for k, v in image.meta.items() if k not in ("file", "filename_or_obj")})
        for value in (original.SeriesInstanceUID, original.SOPInstanceUID, original.PatientID):
            assert value not in meta.replace(path.name, "")
    assert series_uids(path) == [hashed_uid(original.SeriesInstanceUID)]
    assert series_uids(Path(__file__)) == []
