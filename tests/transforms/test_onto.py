# SPDX-License-Identifier: Apache-2.0
"""Masks and second pictures land on the pixels of the picture they belong to, however that was cut."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

from monai_unimedvl.transforms import recipe
from monai_unimedvl.transforms.onto import labels_onto, picture_onto

AFFINE = np.array([[0, -2.0, 0, 30], [1.5, 0, 0, -20], [0, 0, 3.0, -9], [0, 0, 0, 1]])  # turned and uneven


def volume(path: Path, values: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    nibabel.save(nibabel.Nifti1Image(values, affine), path)
    return path


@pytest.fixture
def block() -> np.ndarray:
    """A bright block in the air, off the middle."""
    values = np.random.default_rng(0).uniform(0, 60, (24, 20, 6)).astype(np.float32)
    values[4:15, 6:12, 1:5] += 800
    return values


@pytest.mark.parametrize("field", [None, "square", 60.0])
def test_a_mask_lands_on_what_it_was_drawn_on(tmp_path: Path, block: np.ndarray, field: object) -> None:
    scan = volume(tmp_path / "scan.nii.gz", block)
    mask = volume(tmp_path / "mask.nii.gz", (block > 400).astype(np.uint8) * 3)
    pictures = recipe("mri", count=6, field=field)(scan)
    found = [labels_onto(mask, picture, [3]) for picture in pictures]
    assert sum(int((labels > 0).sum()) for labels in found) > 100
    for labels, picture in zip(found, pictures, strict=True):
        assert labels.shape == picture.shape[1:] and labels.dtype == torch.uint8
        bright = picture.as_tensor()[0] > 0.45
        assert (bright == (labels > 0)).float().mean() > 0.97, "but for the rim, which the recipe smooths"
    assert not any(labels_onto(mask, picture, [2]).any() for picture in pictures)


def test_a_mask_on_another_grid_is_found_by_its_place_in_mm(tmp_path: Path, block: np.ndarray) -> None:
    scan = volume(tmp_path / "scan.nii.gz", block)
    finer = AFFINE @ np.diag([0.5, 0.5, 1, 1])
    mask = volume(tmp_path / "mask.nii.gz", (block > 400).repeat(2, 0).repeat(2, 1).astype(np.uint8), finer)
    for picture in recipe("mri", count=6)(scan):
        bright = picture.as_tensor()[0] > 0.45
        assert (bright == (labels_onto(mask, picture, [1]) > 0)).float().mean() > 0.95


def test_a_second_contrast_lands_on_the_first(tmp_path: Path, block: np.ndarray) -> None:
    scan = volume(tmp_path / "t1.nii.gz", block)
    other = volume(tmp_path / "t2.nii.gz", block.max() - block)
    first = recipe("mri", count=6, field="square")(scan)[2]
    second = recipe("mri", count=6)(other)[2]
    drawn = picture_onto(second, first)
    inside = labels_onto(volume(tmp_path / "all.nii.gz", np.ones_like(block, np.uint8)), first, [1]) > 0
    far = (drawn[0] - (1 - first.as_tensor()[0])).abs()[inside]
    assert (far < 0.2).float().mean() > 0.9
    with pytest.raises(ValueError, match=r"t2.nii.gz lies 6.0 mm away from its image"):
        picture_onto(recipe("mri", count=6)(other)[4], first)


def test_a_thick_slice_lends_nothing_to_thin_ones_beside_it(tmp_path: Path, block: np.ndarray) -> None:
    thick = AFFINE @ np.diag([1, 1, 2, 1])
    scan = volume(tmp_path / "t1.nii.gz", block)
    other = volume(tmp_path / "t2.nii.gz", block[..., ::2], thick)
    thins, thicks = recipe("mri", count=6)(scan), recipe("mri", count=3)(other)
    for here, there in ((thins[2], thicks[1]), (thicks[1], thins[2])):
        assert picture_onto(here, there).any(), "they lie in one place"
    for here, there in ((thins[3], thicks[1]), (thicks[1], thins[3])):
        with pytest.raises(ValueError, match=r"lies 3.0 mm away .* slices of [36] mm, .* of [36] mm"):
            picture_onto(here, there)


def test_flat_pictures_pair_by_rows_and_columns(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (30, 40), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray((pixels > 99).astype(np.uint8) * 255).save(tmp_path / "m.png")
    Image.fromarray(255 - pixels).save(tmp_path / "b.png")
    (picture,) = recipe("histopathology", field="square")(tmp_path / "a.png")
    assert picture.shape == (3, 40, 40)
    labels = labels_onto(tmp_path / "m.png", picture, [255])
    assert torch.equal(labels[5:35] > 0, torch.from_numpy(pixels > 99)) and not labels[:5].any()
    (other,) = recipe("histopathology")(tmp_path / "b.png")
    drawn = picture_onto(other, picture)
    torch.testing.assert_close(drawn[0, 5:35], torch.from_numpy((255 - pixels) / 255).float())
    Image.fromarray(pixels[:20]).save(tmp_path / "cut.png")
    with pytest.raises(ValueError, match="cut.png is 20 x 40 pixels, its image 30 x 40"):
        labels_onto(tmp_path / "cut.png", picture, [1])
    Image.fromarray(np.stack([pixels] * 3, -1)).save(tmp_path / "rgb.png")
    with pytest.raises(ValueError, match="rgb.png has 3 channels, expected label numbers"):
        labels_onto(tmp_path / "rgb.png", picture, [1])
