# SPDX-License-Identifier: Apache-2.0
"""A random nano with one layer as a bundle, files of every kind, and the command line in this process."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import torch
from PIL import Image
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from monai_unimedvl import weights
from monai_unimedvl.cli import main, verbs
from monai_unimedvl.networks.autoencoder import PatchCodec
from monai_unimedvl.networks.unimedvl import nano
from monai_unimedvl.tokenizer import Tokenizer

NAME = "Doe^Jane"  # stands in headers and file names, and must not come out anywhere

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle's folder: configs/ and models/."""
    torch.manual_seed(0)
    tokenizer = Tokenizer.train(["Which plane is this? axial coronal T1 MRI of the head. Describe"] * 4, 300)
    network = nano(PatchCodec(8, 192), vocab_size=len(tokenizer), hidden_size=32, num_layers=1)
    torch.nn.init.normal_(network.latent_out.weight, std=0.3)
    folder = tmp_path_factory.mktemp("bundle")
    (folder / "configs").mkdir()
    weights.save(network, tokenizer, folder / "models")
    return folder


@pytest.fixture
def command(model: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run the command line on the random bundle: exit code, stdout, stderr."""

    def run(verb: str, *words: str | Path, own_model: bool = False) -> tuple[int, str, str]:
        given = [] if own_model or verb in ("data", "bundle", "provenance") else ["--model", str(model)]
        try:
            code = main([verb, *map(str, words), *given])
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return run


def volume(shape: tuple[int, ...] = (30, 40, 20)) -> np.ndarray:
    """A bright block in the dark, brighter upwards."""
    values = np.zeros(shape, np.float32)
    values[6:24, 8:32] = 50 + np.arange(shape[2])[None, None, :].reshape(1, 1, -1, *[1] * (len(shape) - 3))
    return values


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """A NIfTI of 5 mm voxels with a patient's name in its file name and header."""
    file = nibabel.Nifti1Image(volume(), np.diag([5.0, 5.0, 5.0, 1.0]))
    file.header["descrip"] = NAME.encode()
    path = tmp_path / f"{NAME}.nii.gz"
    nibabel.save(file, path)
    return path


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A colour PNG of 48 x 32 pixels."""
    pixels = np.random.default_rng(0).integers(0, 255, (32, 48, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "stain.png")
    return tmp_path / "stain.png"


@pytest.fixture
def series(tmp_path: Path) -> Path:
    """A folder of four MR slices in DICOM."""
    folder = tmp_path / "series"
    folder.mkdir()
    uid, study, frame = generate_uid(), generate_uid(), generate_uid()
    for n in range(4):
        header = pydicom.Dataset()
        header.file_meta = pydicom.dataset.FileMetaDataset()
        header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        header.file_meta.MediaStorageSOPClassUID = MRImageStorage
        header.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        header.SOPClassUID, header.SOPInstanceUID = (
            MRImageStorage,
            header.file_meta.MediaStorageSOPInstanceUID,
        )
        header.Modality, header.PatientName, header.SeriesInstanceUID = "MR", NAME, uid
        header.StudyInstanceUID, header.FrameOfReferenceUID = study, frame
        header.PatientID = "4711"
        header.Rows = header.Columns = 32
        header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
        header.BitsAllocated = header.BitsStored = 16
        header.HighBit, header.PixelRepresentation = 15, 0
        header.SliceThickness = 5
        header.PixelSpacing, header.ImageOrientationPatient = [5, 5], [1, 0, 0, 0, 1, 0]
        header.ImagePositionPatient, header.InstanceNumber = [0, 0, 5 * n], n + 1
        values = np.zeros((32, 32), np.uint16)
        values[8:24, 4:28] = 100 * (n + 1)
        header.PixelData = values.tobytes()
        header.save_as(folder / f"{n}.dcm", enforce_file_format=True)
    return folder


@pytest.fixture(scope="session")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of files that cannot be read, one of each kind."""
    folder = tmp_path_factory.mktemp("bad")
    (folder / "empty").mkdir()
    (folder / "empty" / "notes.txt").write_text("no image")
    affine = np.eye(4)
    holed = volume()
    holed[10, 10, 10] = np.nan
    nibabel.save(nibabel.Nifti1Image(holed, affine), folder / "nan.nii")
    nibabel.save(nibabel.Nifti1Image(volume((30, 40, 20, 3)), affine), folder / "series.nii")
    nibabel.save(nibabel.Nifti1Image(volume(), affine), folder / "whole.nii")
    (folder / "cut.nii").write_bytes((folder / "whole.nii").read_bytes()[:9000])
    whole = gzip.compress((folder / "whole.nii").read_bytes())
    (folder / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    Image.new("L", (1, 1)).save(folder / "dot.png")
    Image.new("1", (20_000, 20_000)).save(folder / "huge.png")
    Image.effect_noise((64, 64), 50).save(folder / "noise.png")
    (folder / "cut.png").write_bytes((folder / "noise.png").read_bytes()[:1500])
    np.save(folder / "five.npy", np.zeros((5, 32, 32), np.float32))
    (folder / "words.txt").write_text("no image")
    (folder / "nothing.png").write_bytes(b"")
    (folder / "nothing.dcm").write_bytes(b"")
    for name in ("noise.dcm", "noise.nii.gz"):
        (folder / name).write_bytes(bytes(range(256)) * 8)
    plan = pydicom.Dataset()
    plan.Modality, plan.SOPClassUID, plan.SOPInstanceUID = "RTPLAN", "1.2.840.10008.5.1.4.1.1.481.5", "1.2.3"
    plan.file_meta = pydicom.dataset.FileMetaDataset()
    plan.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    plan.save_as(folder / "plan.dcm", enforce_file_format=True)
    return folder


@pytest.fixture
def painter(monkeypatch):
    """The model is replaced by one that paints what is bright as white matter."""

    class Painter:
        def __init__(self, *args, **options):
            pass

        def __call__(self, batch, network):
            images = [torch.nn.functional.interpolate(p[0][None].float(), (64, 64))[0] for p in batch]
            return [(one > 0.1).float() * torch.full((3, 1, 1), 240 / 255) for one in images]

    monkeypatch.setattr(verbs, "ImageInferer", Painter)
