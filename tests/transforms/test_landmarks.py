# SPDX-License-Identifier: Apache-2.0
"""Real scans are shown as a radiologist expects: a known landmark is where it belongs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch

from monai_unimedvl import recipe
from monai_unimedvl.cli.recipes import CASES
from monai_unimedvl.transforms.geometry import put_back
from monai_unimedvl.transforms.lazy import open_volume, prepare
from monai_unimedvl.transforms.read import read
from monai_unimedvl.transforms.slices import Slices, Volume


def shown(title: str, at: float = 0.5) -> torch.Tensor:
    """(3, H, W) of a case of the contact sheets: the picture `at` that share of its slices."""
    case = next(case for case in CASES if case.title == title)
    found = case.find()
    if found is None:
        pytest.skip(f"{title}: not installed")
    pictures = recipe(case.modality, **case.settings)(found)
    return pictures[int(len(pictures) * at)].as_tensor()


def half_means(image: torch.Tensor) -> tuple[float, float]:
    """Mean of the left and of the right half of (H, W)."""
    middle = image.shape[1] // 2
    return float(image[:, :middle].mean()), float(image[:, middle:].mean())


def test_the_heart_is_at_image_right_and_bone_is_bright() -> None:
    chest = shown("chest")[0]
    height, width = chest.shape
    left, right = half_means(
        chest[int(height * 0.55) : int(height * 0.78), int(width * 0.25) : int(width * 0.75)]
    )
    assert right > left, "the heart's shadow lies to the patient's left"
    lungs, spine = (
        chest[height // 3 : height // 2],
        chest[height // 3 : height // 2, int(width * 0.45) : int(width * 0.55)],
    )
    assert float(spine.mean()) > float(lungs.mean())


def test_the_liver_is_at_image_left_and_the_spine_below() -> None:
    abdomen = shown("abdomen")[0]
    body = abdomen[120:450, 80:440]
    liver = ((body > 0.55) & (body < 0.8)).float()
    left, right = half_means(liver)
    assert left > right
    bone = (abdomen[:440] == 1).nonzero()
    assert float(bone[:, 0].float().median()) > 280, "the spine is behind"


def slice_of(scan: Volume, window: str | list[float], plane: str, index: int) -> torch.Tensor:
    """(3, H, W) of one slice of a CT."""
    (part,) = prepare(recipe("ct", window=window), scan)
    return part.picture(part.slices(plane)[index]).as_tensor()


@pytest.mark.parametrize(
    ("name", "plane"),
    [
        ("lung1", "axial"),
        pytest.param("lung2", "axial", marks=pytest.mark.slow),
        pytest.param("lung2", "coronal", marks=pytest.mark.slow),
    ],
)
def test_a_tumour_of_the_lung_is_on_its_side(name: str, plane: str) -> None:
    side = {"lung1": "right", "lung2": "left"}[name]
    case = next(case for case in CASES if case.title == f"chest with a tumour in the {side} lung")
    found = case.find()
    if found is None:
        pytest.skip(f"{case.title}: not installed")
    mask = read(found.with_name(f"{name}_label.nrrd"))
    drawn = Slices(Volume(mask.as_tensor(), mask.affine.numpy()), plane)
    largest = max(range(len(drawn)), key=lambda n: float((drawn[n].as_tensor() > 0).sum()))
    rows, columns = (drawn[largest].as_tensor()[0] > 0).nonzero(as_tuple=True)
    height, width = drawn.size
    middle = float(columns.float().mean()) / width
    assert middle < 0.45 if side == "right" else middle > 0.55, "the patient's right is at image left"
    scan = open_volume(found)
    shown = slice_of(scan, "lung", plane, largest)
    place = int(rows.float().mean() / height * shown.shape[1]), int(middle * shown.shape[2])
    assert float(shown[0, place[0], place[1]]) > 0.4, "the mask lies on the picture, and it is no air"
    if plane == "axial":
        bone = slice_of(scan, [300, 400], plane, largest)[0].nonzero()
        assert float(bone[:, 0].float().median()) > shown.shape[1] / 2, "the spine is behind"


def test_the_face_of_the_head_is_up() -> None:
    nose = shown("head with a defect of the skull", at=0.2)[0]  # at the height of the nose
    front, back = nose[60:120, 105:150], nose[140:200, 105:150]
    assert float((front < 0.05).float().mean()) > 0.15 > 0.02 > float((back < 0.05).float().mean()), "air"


def test_the_colours_of_stains_and_of_the_retina_are_theirs() -> None:
    ihc, skin, retina = shown("colon, IHC"), shown("skin, H&E"), shown("retina")
    brown = (ihc[0] - ihc[2]) > 0.25
    blue = (ihc[2] - ihc[0]) > 0.02
    assert float(brown.float().mean()) > 0.2 and float(blue.float().mean()) > 0.05
    assert float((skin[0] - skin[1]).mean()) > 0.05 < float((skin[2] - skin[1]).mean()), "pink and violet"
    bright = retina.mean(0)
    column = float((bright > bright.quantile(0.998)).nonzero()[:, 1].float().median())
    assert column < retina.shape[2] / 3, "the disc of this eye is at image left"


@pytest.mark.parametrize(
    ("along", "flips"),
    [(["L", "F"], (False, False)), (["R", "F"], (False, True)), (["R", "H"], (True, True))],
)
def test_a_mirrored_radiograph_is_turned_as_its_file_says(
    along: list[str], flips: tuple[bool, bool], tmp_path: Path
) -> None:
    from pydicom.data import get_testdata_file

    header = pydicom.dcmread(str(get_testdata_file("MR_small.dcm", download=False)))
    for key in ("ImageOrientationPatient", "ImagePositionPatient"):
        del header[key]
    header.Modality, header.PatientOrientation = "DX", along
    header.save_as(tmp_path / "leg.dcm")
    picture = recipe("xray", lower=0, upper=100)(tmp_path / "leg.dcm")[0]
    stored = header.pixel_array.astype(float)
    expected = np.flip(stored, [axis for axis in (0, 1) if flips[axis]]) if any(flips) else stored
    assert np.corrcoef(picture[0].numpy().ravel(), expected.ravel())[0, 1] > 0.97
    assert picture.meta["source"].get("flipped", [False, False]) == list(flips)

    back = np.flip(picture[0].numpy(), [axis for axis in (0, 1) if flips[axis]])
    assert np.array_equal(put_back(picture, picture)[0].numpy(), back), "as the file has it"
    assert torch.equal(put_back(picture, picture, until="Read").as_tensor(), picture.as_tensor())


def test_the_letter_of_a_real_mirrored_radiograph_is_readable() -> None:
    leg = shown("lower leg")[0]
    white = (leg[:, int(leg.shape[1] * 0.25) : int(leg.shape[1] * 0.5)] > 0.5).float()
    assert white.any()
    case = next(case for case in CASES if case.title == "lower leg")
    assert recipe("xray")(case.find())[0].meta["source"]["flipped"] == [False, True]
