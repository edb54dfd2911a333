# SPDX-License-Identifier: Apache-2.0
"""SquareField: pads, cuts, keeps the place of every pixel."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor

from monai_unimedvl import recipe
from monai_unimedvl.transforms.field import SquareField
from monai_unimedvl.transforms.geometry import SquarePixels
from monai_unimedvl.transforms.image import ToRGB
from monai_unimedvl.transforms.lazy import prepare


def picture(height: int, width: int, pixel: float) -> MetaTensor:
    """A picture (1, H, W) of its own column numbers, with square pixels of `pixel` mm."""
    values = torch.arange(float(width)).expand(1, height, width).clone() / width
    affine = torch.diag(torch.tensor([pixel, pixel, 1.0, 1.0]))
    return MetaTensor(values, affine=affine, meta={"source": {"spacing": [pixel, pixel, 1.0]}})


def test_a_field_in_mm_cuts_and_pads_around_the_centre() -> None:
    x = picture(233, 150, 1.0)
    y = SquareField(192)(x)
    assert y.shape == (1, 192, 192)
    assert torch.equal(y[0, :, 21:171].as_tensor(), x[0, 21:213].as_tensor())
    assert y[0, :, :21].max() == 0


def test_every_pixel_keeps_its_place_in_mm() -> None:
    x = picture(60, 40, 2.0)
    y = SquareField(100)(x)
    where = y.affine @ torch.tensor([10.0, 20.0, 0.0, 1.0], dtype=y.affine.dtype)
    back = torch.linalg.solve(x.affine, where)
    row, column = round(float(back[0])), round(float(back[1]))
    assert y[0, 10, 20] == x[0, row, column]


def test_without_pixel_size_or_for_square_the_longer_side_rules() -> None:
    assert SquareField(192)(torch.ones(3, 20, 30)).shape == (3, 30, 30)
    assert SquareField("square")(picture(20, 30, 1.0)).shape == (1, 30, 30)
    assert SquareField(None)(torch.ones(3, 20, 30)).shape == (3, 20, 30)


@pytest.mark.parametrize("width", [0, -3.0, "wide"])
def test_a_width_that_is_none_of_these_is_refused(width: float | str) -> None:
    with pytest.raises(ValueError, match="SquareField got width=.*expected mm above 0"):
        SquareField(width)


@pytest.mark.parametrize("modality", ["mri", "ct"])
@pytest.mark.parametrize("plane", ["axial", "coronal"])
def test_the_slices_of_a_series_lie_on_each_other(modality: str, plane: str) -> None:
    values = torch.full((1, 40, 50, 30), -1000.0)
    for z in range(4, 26):  # a leaning cylinder, 4 mm further back in each slice
        values[:, 10:22, z : z + 14, z] = torch.linspace(10, 300, 14)
    affine = torch.diag(torch.tensor([-4.0, -4.0, 4.0, 1.0], dtype=torch.float64))
    affine[:3, 3] = torch.tensor([80.0, 90.0, -60.0])
    volume = MetaTensor(values, affine=affine)
    chain = recipe(modality, field=200.0, centre="series", policy="all", plane=plane)
    shown = [one for one in chain(volume) if float(one.max()) > 0]
    across = {"axial": 2, "coronal": 1}[plane]  # the mm that change from slice to slice
    corners = torch.stack([one.affine[:3, 3] for one in shown])
    assert {one.shape for one in shown} == {(3, 50, 50)} and len(shown) > 10
    assert corners.std(0)[[axis for axis in range(3) if axis != across]].max() < 1e-6
    middle = shown[0].affine[:3] @ torch.tensor([24.5, 24.5, 0.0, 1.0], dtype=torch.float64)
    body = affine[:3] @ torch.tensor([15.5, 21.0, 14.5, 1.0], dtype=torch.float64)
    seen = [axis for axis in range(3) if axis != across]
    assert (middle - body)[seen].abs().max() <= 4.0  # a pixel
    one = recipe(modality, field=200.0, centre="series", count=1, policy="center", plane=plane)(volume)[0]
    same = [other for other in chain(volume) if other.meta["source"]["index"] == one.meta["source"]["index"]]
    assert torch.equal(one.as_tensor(), same[0].as_tensor()), "whichever slices are taken"
    (part,) = prepare(chain, volume)
    slices = part.slices(plane)
    for n, other in enumerate(chain(volume)):
        assert torch.equal(part.picture(slices[n]).as_tensor(), other.as_tensor())
    bright = recipe(modality, field=200.0, policy="all", plane=plane)(volume)
    if plane == "axial":
        assert len({tuple(one.affine[:2, 3].tolist()) for one in bright}) > 10, "each by itself otherwise"


@pytest.mark.parametrize("opaque", [1.0, 255])
def test_what_is_padded_is_dark_where_a_picture_is_transparent(opaque: float) -> None:
    kind = torch.uint8 if opaque == 255 else torch.float32
    glass = torch.cat([torch.ones(3, 20, 30), torch.zeros(1, 20, 30)]).mul(opaque).to(kind)
    shown = ToRGB()(SquareField("square")(glass))
    assert float(shown[:, :5].max()) == 0.0 and float(shown[:, 5:25].min()) == opaque


def test_recipes_take_the_field_by_keyword() -> None:
    (shown,) = recipe("xray", field="square")(torch.rand(1, 80, 50).numpy())
    assert shown.shape == (3, 80, 80)


def test_the_middle_of_a_series_is_found_in_what_was_scaled_again() -> None:
    values = torch.full((1, 40, 40, 9), 5.0)  # a phantom in water
    values[:, 4:12, 4:12] = 300.0
    volume = MetaTensor(values, affine=torch.eye(4, dtype=torch.float64))
    chain = recipe("ct", field=20.0, centre="series", count=1, policy="center", window=[0, 400])
    wanted = chain(volume)[0]
    scaled = (volume + 1000) / 1300
    scaled.meta["unit"] = True  # as a scaling step marks it, and arithmetic keeps the mark
    again = chain(scaled * 1300 - 1000)[0]
    assert torch.allclose(again.as_tensor(), wanted.as_tensor(), atol=1e-5)
    assert float(wanted.max()) == 0.75, "300 HU of 0 to 400"


def test_pixels_are_made_square_without_cutting_what_was_scaled_again() -> None:
    flat = MetaTensor(torch.rand(1, 20, 20), affine=torch.diag(torch.tensor([2.0, 1.0, 1.0, 1.0])))
    flat.meta["unit"] = True
    assert float(SquarePixels()(flat * 4000).max()) > 3000
    assert float(SquarePixels()(flat).max()) <= 1, "bicubic's overshoot is cut"
