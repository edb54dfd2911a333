# SPDX-License-Identifier: Apache-2.0
"""What lies outside the field of view goes, what lies inside stays: sectors, discs, runs, real cines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from PIL import Image, ImageDraw

from monai_unimedvl import recipe
from monai_unimedvl.transforms.outside import BlankOutside, BlankOutsided, field_mask
from monai_unimedvl.transforms.read import read


def screen(kind: str, height: int = 480, width: int = 640) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A dark screen (H, W) with a bright field, its mask, and where text and a grey bar were drawn."""
    field, extra = Image.new("L", (width, height)), Image.new("L", (width, height))
    if kind == "sector":
        ImageDraw.Draw(field).pieslice((60, -330, 580, 450), 50, 130, fill=255)
    else:
        ImageDraw.Draw(field).ellipse((200, 40, 600, 440), fill=255)
    draw = ImageDraw.Draw(extra)
    for row in (10, 26, 42):
        draw.text((8, row), "DOE^JANE 1950-01-02 St. Mary", fill=255, font_size=14)
    draw.text((500, 460), "MI 1.2 TIS 0.7", fill=230, font_size=14)
    draw.rectangle((20, 120, 34, 380), fill=200)
    inside, words = np.asarray(field) > 0, np.asarray(extra) > 0
    speckle = np.random.default_rng(0).rayleigh(60, (height, width)).clip(0, 255)
    return np.where(inside, speckle, np.asarray(extra)).astype(np.uint8), inside, words & ~inside


@pytest.mark.parametrize("kind", ["sector", "disc"])
def test_text_around_the_field_is_blanked_and_the_field_is_kept(kind: str) -> None:
    shown, inside, words = screen(kind)
    blanked = BlankOutside()(MetaTensor(torch.from_numpy(shown)[None]))
    kept = blanked[0].numpy()
    assert words.sum() > 3000 and (kept[words] == 0).mean() == 1.0, "no text is left"
    assert (kept[inside] == shown[inside]).mean() > 0.995, "the field is as it was"
    assert blanked.meta["blanked"] == pytest.approx(1 - inside.mean(), abs=0.05)
    assert torch.equal(BlankOutside()(blanked), blanked)


def test_a_run_has_one_field_for_all_its_frames() -> None:
    shown, inside, words = screen("sector")
    run = torch.stack([torch.from_numpy(shown)] * 4, -1)[None].clone()  # (1, H, W, T)
    run[0, :, :320, 1] = 0  # a dark frame does not change the field
    blanked = BlankOutside()(MetaTensor(run, meta={"kind": "frames"}))
    assert blanked.shape == run.shape and blanked.dtype == torch.uint8
    assert int(blanked.numpy()[0][words].max()) == 0
    assert (blanked.numpy()[0, ..., 0][inside] == shown[inside]).mean() > 0.995


def test_the_transparency_of_a_screenshot_is_no_light_and_stays() -> None:
    shown, inside, words = screen("sector")
    opaque = np.full_like(shown, 255)
    blanked = BlankOutside()(torch.from_numpy(np.stack([shown, shown, shown, opaque])))
    assert blanked.meta["blanked"] == pytest.approx(1 - inside.mean(), abs=0.05)
    assert int(blanked[3].min()) == 255 and int(blanked.numpy()[:3, words].max()) == 0


def test_regions_of_the_file_limit_the_field() -> None:
    light = torch.zeros(200, 300)
    light[20:180, 10:140] = 1.0  # tissue
    light[20:180, 150:290] = 1.0  # a spectrum, larger
    mask = field_mask(light, 0.05, [[20, 10, 179, 139]])
    assert mask[100, 70] and not mask[100, 200]


def test_pictures_without_a_dark_surround_stay_as_they_are() -> None:
    full = torch.randint(1, 256, (3, 60, 90), dtype=torch.uint8)
    assert torch.equal(BlankOutside()(full), full)
    dark = torch.zeros(3, 60, 90)
    assert torch.equal(BlankOutside()(dark), dark)
    assert torch.equal(BlankOutside(apply=False)(torch.eye(60)[None]), torch.eye(60)[None])
    assert torch.equal(BlankOutsided("image")({"image": full})["image"], full)
    with pytest.raises(ValueError, match=r"BlankOutside got threshold=2, expected 0 to 1"):
        BlankOutside(2)


def test_an_endoscope_shows_its_disc_and_no_text(tmp_path: Path) -> None:
    shown, inside, words = screen("disc")
    colour = np.stack([shown, shown // 2, shown // 3], -1)
    Image.fromarray(colour).save(tmp_path / "colon.png")
    (picture,) = recipe("endoscopy")(tmp_path / "colon.png")
    assert picture.shape[1] < 420 and picture.shape[2] < 420, "the dark screen is cut off"
    assert float(picture[0].mean()) > 1.8 * float(picture[1].mean()) > 0, "red comes first"
    rows, columns = inside.any(1).nonzero()[0], inside.any(0).nonzero()[0]
    assert abs(picture.shape[1] - len(rows)) <= 12 and abs(picture.shape[2] - len(columns)) <= 12


def test_a_real_echo_cine_loses_its_text_and_keeps_its_sector() -> None:
    store = pytest.importorskip("data_store", reason="pydicom-data is not installed")
    path = Path(store.__file__).parent / "data" / "color3d_jpeg_baseline.dcm"
    frames = recipe("ultrasound", count=4)(path)
    assert [one.meta["source"]["index"] for one in frames] == [15, 45, 75, 105]
    assert frames[0].meta["source"]["count"] == 120
    for one in frames:
        assert one.shape[1] < 480 and one.shape[2] < 640
        assert float(one.amax(0).gt(0.1).float().mean()) > 0.1
    # the landmark of an apical view: the probe is at the top, where the sector is narrowest
    lit = (frames[0].amax(0) > 0.05).float()
    widths = [float(row.nonzero().max() - row.nonzero().min()) if row.any() else 0.0 for row in lit]
    assert np.mean(widths[: len(widths) // 6]) < 0.6 * np.mean(widths[len(widths) // 2 :][: len(widths) // 3])


def test_a_cine_of_jpeg_has_the_colours_of_pydicom() -> None:
    import pydicom

    from monai_unimedvl.transforms.read import read

    store = pytest.importorskip("data_store", reason="pydicom-data is not installed")
    path = Path(store.__file__).parent / "data" / "color3d_jpeg_baseline.dcm"
    expected = pydicom.pixels.pixel_array(path, index=60).astype(int)
    ours = read(path).as_tensor()[..., 60].permute(1, 2, 0).numpy().astype(int)
    assert np.abs(ours - expected).max() <= 1


@pytest.mark.parametrize("name", ["examples_rgb_color", "examples_jpeg2k"])
def test_a_banner_right_above_a_real_scan_is_no_part_of_its_field(name: str) -> None:
    from pydicom.data import get_testdata_file

    shown = read(Path(str(get_testdata_file(f"{name}.dcm", download=False))))
    if shown.shape[-1] == 320:
        shown = shown.repeat_interleave(2, -1).repeat_interleave(2, -2)
    blanked = BlankOutside()(shown).as_subclass(torch.Tensor)
    banner, scan = slice(0, 88), (slice(None), slice(110, 310), slice(30, 600))  # rows of 480, as looked at
    lit = (blanked[:, banner] > 60).any(0).float().sum() / (shown[:, banner] > 60).any(0).float().sum()
    assert lit < 0.03, "hospital, patient and date stood there"
    same = (blanked[scan] == shown.as_subclass(torch.Tensor)[scan]).float().mean()
    assert same > 0.995, "tissue and flow stay, but for corners beside the colour bars"


@pytest.mark.parametrize("size", [14, 22, 34])
def test_writing_that_touches_the_field_does_not_join_it(size: int) -> None:
    picture = Image.new("L", (640, 480))
    draw = ImageDraw.Draw(picture)
    for row in range(4, 150 - size, round(size * 1.1)):
        draw.text((4, row), "DOE^JANE 1950-01-02 ST MARY 4711-0815 KELLER 0.8 CM", fill=255, font_size=size)
    words = np.asarray(picture) > 0
    words[150:] = False
    shown = np.asarray(picture).copy()
    shown[150:] = np.random.default_rng(0).rayleigh(60, (330, 640)).clip(0, 255)
    kept = BlankOutside()(torch.from_numpy(shown)[None])[0].numpy()
    assert (kept[words] == 0).mean() > 0.9 and (kept[170:] == shown[170:]).mean() > 0.98


@pytest.mark.parametrize("darkest, brightest", [(190, 255), (60, 255)], ids=["even", "rough"])
def test_a_bright_field_keeps_its_rim(darkest: int, brightest: int) -> None:
    shown, inside, words = screen("disc")
    shown = np.where(inside, np.random.default_rng(0).integers(darkest, brightest, shown.shape), shown)
    kept = BlankOutside()(torch.from_numpy(shown.astype(np.uint8))[None])[0].numpy()
    assert (kept[inside] == shown[inside]).mean() > 0.995 and not kept[words].any()
