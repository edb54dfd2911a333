# SPDX-License-Identifier: Apache-2.0
"""The invisible mark: it is not seen, it is found again after what happens to pictures, and nowhere else."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from skimage import data

from monai_unimedvl.provenance import invisible
from monai_unimedvl.provenance.invisible import FOUND, LEAST, detect, embed

ID = "0a1b2c"


def jpeg(image: np.ndarray, quality: int = 90) -> np.ndarray:
    """Through a file and back."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=quality)
    return np.asarray(Image.open(stream))


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """dB, of 255."""
    return 10 * np.log10(255**2 / ((a.astype(float) - b.astype(float)) ** 2).mean())


@pytest.fixture(scope="module")
def pictures() -> dict[str, np.ndarray]:
    """Grey and colour, textured and smooth, one with a black background."""
    rows, columns = np.mgrid[:256, :320]
    disc = 200 * np.exp(-((rows - 128) ** 2 + (columns - 160) ** 2) / 5e3)
    return {
        "grey": data.camera(),
        "colour": data.astronaut(),
        "grass": data.grass(),
        "stain": data.immunohistochemistry(),
        "smooth": np.where(disc > 20, disc, 0).astype(np.uint8),
    }


@pytest.mark.parametrize("name", ["grey", "colour", "grass", "stain", "smooth"])
def test_it_is_unseen_and_found_after_jpeg(pictures, name):
    marked, applied = embed(pictures[name], ID)
    assert marked.dtype == np.uint8 and marked.shape == pictures[name].shape
    assert applied.id == ID and applied.psnr == round(psnr(pictures[name], marked), 1) >= LEAST
    for seen in (marked, jpeg(marked)):
        found = detect(seen, crops=False)
        assert found and found.id == ID and found.score > FOUND + 1
    assert not detect(pictures[name], crops=False) and detect(pictures[name], crops=False).id is None


def test_black_stays_black(pictures):
    marked, _ = embed(pictures["smooth"], ID)
    corner = marked[:56, :56]
    assert not pictures["smooth"][:56, :56].any() and not corner.any()


@pytest.mark.parametrize("shift", [(0, 0), (5, 3), (13, 100), (64, 8)])
def test_a_crop_and_the_loss_of_colours_leave_it(pictures, shift):
    marked, _ = embed(pictures["colour"], ID)
    grey = np.asarray(Image.fromarray(jpeg(marked)).convert("L"))
    found = detect(grey[shift[0] :, shift[1] :])
    assert found and found.id == ID
    assert found.shift == (-shift[0] % 64, -shift[1] % 64)


def test_depth_does_not_matter(pictures):
    deep = pictures["grey"].astype(np.uint16) * 257
    marked, applied = embed(deep, ID, (0.0, 65535.0))
    assert marked.dtype == np.uint16 and applied.id == ID and detect(marked).id == ID
    real, _ = embed(pictures["grey"] / np.float32(255), ID, (0.0, 1.0))
    assert real.dtype == np.float32 and detect(real).id == ID


def test_what_cannot_hold_one_is_left_as_it_is(pictures):
    for image, why in (
        (pictures["grey"][:255], "smaller than 256x256"),
        (np.zeros((300, 300), np.uint8), "too flat"),
        (np.full((300, 300, 3), 255, np.uint8), "too flat"),
    ):
        kept, applied = embed(image, ID)
        assert kept is image and applied.id is None and why in applied.why
        assert applied.manifest() == {"applied": False, "why": applied.why}
    assert not detect(pictures["grey"][:40, :40])


@pytest.mark.parametrize(
    "id, span, message",
    [("xyz", (0, 255), "six hex digits"), ("0A1B2C", (0, 255), "six hex"), (ID, (3, 3), "span .* is empty")],
)
def test_bad_calls_are_refused(pictures, id, span, message):
    with pytest.raises(ValueError, match=message):
        embed(pictures["grey"], id, span)


def test_the_pattern_never_changes():
    """Files marked by earlier versions must still be found: these numbers are part of the format."""
    assert invisible._PATTERN.shape == (8, 8, 23)
    assert invisible._PATTERN.sum() == -44 and invisible._WAVES.shape == (23, 64)
    assert invisible._PATTERN.ravel()[:12].tolist() == [-1, 1, 1, -1, -1, -1, -1, 1, -1, 1, 1, -1]
    assert invisible._ROLE.ravel()[:12].tolist() == [30, -1, -1, -1, 14, -1, 23, -1, -1, -1, 9, -1]
