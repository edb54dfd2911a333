# SPDX-License-Identifier: Apache-2.0
"""Steps that move pixels: undone they put every point back, in every way that MONAI runs them."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import CacheDataset, MetaTensor, PersistentDataset, ThreadDataLoader, decollate_batch
from monai.transforms import Compose, Invertd
from torch.testing import assert_close

from monai_unimedvl import recipe
from monai_unimedvl.transforms.field import SquareField, SquareFieldd
from monai_unimedvl.transforms.geometry import (
    CropDarkBorder,
    FitToGrid,
    FitToGridd,
    SquarePixels,
    SquarePixelsd,
    put_back,
)

sides = st.integers(24, 200)
millimetres = st.floats(0.3, 4.0)


def spot(height: int, width: int, row: float, column: float, radius: float) -> torch.Tensor:
    """(1, H, W): a soft round spot of known centre."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.exp(-((rows - row) ** 2 + (columns - column) ** 2) / (2 * radius**2))[None].float()


def centre(image: torch.Tensor) -> torch.Tensor:
    """The centre of mass of (1, H, W)."""
    weight = image[0].as_subclass(torch.Tensor).double()
    sides = (torch.arange(n, dtype=torch.float64) for n in weight.shape)
    rows, columns = torch.meshgrid(*sides, indexing="ij")
    return torch.stack([(rows * weight).sum(), (columns * weight).sum()]) / weight.sum()


@settings(max_examples=20, deadline=None)
@given(sides, sides, st.floats(0.35, 0.65), st.floats(0.35, 0.65), st.sampled_from([28, 56, 112]))
def test_a_landmark_is_back_within_half_a_pixel(h: int, w: int, r: float, c: float, size: int) -> None:
    row, column = r * (h - 1), c * (w - 1)
    radius = max(h, w) / size * 1.5 + 1  # wide enough to be seen on the grid
    fit = FitToGrid(size, size // 2, 14)
    small = fit(MetaTensor(spot(h, w, row, column, radius)))
    back = fit.inverse(small)
    assert back.shape == (1, h, w) and not back.applied_operations
    expected = centre(spot(h, w, row, column, radius))
    assert float((centre(back) - expected).abs().max()) <= 0.5
    assert_close(back.affine, torch.eye(4, dtype=torch.float64), atol=1e-9, rtol=0)


@settings(max_examples=20, deadline=None)
@given(sides, sides, millimetres, millimetres, st.floats(60, 200), st.sampled_from([32, 64]))
def test_a_landmark_goes_through_all_steps_and_back(
    h: int, w: int, down: float, across: float, field: float, size: int
) -> None:
    affine = torch.diag(torch.tensor([down, across, 1.0, 1.0], dtype=torch.float64))
    radius = 1.5 + 1.5 * field / size / min(down, across)
    source = MetaTensor(spot(h, w, h / 2 + 2, w / 2 - 3, radius), affine=affine)
    source.meta["source"] = {"spacing": [down, across, 1.0]}
    steps = [SquarePixels(), SquareField(field, "bright"), FitToGrid(size, size, 8)]
    shown = Compose(steps)(source)
    assert shown.shape == (1, size, size)
    # the affine says where a pixel of the grid lies in the source
    at = shown.affine @ torch.tensor([size / 2 - 0.5, size / 2 - 0.5, 0, 1], dtype=torch.float64)
    before = torch.linalg.solve(affine, at)[:2]
    back = Compose(steps).inverse(shown)
    assert back.shape == source.shape
    assert_close(back.affine, affine, atol=1e-9, rtol=0)
    marked = torch.zeros_like(shown.as_tensor())
    marked[0, size // 2 - 1 : size // 2 + 1, size // 2 - 1 : size // 2 + 1] = 1.0
    seen = put_back(marked, shown)
    if 4 < before[0] < h - 5 and 4 < before[1] < w - 5 and field / size / max(down, across) > 1:
        assert float((centre(seen.clamp(min=0)) - before).abs().max()) <= 0.5


@pytest.mark.parametrize("box", [(0, 0, 20, 30), (192, "bright"), ("square", "middle")])
def test_what_lies_on_the_square_goes_back_to_its_place(box: tuple) -> None:
    image = MetaTensor(torch.rand(3, 20, 30))
    image.meta["source"] = {"spacing": [5.0, 5.0, 1.0]}
    image.affine = torch.diag(torch.tensor([5.0, 5.0, 1.0, 1.0]))
    step = SquareField(*box) if len(box) == 2 else SquareField()
    square = step(image)
    covered = put_back(torch.ones_like(square.as_tensor()), square) > 0
    back = put_back(square, square)
    assert torch.equal(back.as_tensor(), torch.where(covered, image, torch.zeros(())).as_tensor())
    labels = (square[0] > 0.5).to(torch.uint8).as_tensor()
    expected = ((back[0] > 0.5) & covered[0]).to(torch.uint8)
    assert torch.equal(put_back(labels, square).as_tensor(), expected.as_tensor())
    drawn = torch.nn.functional.interpolate(square.as_tensor()[None], (64, 64), mode="nearest-exact")[0]
    assert put_back(drawn, square).shape == image.shape, "what was drawn may have another size"


def test_the_border_of_a_field_of_view_is_put_back_as_black() -> None:
    picture = torch.zeros(3, 60, 80)
    picture[:, 10:50, 25:65] = 0.8
    step = CropDarkBorder()
    cut = step(MetaTensor(picture))
    assert cut.shape == (3, 40, 40) and torch.equal(step.inverse(cut).as_tensor(), picture)


def test_a_picture_is_squared_once() -> None:
    picture = MetaTensor(spot(40, 30, 12, 9, 4))
    picture.meta["source"] = {"spacing": [2.0, 2.0, 1.0]}
    picture.affine = torch.diag(torch.tensor([2.0, 2.0, 1.0, 1.0]))
    step = SquareField(50, "bright")
    once = step(picture)
    assert once.shape == (1, 25, 25) and torch.equal(step(once), once)
    assert step(once).meta["field"] == "50 around bright"


# MONAI manners -------------------------------------------------------------------------------------------


def chain() -> Compose:
    return Compose([SquarePixelsd("image"), SquareFieldd("image", "square"), FitToGridd("image", 32, 32, 8)])


def record(n: int = 0) -> dict:
    affine = torch.diag(torch.tensor([2.0, 1.0, 1.0, 1.0], dtype=torch.float64))
    return {"image": MetaTensor(spot(30, 50, 15, 20 + n, 6), affine=affine), "id": n}


def test_invertd_puts_a_prediction_back_on_its_source() -> None:
    steps = chain()
    seen = steps(record())
    seen["pred"] = (seen["image"] > 0.5).float()
    undo = Invertd("pred", steps, orig_keys="image", nearest_interp=True)
    back = undo(seen)["pred"]
    assert back.shape == (1, 30, 50) and set(back.unique().tolist()) == {0.0, 1.0}
    assert float((centre(back) - centre((record()["image"] > 0.5).float())).abs().max()) <= 0.5  # nearest
    assert_close(back.affine, record()["image"].affine)


def test_an_absent_key_is_a_matter_of_the_caller() -> None:
    fit = FitToGridd(["image", "none"], 32, 16, 8, allow_missing_keys=True)
    assert fit(record())["image"].shape == (1, 16, 32)
    with pytest.raises(KeyError):
        SquareFieldd("none", "square")(record())


def test_lazily_they_are_one_resampling() -> None:
    steps = Compose([SquarePixelsd("image"), SquareFieldd("image", "square"), FitToGridd("image", 32, 32, 8)])
    eager, lazy = steps(record())["image"], Compose(steps.transforms, lazy=True)(record())["image"]
    assert not lazy.pending_operations and eager.shape == lazy.shape
    assert_close(eager.affine, lazy.affine)
    assert float((eager - lazy).abs().mean()) < 0.02
    assert float((centre(eager) - centre(lazy)).abs().max()) < 0.3


@pytest.mark.parametrize("kind", ["cache", "persistent"])
def test_they_run_in_datasets_loaders_and_workers(kind: str, tmp_path) -> None:
    records = [record(n) for n in range(4)]
    if kind == "cache":
        dataset = CacheDataset(records, chain(), progress=False)
    else:
        dataset = PersistentDataset(records, chain(), cache_dir=tmp_path)
    loader = ThreadDataLoader(dataset, batch_size=2, num_workers=1)
    seen = [one for batch in loader for one in decollate_batch(batch)]
    assert [int(one["id"]) for one in seen] == [0, 1, 2, 3]
    steps = dataset.transform
    for n, one in enumerate(seen):
        assert isinstance(one["image"], MetaTensor) and one["image"].shape == (1, 32, 32)
        back = steps.inverse(one)["image"]
        assert back.shape == (1, 30, 50)
        assert float((centre(back) - centre(records[n]["image"])).abs().max()) < 0.5


def test_a_recipe_can_be_undone_down_to_the_slice(tmp_path) -> None:
    voxels = np.zeros((40, 50, 12), np.float32)
    voxels[8:30, 10:35, 5] = 700
    voxels[..., 0] = 100
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([1.0, 1.0, 6.0, 1.0])), tmp_path / "scan.nii.gz")
    for plane in ("axial", "coronal", "sagittal"):
        (shown,) = recipe("mri", field="square", count=1, plane=plane)(tmp_path / "scan.nii.gz")
        assert shown.shape[1] == shown.shape[2] == 192
        back = put_back(shown, shown)
        assert list(back.shape[1:]) == shown.meta["source"]["size"]
        assert_close(back.affine.numpy(), np.array(shown.meta["source"]["affine"]), atol=1e-9, rtol=0)
