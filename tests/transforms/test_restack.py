# SPDX-License-Identifier: Apache-2.0
"""What was drawn on a slice lands on the voxels that the slice was cut from, whatever the volume's axes."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from pydicom.data import get_testdata_file
from torch import Tensor
from torch.testing import assert_close

from monai_unimedvl.transforms import lazy, recipe, restack
from monai_unimedvl.transforms.lazy import open_volume, prepare
from monai_unimedvl.transforms.read import read
from monai_unimedvl.transforms.restack import Restack, axis_weights, empty_volume, squared_grid
from monai_unimedvl.transforms.volume import SelectSlices

FEW = settings(max_examples=25, deadline=None, phases=[Phase.reuse, Phase.generate])
PLANES = st.sampled_from(["axial", "coronal", "sagittal"])


@st.composite
def affines(draw: st.DrawFn) -> np.ndarray:
    """Anisotropic, oblique, left- or right-handed, with flipped and swapped axes."""
    seed = draw(st.integers(0, 2**31))
    chance = np.random.default_rng(seed)
    turn, _ = np.linalg.qr(chance.normal(size=(3, 3)))  # any rotation or reflection
    spacing = np.array([draw(st.floats(0.3, 6.0)) for _ in range(3)])
    matrix = np.eye(4)
    matrix[:3, :3] = turn * spacing
    matrix[:3, 3] = chance.uniform(-200, 200, 3)
    return matrix


@FEW
@given(affines(), st.tuples(*[st.integers(9, 15)] * 3), PLANES)
def test_slices_cut_and_put_back_are_the_volume(
    affine: np.ndarray, shape: tuple[int, int, int], plane: str
) -> None:
    values = torch.randint(0, 4000, (1, *shape), generator=torch.Generator().manual_seed(1)).to(torch.int16)
    volume = MetaTensor(values, affine=torch.from_numpy(affine))
    pictures = SelectSlices(policy="all", plane=plane)(volume)
    back = Restack(shape, affine, plane, dtype=np.int16)([p.as_subclass(Tensor) for p in pictures], pictures)
    assert back.dtype == torch.int16 and torch.equal(back.as_subclass(Tensor), values)
    assert np.abs(back.affine.numpy() - affine).max() <= 1e-6


@FEW
@given(affines(), st.tuples(*[st.integers(10, 24)] * 3), PLANES, st.data())
def test_a_mask_drawn_on_the_grid_lands_on_the_source_voxel(
    affine: np.ndarray, shape: tuple[int, int, int], plane: str, data: st.DataObject
) -> None:
    """Framed to a square field of square pixels; the mask is drawn where the picture shows the voxel."""
    voxel = [data.draw(st.integers(0, side - 1)) for side in shape]
    values = torch.zeros(1, *shape)
    values[(0, *voxel)] = 1000
    (part,) = prepare(
        recipe("ct", window=[0, 1000], field="square"), MetaTensor(values, affine=torch.from_numpy(affine))
    )
    back = Restack(shape, affine, plane, mode="linear")
    slices = part.slices(plane)
    for i in range(len(slices)):
        picture = part.picture(slices[i])
        back.put(picture.as_subclass(Tensor)[:1], picture)
    result = back.volume.as_subclass(Tensor)[0]
    assert np.unravel_index(int(result.argmax()), shape) == tuple(voxel)
    weights = result / result.sum()
    centre = [
        float((weights.sum([a for a in range(3) if a != axis]) * torch.arange(side)).sum())
        for axis, side in enumerate(shape)
    ]
    inner = all(3 <= v < side - 3 for v, side in zip(voxel, shape, strict=True))
    assert not inner or np.abs(np.array(centre) - voxel).max() < 0.5


def test_pixels_outside_of_what_was_drawn_keep_their_value() -> None:
    volume = MetaTensor(torch.rand(1, 20, 20, 3), affine=torch.eye(4))
    back = Restack((20, 20, 3), np.eye(4), fill=-1000)
    picture = SelectSlices(count=1)(volume)[0]
    small = picture[:, 5:15, 5:15]
    small.affine = picture.affine @ torch.tensor(
        [[1.0, 0, 0, 5], [0, 1, 0, 5], [0, 0, 1, 0], [0, 0, 0, 1]], dtype=torch.float64
    )
    back.put(torch.ones(1, 10, 10), small)
    result = back.volume.as_subclass(Tensor)[0]
    assert float(result[10, 10, 1]) == 1 and float(result[1, 1, 1]) == -1000
    assert int((result == 1).sum()) == 100 and set(result.unique().tolist()) == {-1000, 1}


def test_what_is_no_slice_of_the_volume_is_refused() -> None:
    volume = MetaTensor(torch.rand(1, 9, 10, 11), affine=torch.eye(4))
    (picture,) = SelectSlices(count=1, plane="sagittal")(volume)
    with pytest.raises(ValueError, match="a sagittal picture at slice position .* has 11 axial slices"):
        Restack((9, 10, 11), np.eye(4)).put(picture, picture)
    with pytest.raises(ValueError, match="Restack got a picture without its place in mm"):
        Restack((9, 10, 11), np.eye(4)).put(picture, MetaTensor(torch.rand(1, 9, 9)))


def test_weights_average_where_pixels_shrink_and_hold_a_constant() -> None:
    for mode in ("cubic", "linear"):
        for step, drawn in ((3.0, 63), (0.3, 7)):
            weights, low, high = axis_weights(21, step, (step - 1) / 2, drawn, mode)
            assert_close(weights @ torch.ones(drawn), torch.ones(21)) and (low, high) == (0, 21)
    assert_close(axis_weights(5, 1.0, 0.0, 5, "cubic")[0], torch.eye(5))
    assert axis_weights(9, 1.0, -3.0, 4, "linear")[1:] == (3, 7)


def test_a_thick_slice_gets_square_pixels_with_the_same_edges() -> None:
    affine = np.diag([1.0, 1.0, 5.0, 1.0])
    shape, finer = squared_grid((10, 12, 6), affine, "sagittal")
    assert shape == (10, 12, 30)
    edge = [[-0.5, -0.5, -0.5, 1], [9.5, 11.5, 5.5, 1]]
    fine_edge = [[-0.5, -0.5, -0.5, 1], [9.5, 11.5, 29.5, 1]]
    assert_close(finer @ np.array(fine_edge).T, affine @ np.array(edge).T)


def series(folder: Path) -> Path:
    """Five slices of 24 x 16, made of pydicom's CT; slice i holds i - 24 HU."""
    folder.mkdir()
    header = pydicom.dcmread(str(get_testdata_file("CT_small.dcm", download=False)))
    header.Rows, header.Columns = 16, 24
    for i in range(5):
        header.SOPInstanceUID = f"1.2.3.{i}"
        header.ImagePositionPatient = [-40.0, -30.0, 2.5 * i]
        header.PixelData = np.full((16, 24), i + 1000, np.int16).tobytes()
        header.save_as(folder / f"{(i * 3) % 5}.dcm")
    return folder


def test_a_large_volume_lies_in_a_file() -> None:
    values = empty_volume((1, 300, 300, 200), np.float32, fill=-5)
    assert isinstance(values, np.memmap) and float(values[0, 299, 299, 199]) == -5
    assert not isinstance(empty_volume((1, 3, 3, 3), np.float32), np.memmap)


def test_open_volume_takes_a_series_and_gives_its_times_as_channels(tmp_path: Path) -> None:
    affine = np.diag([2.0, 2, 3, 1])
    values = np.arange(8 * 9 * 10 * 3, dtype=np.int16).reshape(8, 9, 10, 3)
    for name in ("a.nii", "a.nii.gz"):
        file = nibabel.Nifti1Image(values, affine)
        file.header.set_slope_inter(2.0, -1.0)
        nibabel.save(file, tmp_path / name)
        volume = open_volume(tmp_path / name)
        assert volume.shape == (3, 8, 9, 10)
        expected = np.moveaxis(np.asarray(nibabel.load(tmp_path / name).dataobj), 3, 0)
        assert_close(volume.true(volume.values).numpy(), expected.astype(np.float32))
        assert np.array_equal(open_volume(tmp_path / name, volume=2).values, volume.values[2:])
    with pytest.raises(ValueError, match="a.nii has volumes 0 to 2, not volume=3"):
        open_volume(tmp_path / "a.nii", volume=3)
    whole = (tmp_path / "a.nii").read_bytes()
    (tmp_path / "short.nii").write_bytes(whole[:1000])
    with pytest.raises(ValueError, match=r"short.nii cannot be read as NIfTI \(Expected 4320 bytes, got"):
        open_volume(tmp_path / "short.nii")
    packed = (tmp_path / "a.nii.gz").read_bytes()
    (tmp_path / "short.nii.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(ValueError, match="short.nii.gz .*copy"):
        open_volume(tmp_path / "short.nii.gz")


def test_what_is_large_lies_in_a_file_and_holds_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.arange(8 * 9 * 10, dtype=np.int16).reshape(8, 9, 10)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "a.nii.gz")
    folder = series(tmp_path / "series")
    small = open_volume(tmp_path / "a.nii.gz").values, open_volume(folder).values
    assert not any(isinstance(one, np.memmap) for one in small)
    monkeypatch.setattr(lazy, "IN_MEMORY", 0)
    monkeypatch.setattr(restack, "IN_MEMORY", 0)
    large = open_volume(tmp_path / "a.nii.gz"), open_volume(folder)
    for one, other in zip(small, large, strict=True):
        assert isinstance(other.values, np.memmap) and np.array_equal(one, other.values)
        other.release()
    assert large[1].values[0, 0, 0].tolist() == [-24.0, -23.0, -22.0, -21.0, -20.0]
    assert_close(torch.from_numpy(large[1].affine), read(folder).affine)
    assert large[1].meta["file"] == str(folder)
    packed = (tmp_path / "a.nii.gz").read_bytes()
    (tmp_path / "short.nii.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(ValueError, match="short.nii.gz .*copy"):
        open_volume(tmp_path / "short.nii.gz")


@pytest.mark.parametrize("modality", ["mri", "ct"])
def test_lazy_pictures_are_those_of_the_recipe(modality: str) -> None:
    values = torch.randint(-900, 900, (1, 20, 24, 16), generator=torch.Generator().manual_seed(3)).float()
    volume = MetaTensor(values, affine=torch.diag(torch.tensor([1.0, 1, 3, 1], dtype=torch.float64)))
    chain = recipe(modality, policy="all", plane="coronal")
    expected = chain(volume)
    (part,) = prepare(chain, volume)
    slices = part.slices("coronal")
    assert len(slices) == len(expected)
    for i, one in enumerate(expected):
        got = part.picture(slices[i])
        assert torch.equal(got.as_subclass(Tensor), one.as_subclass(Tensor))
        assert_close(got.affine, one.affine) and got.meta["source"] == one.meta["source"]
