# SPDX-License-Identifier: Apache-2.0
"""A DICOMweb archive (Debian's Orthanc) as the data store: images come out, masks go in as SEG and back."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from archive import Orthanc, an_archive
from label_server import NAME, Server
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from monai_unimedvl.label.folder import write_app
from monai_unimedvl.provenance import read_mark
from monai_unimedvl.transforms.read import read

pytestmark = pytest.mark.label
TISSUES = [
    {"name": "grey matter", "idx": 1, "color": [220, 50, 50]},
    {"name": "white matter", "idx": 2, "color": [240, 240, 240]},
    {"name": "CSF", "idx": 3, "color": [50, 90, 230]},
]


@pytest.fixture(scope="module")
def series(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The slices of the sample as an MR series of a patient."""
    folder = tmp_path_factory.mktemp("dicom") / "series"
    folder.mkdir()
    brain = nibabel.load(sample)
    place = np.diag([-1, -1, 1, 1]) @ brain.affine
    values = np.asarray(brain.dataobj).astype(np.uint16) * 5
    uid, study, frame = generate_uid(), generate_uid(), generate_uid()
    for n in range(values.shape[2]):
        header = pydicom.Dataset()
        header.file_meta = pydicom.dataset.FileMetaDataset()
        header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID = MRImageStorage
        header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID = generate_uid()
        header.Modality, header.PatientName, header.PatientID = "MR", NAME, "47QX11"
        header.SeriesInstanceUID, header.StudyInstanceUID, header.FrameOfReferenceUID = uid, study, frame
        header.Columns, header.Rows = values.shape[:2]
        header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
        header.BitsAllocated = header.BitsStored = 16
        header.HighBit, header.PixelRepresentation, header.InstanceNumber = 15, 0, n + 1
        sizes = np.linalg.norm(place[:3, :3], axis=0)
        header.PixelSpacing, header.SliceThickness = [float(sizes[1]), float(sizes[0])], float(sizes[2])
        header.ImageOrientationPatient = [
            float(x) for x in (*place[:3, 0] / sizes[0], *place[:3, 1] / sizes[1])
        ]
        header.ImagePositionPatient = [float(x) for x in (place @ [0, 0, n, 1])[:3]]
        header.PixelData = np.ascontiguousarray(values[:, :, n].T).tobytes()
        header.save_as(folder / f"{n}.dcm", enforce_file_format=True)
    return folder


@pytest.fixture(scope="module")
def orthanc(installed: None, series: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """An archive that holds the series."""
    with an_archive(tmp_path_factory.mktemp("archive") / "orthanc") as archive:
        archive.start()
        for path in series.iterdir():
            where = f"http://127.0.0.1:{archive.http}/instances"
            urllib.request.urlopen(urllib.request.Request(where, path.read_bytes()), timeout=30).close()
        yield archive


def test_images_come_out_and_masks_go_in_and_come_back(
    served: Any, orthanc: Orthanc, series: Path, tmp_path: Path
) -> None:
    import highdicom

    # where nobody says mri: the header does
    app = write_app(tmp_path / "app")
    environment = {"MONAI_LABEL_DICOMWEB_CACHE_PATH": str(tmp_path / "cache")}
    server: Server = served(app, orthanc.ways[1], "--filter", "Modality=MR", environment=environment)
    image = server.post("/activelearning/first", {})["id"]
    header = pydicom.dcmread(next(series.iterdir()))
    assert image == header.SeriesInstanceUID
    told = server.infer("answer", image)
    assert told["answer"] == "axial" and told["read"][0].startswith("axial slice 4 of 0 to 7")
    assert told["manifest"]["sources"] and NAME not in json.dumps(told), (
        "the series, hashed, and nobody's name"
    )

    source = read(series)
    mask = server.volume("segment_tissue", image)
    assert mask.shape == tuple(source.shape[1:]) and np.abs(mask.affine - source.affine.numpy()).max() < 1e-3
    values = np.asarray(mask.dataobj)
    cached = nibabel.load(next((tmp_path / "cache").rglob(f"{image}.nii.gz")))
    assert cached.shape == mask.shape and np.abs(mask.affine - cached.affine).max() < 1e-3, (
        "as viewers see it"
    )

    where = {"image": image, "output": "dicom_seg"}
    asked = {"params": json.dumps({"label_info": TISSUES})}
    answer = server.ask("POST", "/infer/segment_tissue", params=where, data=asked)
    assert answer.status_code == 200, answer.text
    (tmp_path / "made.dcm").write_bytes(answer.content)
    assert read_mark(tmp_path / "made.dcm")["synthetic"] is True, "what the model drew is marked"

    server.label(image, Path(mask.get_filename()).read_bytes(), "final.nii.gz", label_info=TISSUES)
    segs = []
    for name in json.loads(orthanc.get("/instances")):
        (tmp_path / "one.dcm").write_bytes(orthanc.get(f"/instances/{name}/file"))
        if pydicom.dcmread(tmp_path / "one.dcm").Modality == "SEG":
            segs.append(highdicom.seg.segread(tmp_path / "one.dcm"))
    (seg,) = segs
    assert (seg.PatientID, seg.StudyInstanceUID) == ("47QX11", header.StudyInstanceUID), (
        "filed under the patient"
    )
    assert [str(one.SegmentLabel) for one in seg.SegmentSequence] == [one["name"] for one in TISSUES]
    assert {str(one.SegmentAlgorithmType) for one in seg.SegmentSequence} == {"SEMIAUTOMATIC"}
    assert "SyntheticData" not in seg, "a person has handed it in"

    learned = server.get("/datastore/?output=train").json()
    assert len(learned) == 1
    back = nibabel.load(learned[0]["label"])
    place = np.linalg.inv(back.affine) @ mask.affine
    voxels = np.argwhere(values > 0)
    there = np.rint((place @ np.c_[voxels, np.ones(len(voxels))].T)[:3].T).astype(int)
    assert (np.asarray(back.dataobj)[tuple(there.T)] == values[tuple(voxels.T)]).all()
    assert int((np.asarray(back.dataobj) > 0).sum()) == len(voxels)
    assert image not in server.log and NAME not in server.log and "47QX11" not in server.log
