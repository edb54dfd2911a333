# SPDX-License-Identifier: Apache-2.0
"""The panel's interface: images in, answers and marked files out, and no patient anywhere."""

from __future__ import annotations

import gzip
import io
import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid
from serve_support import png, running, service_of

from monai_unimedvl import provenance
from monai_unimedvl.inferers import ImageInferer, Labels, TextInferer, VolumeInferer
from monai_unimedvl.serve import Service, application
from monai_unimedvl.serve.panel import folder_samples
from monai_unimedvl.serve.tasks import INSTRUCTIONS, LEGENDS
from monai_unimedvl.transforms import recipe
from monai_unimedvl.transforms.choosing import Choice, choose

PATIENT = "Doe^Jane"
NIIVUE = "47b896b77ec4a5be3ef1949c33ad393b6f45629921f326c279000bcf51bdb4af"  # dist/niivue.umd.js of 0.69.0
AFFINE = np.array([[-2.0, 0, 0, 10], [0, 1.5, 0, -20], [0, 0, 3.0, 5], [0, 0, 0, 1]])


def volume(shape: tuple[int, ...] = (12, 14, 9)) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 900, shape).astype(np.int16)


def nifti(values: np.ndarray | None = None, affine: np.ndarray = AFFINE) -> bytes:
    file = nibabel.Nifti1Image(volume() if values is None else values, affine)
    file.header["descrip"] = PATIENT.encode()
    return gzip.compress(file.to_bytes())


def series() -> list[bytes]:
    """A small DICOM series with a patient."""
    study, run = generate_uid(), generate_uid()
    found = []
    for n in range(4):
        one = pydicom.Dataset()
        one.file_meta = pydicom.dataset.FileMetaDataset()
        one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        one.file_meta.MediaStorageSOPClassUID = one.SOPClassUID = MRImageStorage
        one.file_meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID = generate_uid()
        one.PatientName, one.PatientID, one.Modality = PATIENT, PATIENT, "MR"
        one.StudyInstanceUID, one.SeriesInstanceUID, one.InstanceNumber = study, run, n + 1
        one.ImagePositionPatient, one.ImageOrientationPatient = [0, 0, 4.0 * n], [1, 0, 0, 0, 1, 0]
        one.PixelSpacing, one.SliceThickness, one.Rows, one.Columns = [1.0, 1.0], 4.0, 10, 8
        one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
        one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 16, 16, 15, 0
        one.PixelData = (volume((10, 8, 4))[..., n] + n).astype(np.uint16).tobytes()
        stream = io.BytesIO()
        pydicom.dcmwrite(stream, one, enforce_file_format=True)
        found.append(stream.getvalue())
    return found


@pytest.fixture(scope="module")
def served(network, tokenizer, tmp_path_factory) -> Iterator[tuple[httpx.Client, Service]]:
    folder = tmp_path_factory.mktemp("samples")
    (folder / "head.nii.gz").write_bytes(nifti())
    (folder / "notes.txt").write_text("no scan")
    service = service_of(network, tokenizer, kept=3, voxels=20_000)
    app = application(service, samples=folder_samples(folder))
    with running(app) as url, httpx.Client(base_url=f"{url}/panel", timeout=30) as client:
        yield client, service


def opened(client: httpx.Client, *files: bytes, name: str = "x.nii.gz", **fields: str) -> dict[str, Any]:
    sent = [("files", (f"{PATIENT}-{n}-{name}", content)) for n, content in enumerate(files)]
    answer = client.post("/images", files=sent, data=fields)
    assert answer.status_code == 200, answer.text
    return answer.json()


def saved(client: httpx.Client, made: dict[str, Any], folder: Path) -> Path:
    """A result and its manifest, as a user downloads them."""
    path = folder / made["name"]
    path.write_bytes(client.get(f"/results/{made['result']}").content)
    if path.suffix != ".json":
        (folder / f"{made['name']}.json").write_bytes(
            client.get(f"/results/{made['result']}/manifest").content
        )
    return path


def test_an_answer_is_about_the_slice_at_the_place_and_marked(served, tmp_path):
    client, service = served
    study = opened(client, nifti())
    assert (study["kind"], study["modality"], study["shape"]) == ("volume", "mri", [12, 14, 9])
    assert "read as MRI" in study["note"]
    at = [0.0, 0.0, 5 + 3.0 * 2 + 1.2]  # nearest to the third slice
    made = client.post(f"/images/{study['id']}/ask", json={"mm": at, "question": "which plane?"}).json()
    (tmp_path / "x.nii.gz").write_bytes(nifti())
    picture = choose(tmp_path / "x.nii.gz", Choice("mri", slice="2", square=True))[0][0].as_tensor()
    infer = TextInferer(service.tokenizer, max_new_tokens=60)
    (wanted,) = infer([[picture, "which plane?"]], service.network)
    assert made["answer"] == wanted.text
    assert made["where"] == "axial slice 3 of 9, S +11.0 mm"
    assert made["probability"] == pytest.approx(np.exp(np.mean(wanted.logprobs)))
    path = saved(client, made, tmp_path)
    assert provenance.examine(path).case == "marked"
    assert json.loads(path.read_text())["text"] == wanted.text


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_the_mask_of_a_slice_is_that_slice_of_the_mask_of_the_volume(served, tmp_path, plane):
    client, service = served
    study = opened(client, nifti(), modality="mri")
    chain = recipe("mri", policy="all", field="square")
    legend, infer = LEGENDS["seg-tissue"], ImageInferer(service.tokenizer, steps=service.editing.steps)
    (tmp_path / "x.nii.gz").write_bytes(nifti())
    whole = VolumeInferer(infer, chain, planes=plane, output=Labels(legend))(
        tmp_path / "x.nii.gz", service.network, INSTRUCTIONS["seg-tissue"]
    )[0].numpy()
    asked = {"plane": plane, "mm": [1.4, -11.0, 11.0], "task": "seg-tissue"}
    made = client.post(f"/images/{study['id']}/segment", json=asked).json()
    mask = nibabel.load(saved(client, made, tmp_path))
    labels = np.asarray(mask.dataobj)
    axis = {"sagittal": 0, "coronal": 1, "axial": 2}[plane]
    index = round(float((np.linalg.inv(AFFINE) @ [*asked["mm"], 1])[axis]))
    there = [slice(None)] * 3
    there[axis] = index
    assert labels.any() and (labels[tuple(there)] == whole[tuple(there)]).all()
    labels[tuple(there)] = 0
    assert not labels.any()
    assert np.allclose(mask.affine, AFFINE) and mask.shape == (12, 14, 9)
    told = {one["name"]: one["voxels"] for one in made["legend"]}
    assert list(told)[:3] == list(legend) and sum(told.values()) == (whole[tuple(there)] > 0).sum()

    job = client.post(f"/images/{study['id']}/segment", json={**asked, "whole": True}).json()["job"]
    while job["state"] == "running":
        time.sleep(0.02)
        job = client.get(f"/jobs/{job['id']}").json()
    assert job["state"] == "done" and job["done"] == job["total"] == (12, 14, 9)[axis]
    path = saved(client, job["result"], tmp_path)
    assert (np.asarray(nibabel.load(path).dataobj) == whole).all()
    assert provenance.examine(path).case == "marked"


def test_a_volume_of_one_slice_is_read_and_segmented_in_its_own_plane(served, tmp_path):
    client, _ = served
    study = opened(client, nifti(volume()[:, 4:5]), modality="mri")
    assert study["planes"] == ["coronal"]
    asked = {"plane": "axial", "mm": [0.0, -20.0, 11.0], "task": "seg-tissue"}
    made = client.post(f"/images/{study['id']}/segment", json=asked).json()
    one = nibabel.load(saved(client, made, tmp_path))
    assert one.shape == (12, 1, 9) and made["where"].startswith("coronal slice 1 of 1")
    job = client.post(f"/images/{study['id']}/segment", json={**asked, "whole": True}).json()["job"]
    while job["state"] == "running":
        time.sleep(0.02)
        job = client.get(f"/jobs/{job['id']}").json()
    assert job["state"] == "done" and job["total"] == 1
    assert job["result"]["where"] == "every coronal slice"
    whole = nibabel.load(saved(client, job["result"], tmp_path))
    assert (np.asarray(whole.dataobj) == np.asarray(one.dataobj)).all() and np.asarray(one.dataobj).any()


def test_the_mask_of_a_lone_dicom_lies_where_its_image_does(served, tmp_path):
    client, _ = served
    content = Path(get_testdata_file("MR_small.dcm", download=False)).read_bytes()
    header = pydicom.dcmread(io.BytesIO(content))
    header.ImageOrientationPatient, header.ImagePositionPatient = [-1, 0, 0, 0, 1, 0], [10, 20, 30]
    header.save_as(turned := io.BytesIO())
    study = opened(client, turned.getvalue(), name="x.dcm")
    made = client.post(f"/images/{study['id']}/segment", json={"mm": [0.0] * 3, "task": "seg-tissue"}).json()
    mask = nibabel.load(saved(client, made, tmp_path))
    assert np.allclose(mask.affine @ [0, 0, 0, 1], [-10, -20, 30, 1]), "LPS to RAS"
    overlay = nibabel.Nifti1Image.from_bytes(
        gzip.decompress(client.get(f"/results/{made['overlay']}").content)
    )
    shown = nibabel.Nifti1Image.from_bytes(client.get(f"/images/{study['id']}/volume").content)
    assert np.allclose(overlay.affine, shown.affine) and overlay.shape == shown.shape
    values = np.asarray(mask.dataobj)
    assert values.any() and (np.asarray(overlay.dataobj) == values[::-1]).all(), "it was mirrored to be seen"


def test_a_job_can_be_stopped(served, monkeypatch):
    client, service = served
    study = opened(client, nifti())
    step = service.network.forward
    monkeypatch.setattr(service.network, "forward", lambda *a, **k: (time.sleep(0.05), step(*a, **k))[1])
    asked = {"mm": [0.0, 0.0, 0.0], "task": "seg-tissue", "whole": True}
    job = client.post(f"/images/{study['id']}/segment", json=asked).json()["job"]
    assert client.delete(f"/jobs/{job['id']}").status_code == 204
    assert client.get(f"/jobs/{job['id']}").json()["state"] == "stopped"


def test_edits_and_drawings_are_marked_pictures(served, tmp_path):
    client, _ = served
    study = opened(client, png(size=(30, 20)), name="x.png")
    assert (study["kind"], study["planes"], study["note"]) == ("image", [], "")
    place = {"mm": [0.0, 0.0, 0.0]}
    edited = client.post(f"/images/{study['id']}/edit", json={**place, "task": "sr4"}).json()
    drawn = client.post("/draw", json={"prompt": "axial", "seed": 3}).json()
    for made in (edited, drawn):
        path = saved(client, made, tmp_path)
        assert provenance.examine(path).case == "marked"
    both = client.post(f"/images/{study['id']}/edit", json={**place, "task": "sr4", "instruction": "x"})
    assert both.status_code == 400
    masked = client.post(f"/images/{study['id']}/segment", json={**place, "task": "seg-nuclei"}).json()
    assert nibabel.load(saved(client, masked, tmp_path)).shape == (30, 20, 1)
    whole = client.post(f"/images/{study['id']}/segment", json={**place, "task": "seg-bone", "whole": True})
    assert whole.status_code == 400 and "no volume" in whole.json()["error"]["message"]


def test_the_viewer_gets_the_values_of_a_volume_and_the_pixels_of_a_picture_the_right_way_up(served):
    client, _ = served
    study = opened(client, nifti())
    shown = nibabel.Nifti1Image.from_bytes(client.get(f"/images/{study['id']}/volume").content)
    assert (np.asarray(shown.dataobj) == volume()).all() and np.allclose(shown.affine, AFFINE)
    content = png(size=(30, 20))
    study = opened(client, content, name="x.png")
    shown = nibabel.Nifti1Image.from_bytes(client.get(f"/images/{study['id']}/volume").content)
    from PIL import Image

    pixels = np.asarray(Image.open(io.BytesIO(content)))  # (20, 30, 3)
    values = np.asarray(shown.dataobj)
    assert values.shape == (30, 20, 1)
    assert (np.stack([values[c][..., 0].T for c in "RGB"], -1) == pixels).all()
    assert nibabel.aff2axcodes(shown.affine)[:2] == ("L", "P")  # radiological: left to the right, back below


def test_no_name_of_a_patient_leaves_the_file_it_came_in(served, tmp_path, caplog):
    client, _ = served
    caplog.set_level(logging.DEBUG)
    study = opened(client, *series(), name="x.dcm")
    assert (study["kind"], study["modality"], study["shape"]) == ("volume", "mri", [8, 10, 4])
    seen = json.dumps(study).encode() + client.get(f"/images/{study['id']}/volume").content
    place = {"mm": [0.0, 0.0, 4.0]}
    answer = client.post(f"/images/{study['id']}/ask", json={**place, "question": "axial?"}).json()
    mask = client.post(f"/images/{study['id']}/segment", json={**place, "task": "seg-tissue"}).json()
    for made in (answer, mask):
        path = saved(client, made, tmp_path)
        content = path.read_bytes()
        seen += gzip.decompress(content) if path.suffix == ".gz" else content
    seen += client.get(f"/results/{mask['result']}/manifest").content
    broken = client.post("/images", files=[("files", (f"{PATIENT}.dcm", b"no image"))])
    assert broken.status_code == 400
    seen += broken.content + client.post("/images", files=[("files", (f"{PATIENT}.xyz", b"x"))]).content
    seen += "".join(record.getMessage() for record in caplog.records).encode()
    assert b"Doe" not in seen and b"Jane" not in seen and b"/tmp" not in seen


def test_what_cannot_be_read_is_told_in_a_sentence(served):
    client, _ = served

    def said(*files: tuple[str, bytes], **fields: str) -> str:
        answer = client.post("/images", files=[("files", one) for one in files], data=fields)
        assert answer.status_code == 400
        return answer.json()["error"]["message"]

    assert "voxels" in said(("x.nii.gz", nifti(volume((40, 40, 40)))))
    assert "cannot be read as NIfTI" in said(("x.nii", b"x" * 400))
    assert "expected one of" in said(("x.nii.gz", nifti()), modality="mrt")
    assert "'.exe'" in said(("x.exe", b"MZ"))
    assert "no image" in said(("x.png", b"x"))
    four = opened(client, nifti(volume((8, 8, 9, 3))))
    assert "Of 3 volumes in this file the first" in four["note"]
    air = opened(client, nifti(volume() - 1000))
    assert (air["modality"], air["window"]) == ("ct", [-150.0, 250.0])
    changed = client.put(f"/images/{air['id']}", json={"modality": "mri"}).json()
    assert (changed["modality"], changed["note"]) == ("mri", "")
    assert client.put(f"/images/{air['id']}", json={"modality": "../ct"}).status_code == 400


def test_images_are_forgotten_when_others_need_the_room_or_they_are_closed(served):
    client, _ = served
    first, *others = [opened(client, nifti()) for _ in range(4)]
    gone = client.get(f"/images/{first['id']}/volume")
    assert gone.status_code == 404 and gone.json()["error"]["code"] == "gone"
    assert client.get(f"/images/{others[0]['id']}/volume").status_code == 200
    assert client.delete(f"/images/{others[0]['id']}").status_code == 204
    assert client.delete(f"/images/{others[0]['id']}").status_code == 404


def test_samples_are_offered_by_name_and_opened_by_number(served):
    client, _ = served
    assert client.get("/info").json()["samples"] == ["head.nii.gz"]
    assert client.post("/samples/0").json()["label"] == "head.nii.gz"
    for number in ("1", "-1", "../0", "x"):
        assert client.post(f"/samples/{number}").status_code in (400, 404)


@pytest.mark.parametrize("id_", ["..", "%2e%2e", "..%2f..%2fetc%2fpasswd", "x" * 500])
def test_an_id_is_never_a_path(served, id_):
    client, _ = served
    for path in (f"/results/{id_}", f"/results/{id_}/manifest", f"/images/{id_}/volume", f"/jobs/{id_}"):
        answer = client.get(path, follow_redirects=False)
        if path.endswith("/.."):  # the client asks for "/", which leads to the page
            assert answer.headers["location"] == "panel/page/"
        else:
            assert answer.status_code == 404


def test_the_viewer_on_the_page_is_the_one_that_was_published_but_for_a_home_folder():
    import hashlib

    page = Path(__file__).parents[2] / "monai_unimedvl" / "serve" / "page"
    ours, theirs = b'HOME:"/",', b'HOME:"/' + b"home/web_user" + b'",'  # Emscripten's default
    content = (page / "niivue.js").read_bytes()
    assert content.count(ours) == 1
    content = content.replace(ours, theirs)
    assert hashlib.sha256(content).hexdigest() == NIIVUE
    assert "niivue 0.69.0 (BSD-2-Clause)" in (page / "LICENCES.txt").read_text()
