# SPDX-License-Identifier: Apache-2.0
"""DICOM series made in the test, of a patient with a name, on any grid; and the validator of dicom3tools."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

from monai_unimedvl.provenance import Facts

# What dciodvfy of 2022 (Debian 12) does not know: an element that the standard got in 2024.
TOO_NEW = re.compile(r"Error - </\(0008,001c\)> - Attribute with an even group number is not a recognized")

OBLIQUE = np.array([[-0.9, 0.1, 0.4, 30.0], [0.05, -1.2, 0.6, -20.0], [0.1, 0.3, 2.9, 700.0], [0, 0, 0, 1.0]])


def right_angled(affine: np.ndarray) -> np.ndarray:
    """The affine with its rows at a right angle to its columns, and the stack as it was."""
    made = affine.copy()
    across = made[:3, 0] / np.linalg.norm(made[:3, 0])
    made[:3, 1] -= across * (across @ made[:3, 1])
    return made


@pytest.fixture(scope="session")
def facts() -> Facts:
    """Of a translation."""
    return Facts("Turn this T1 MRI into T2.", 7, "ab" * 32, "t1-to-t2", ["cd" * 32], [3], 4, 2.0)


@pytest.fixture(scope="session")
def make_series() -> Callable[..., Path]:
    """Write a series of a patient into a folder."""

    def make(folder: Path, values: np.ndarray, affine: np.ndarray, modality: str = "MR") -> Path:
        """values (X, Y, Z) whole numbers, affine to RAS mm"""
        folder.mkdir(parents=True)
        lps = np.diag([-1, -1, 1, 1.0]) @ affine
        sizes = np.linalg.norm(lps[:3, :2], axis=0)
        study, series, frame = (generate_uid() for _ in range(3))
        for n in range(values.shape[2]):
            header = pydicom.Dataset()
            header.file_meta = pydicom.dataset.FileMetaDataset()
            header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            header.SOPClassUID = CTImageStorage if modality == "CT" else MRImageStorage
            header.SOPInstanceUID = generate_uid()
            header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID
            header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
            header.PatientName, header.PatientID, header.PatientBirthDate = "Doe^Jane", "MRN-QX11", "19470221"
            header.PatientSex, header.StudyDate, header.StudyTime, header.StudyID = (
                "F",
                "20240229",
                "1200",
                "S-77",
            )
            header.AccessionNumber, header.ReferringPhysicianName = "ACC-0815", "House^Gregory"
            header.StudyInstanceUID, header.SeriesInstanceUID, header.FrameOfReferenceUID = (
                study,
                series,
                frame,
            )
            header.Modality, header.SeriesNumber, header.InstanceNumber = modality, 3, n + 1
            header.Columns, header.Rows = values.shape[:2]
            header.PixelSpacing = [float(sizes[1]), float(sizes[0])]
            header.SliceThickness = float(abs(np.linalg.det(lps[:3, :3])) / sizes.prod())
            header.ImageOrientationPatient = [*(lps[:3, 0] / sizes[0]), *(lps[:3, 1] / sizes[1])]
            header.ImagePositionPatient = list((lps @ [0, 0, n, 1])[:3])
            header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
            header.BitsAllocated = header.BitsStored = 16
            header.HighBit, header.PixelRepresentation = 15, int(modality == "CT")
            if modality == "CT":
                header.RescaleSlope, header.RescaleIntercept, header.RescaleType = 1, 0, "HU"
            header.PixelData = np.ascontiguousarray(values[..., n].T.astype(np.int16)).tobytes()
            for element in list(header):
                if element.VR == "DS":
                    listed = element.value if element.VM > 1 else [element.value]
                    exact = [pydicom.valuerep.DSfloat(float(v), auto_format=True) for v in listed]
                    element.value = exact if len(exact) > 1 else exact[0]
            header.save_as(folder / f"{n}.dcm", enforce_file_format=True)
        return folder

    return make


@pytest.fixture(scope="session")
def errors() -> Callable[[Path], list[str]]:
    """What dciodvfy calls an error in a file; a test that asks is skipped where it is not installed."""
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy is not installed: apt-get install dicom3tools")

    def run(path: Path) -> list[str]:
        said = subprocess.run(["dciodvfy", "-new", str(path)], capture_output=True, text=True, timeout=60)
        return [
            line for line in said.stderr.splitlines() if line.startswith("Error") and not TOO_NEW.match(line)
        ]

    return run
