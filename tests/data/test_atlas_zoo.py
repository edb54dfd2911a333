# SPDX-License-Identifier: Apache-2.0
"""The zoo opens, names what it shows, and stays out of the corpus."""

from __future__ import annotations

import pytest

from monai_unimedvl.data.atlas_zoo import zoo


def test_nothing_is_there_before_fetching(tmp_path):
    assert zoo(tmp_path) == []


def test_every_scan_is_a_readable_dicom_of_its_kind():
    pydicom = pytest.importorskip("pydicom")
    scans = zoo()
    if not scans:
        pytest.skip("pydicom-data is not fetched; run `unimedvl data fetch-atlas`")
    modalities = {"xray": {"CR", "DX"}, "ct": {"CT"}, "mri": {"MR"}}
    for scan in scans:
        file = pydicom.dcmread(scan.path)
        assert file.Modality in modalities[scan.recipe] and file.pixel_array.ndim == 2
