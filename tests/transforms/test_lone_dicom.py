# SPDX-License-Identifier: Apache-2.0
"""A lone DICOM is turned to be seen; what is made of it has the rows and columns of the file again."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from monai.data import MetaTensor
from pydicom.data import get_testdata_file

from monai_unimedvl import recipe
from monai_unimedvl.provenance import Facts, write_series
from monai_unimedvl.transforms.geometry import put_back
from monai_unimedvl.transforms.lazy import open_volume
from monai_unimedvl.transforms.read import read
from monai_unimedvl.transforms.slices import Slices, plane_of
from monai_unimedvl.transforms.stored import place_of
from monai_unimedvl.transforms.volume import SelectSlices


def small() -> pydicom.Dataset:
    """An MR image of 64 x 64 pixels that comes with pydicom."""
    return pydicom.dcmread(str(get_testdata_file("MR_small.dcm", download=False)))


@pytest.mark.parametrize("along", list(itertools.product("LR", "PA", [False, True])))
def test_what_is_drawn_from_a_lone_dicom_goes_back_to_its_rows_and_columns(
    along: tuple[str, str, bool], tmp_path: Path
) -> None:
    header = small()
    across = [1.0 if along[0] == "L" else -1.0, 0.0, 0.0]
    down = [0.0, 1.0 if along[1] == "P" else -1.0, 0.0]
    header.ImageOrientationPatient = [*down, *across] if along[2] else [*across, *down]
    header.PixelSpacing, header.ImagePositionPatient = [0.5, 0.75], [-12.0, 7.0, 30.0]
    header.Rows, header.PixelData = 40, header.PixelData[: 40 * 64 * 2]
    header.save_as(tmp_path / "one.dcm")
    picture = recipe("mri", lower=0, upper=100)(tmp_path / "one.dcm")[0]
    whole = put_back(picture, picture)
    stored = header.pixel_array.astype(float)  # (40, 64)
    assert whole.shape[1:] == stored.shape
    assert np.corrcoef(whole[0].numpy().ravel(), stored.ravel())[0, 1] > 0.999
    axes = np.reshape(header.ImageOrientationPatient, (2, 3))
    corner, step = whole.affine.numpy()[:3, 3], whole.affine.numpy()[:3, :2]
    assert np.allclose(corner, np.array([12.0, -7.0, 30.0]))
    assert np.allclose(step[:, 0], axes[1] * 0.5 * [-1, -1, 1]), "from row to row"
    assert np.allclose(step[:, 1], axes[0] * 0.75 * [-1, -1, 1]), "from column to column"
    place = place_of(whole)
    assert place is not None and np.allclose(place[:3, :2], step[:, ::-1]), "columns come first in a file"
    alone = open_volume(tmp_path / "one.dcm")
    (slice_,) = Slices(alone, plane_of(alone.shape[1:], alone.affine, "coronal"))
    read_ = read(tmp_path / "one.dcm")
    assert alone.shape[3] == 1 and torch.equal(slice_.as_tensor(), read_.as_tensor())
    assert np.allclose(slice_.affine.numpy(), read_.affine.numpy()), "as a volume of one slice, in its place"
    seen = put_back(picture, picture, until="SquarePixels")
    assert torch.equal(seen.as_tensor(), picture.as_tensor()), "for the eye it stays as it is shown"


@pytest.mark.parametrize("along", [["L", "F"], ["R", "F"], ["R", "H"], ["L", "H"]])
def test_an_edit_of_a_mirrored_radiograph_is_seen_as_its_source_is(along: list[str], tmp_path: Path) -> None:
    header = small()
    for key in ("ImageOrientationPatient", "ImagePositionPatient"):
        del header[key]
    header.Modality, header.PatientOrientation = "DX", along
    header.save_as(tmp_path / "hand.dcm")
    chain = recipe("xray", lower=0, upper=100)
    picture = chain(tmp_path / "hand.dcm")[0]
    whole = put_back(picture, picture).as_tensor().mean(0)
    files = write_series(
        whole.T[..., None], tmp_path / "out", Facts("Sharpen.", 0, "", "sr4"), source=tmp_path / "hand.dcm"
    )
    made = pydicom.dcmread(files[0])
    assert list(made.PatientOrientation) == along
    assert np.corrcoef(made.pixel_array.ravel(), header.pixel_array.ravel())[0, 1] > 0.97
    again = chain(files[0])[0]
    assert np.corrcoef(again[0].numpy().ravel(), picture[0].numpy().ravel())[0, 1] > 0.99


def test_an_image_that_is_oblique_twice_is_seen_whole(tmp_path: Path) -> None:
    header = small()
    across, down = [-0.207, 0.677, 0.707], [-0.834, -0.5, 0.235]  # another axis has most of its normal
    header.ImageOrientationPatient, header.PixelSpacing = [*across, *down], [0.5, 0.75]
    header.save_as(tmp_path / "one.dcm")
    chain = recipe("mri", lower=0, upper=100)
    picture = chain(tmp_path / "one.dcm")[0]
    whole, stored = put_back(picture, picture), header.pixel_array.astype(float)
    assert np.corrcoef(whole[0].numpy().ravel(), stored.ravel())[0, 1] > 0.999
    volume = MetaTensor(torch.rand(1, 64, 40, 1), affine=place_of(whole), meta={"kind": "volume"})
    assert sorted(SelectSlices(count=1)(volume)[0].shape) == [1, 40, 64]
