# SPDX-License-Identifier: Apache-2.0
"""The reference's resize to the byte, and what each picture step promises."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose
from PIL import Image
from safetensors.torch import load_file
from torch.testing import assert_close

from monai_unimedvl.transforms import geometry, image, intensity
from monai_unimedvl.transforms.geometry import CropDarkBorder, FitToGrid, FitToGridd, SquarePixels
from monai_unimedvl.transforms.image import ToRGB, ToRGBd, grid_size, resize
from monai_unimedvl.transforms.intensity import PercentileScale, ToUnit, Windows, window


@pytest.fixture(scope="module")
def cases(golden: Path) -> dict:
    return json.loads((golden / "cases.json").read_text())["preproc"]


@pytest.fixture(scope="module")
def arrays(golden: Path) -> dict[str, torch.Tensor]:
    return {k: v for k, v in load_file(golden / "cases.safetensors").items() if k.startswith("preproc.")}


def test_golden_preproc_pixels_are_equal(cases: dict, arrays: dict[str, torch.Tensor]) -> None:
    assert len(cases["tensors"]) == 5
    for case in cases["tensors"]:
        fit = FitToGrid(
            case["max_image_size"], case["min_image_size"], case["image_stride"], case["max_pixels"]
        )
        picture = arrays[case["input"]].permute(2, 0, 1)  # (3, H, W)
        ours = (ToUnit()(fit(picture)) - 0.5) / 0.5
        assert torch.equal(ours.as_subclass(torch.Tensor), arrays[case["output"]]), case["input"]


def test_golden_preproc_sizes_are_equal(cases: dict) -> None:
    assert len(cases["sizes"]) == 336
    for name, rule, w, h, count, out_w, out_h in cases["sizes"]:
        assert grid_size(w, h, *rule, num_images=count) == (out_w, out_h), (name, w, h, count)


def test_golden_preproc_transparency_is_pasted_on_white(arrays: dict[str, torch.Tensor]) -> None:
    ours = ToRGB()(arrays["preproc.rgba_in"].permute(2, 0, 1))
    assert torch.equal(ours.as_subclass(torch.Tensor), arrays["preproc.rgba_rgb"].permute(2, 0, 1))


def test_float_rgba_is_pasted_like_bytes() -> None:
    rgba = torch.randint(0, 256, (4, 9, 11), dtype=torch.uint8)
    assert_close(ToRGB()(rgba / 255.0), ToRGB()(rgba) / 255.0, atol=0.6 / 255, rtol=0)


def test_float_resize_differs_from_bytes_by_rounding_alone() -> None:
    picture = torch.from_numpy(np.array(Image.radial_gradient("L")))[None].expand(3, -1, -1).contiguous()
    bytes_, floats = resize(picture, (98, 70)), resize(picture / 255.0, (98, 70), (0, 1))
    assert_close(floats, bytes_ / 255.0, atol=1.01 / 255, rtol=0)  # PIL rounds after each of its two passes


def test_grey_in_three_channels_is_resized_as_each_of_them() -> None:
    grey = torch.rand(1, 40, 50)
    three = resize(grey.expand(3, -1, -1).contiguous(), (14, 21))
    assert torch.equal(three, resize(grey, (14, 21)).expand(3, -1, -1))
    colour = torch.rand(3, 40, 50)
    alone = torch.cat([resize(one[None], (14, 21)) for one in colour])
    assert torch.equal(resize(colour, (14, 21)), alone)


def test_16_bit_values_keep_their_range_through_the_resize() -> None:
    picture = torch.linspace(0, 65535, 64 * 64).view(1, 64, 64)
    fitted = FitToGrid(28, 28, 14)(picture)
    assert fitted.shape == (1, 28, 28) and float(fitted.max()) > 60_000
    assert len(fitted.unique()) > 700  # an 8-bit road would leave at most 256


def test_a_picture_of_the_right_size_is_not_resampled() -> None:
    picture = torch.rand(3, 28, 42)
    assert torch.equal(FitToGrid(56, 28, 14)(picture).as_subclass(torch.Tensor), picture)


def test_the_affine_follows_the_pixels() -> None:
    picture = MetaTensor(torch.rand(3, 40, 60), affine=torch.diag(torch.tensor([2.0, 3.0, 1.0, 1.0])))
    fitted = FitToGrid(112, 112, 14)(picture)
    height, width = fitted.shape[1:]
    for corner, source in (((-0.5, -0.5), (-0.5, -0.5)), ((height - 0.5, width - 0.5), (39.5, 59.5))):
        ours = fitted.affine @ torch.tensor([*corner, 0, 1], dtype=torch.float64)
        theirs = picture.affine @ torch.tensor([*source, 0, 1], dtype=torch.float64)
        assert_close(ours, theirs, atol=1e-9, rtol=0)


def test_square_pixels_stretch_the_longer_side_and_leave_squares_alone() -> None:
    thick = MetaTensor(torch.rand(1, 10, 40), affine=torch.diag(torch.tensor([4.0, 1.0, 1.0, 1.0])))
    square = SquarePixels()(thick)
    assert square.shape == (1, 40, 40)
    assert_close(square.affine[:2, :2].abs().sum(0), torch.ones(2, dtype=torch.float64))
    assert torch.equal(SquarePixels()(square), square)


def test_a_window_is_linear_between_its_ends_and_flat_outside() -> None:
    hu = torch.tensor([-2000.0, -150.0, 50.0, 250.0, 3000.0])
    assert_close(window(hu, -150, 250), torch.tensor([0, 0, 0.5, 1, 1]))
    with pytest.raises(ValueError, match=r"low=3, high=3, but high must be above low"):
        window(hu, 3, 3)


def test_three_windows_become_three_colours_and_bytes_are_not_windowed_again() -> None:
    table = {"lung": {"low": -1350, "high": 150}, "bone": {"low": -500, "high": 1300}}
    hu = torch.randint(-1000, 1500, (1, 16, 16)).float()
    three = Windows(["lung", "bone", [0, 80]], table)(hu)
    assert three.shape == (3, 16, 16)
    assert_close(three[1:2].as_subclass(torch.Tensor), window(hu, -500, 1300))
    shown = torch.randint(0, 256, (1, 16, 16), dtype=torch.uint8)
    assert_close(Windows("lung", table)(shown).as_subclass(torch.Tensor), shown / 255.0)
    with pytest.raises(ValueError, match=r"window 'lnug' is not known: use one of lung, bone"):
        Windows("lnug", table)
    with pytest.raises(ValueError, match=r"fractions in \[0, 1\], but HU are expected"):
        Windows("lung", table)(torch.rand(1, 16, 16))


def test_percentiles_are_not_moved_by_air_around_the_patient() -> None:
    head = torch.rand(1, 20, 20, 20) * 800 + 200
    small = torch.nn.functional.pad(head, (5,) * 6)
    large = torch.nn.functional.pad(head, (25,) * 6)
    scale = PercentileScale()
    assert scale.bounds(small) == scale.bounds(large)
    ours = scale(large)[:, 25:45, 25:45, 25:45]
    assert_close(ours, scale(small)[:, 5:25, 5:25, 5:25])
    assert float(scale(torch.full((1, 16, 16), 7.0)).abs().max()) == 0


def test_every_scaling_step_done_twice_is_done_once() -> None:
    picture = MetaTensor(torch.randint(-900, 900, (1, 16, 16)).float())
    for step in (Windows([-150, 250]), PercentileScale(), PercentileScale(10, 90, foreground=False)):
        once = step(picture)
        assert torch.equal(step(once), once) and 0 <= float(once.min()) and float(once.max()) <= 1


def test_cropping_takes_the_frame_away_and_cropping_twice_is_once() -> None:
    picture = torch.zeros(3, 60, 80)
    rows, columns = torch.meshgrid(torch.arange(60), torch.arange(80), indexing="ij")
    picture[:, (rows - 30) ** 2 + (columns - 45) ** 2 < 20**2] = 0.8
    picture[0, 2, 2] = 1.0  # a hot pixel in the frame does not stop the crop
    once = CropDarkBorder()(MetaTensor(picture))
    assert once.shape == (3, 39, 39)
    assert_close(once.affine[:2, 3], torch.tensor([11.0, 26.0], dtype=torch.float64))
    assert torch.equal(CropDarkBorder()(once), once)
    assert CropDarkBorder()(torch.zeros(3, 20, 20)).shape == (3, 20, 20)


@pytest.mark.parametrize("channels", [2, 5])
def test_a_wrong_number_of_channels_is_refused(channels: int) -> None:
    with pytest.raises(ValueError, match=rf"{channels} channels.*1 or 3 or 4 are expected"):
        ToRGB()(torch.rand(channels, 16, 16))


def test_a_volume_is_refused_where_a_picture_is_needed() -> None:
    with pytest.raises(ValueError, match=r"4 dimensions.*a picture is 3-D"):
        FitToGrid(28, 28, 14)(torch.rand(1, 16, 16, 4))


def test_negative_light_is_refused() -> None:
    with pytest.raises(ValueError, match=r"goes down to -1, but light is 0 or more"):
        ToUnit()(torch.full((3, 8, 8), -1.0))


def test_dictionary_forms_do_what_array_forms_do() -> None:
    picture = torch.randint(0, 256, (1, 30, 30), dtype=torch.uint8)
    chain = Compose([ToRGBd("image"), FitToGridd(["image", "absent"], 28, 28, 14, allow_missing_keys=True)])
    record = chain({"image": picture, "id": 3})
    assert torch.equal(record["image"], FitToGrid(28, 28, 14)(ToRGB()(picture))) and record["id"] == 3
    with pytest.raises(KeyError):
        ToRGBd("absent")({"image": picture})
    for name in (
        "Windows",
        "ToUnit",
        "PercentileScale",
        "ToRGB",
        "CropDarkBorder",
        "SquarePixels",
        "FitToGrid",
    ):
        room = next(room for room in (image, intensity, geometry) if hasattr(room, f"{name}d"))
        d = getattr(room, f"{name}d")
        assert d is getattr(room, f"{name}D") is getattr(room, f"{name}Dict")


def test_a_meta_tensor_stays_one() -> None:
    picture = MetaTensor(torch.rand(1, 30, 30), meta={"file": "a.png"})
    for step in (ToRGB(), FitToGrid(28, 28, 14), PercentileScale(), ToUnit(), CropDarkBorder()):
        assert step(picture).meta["file"] == "a.png", type(step).__name__
