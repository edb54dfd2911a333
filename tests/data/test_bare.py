# SPDX-License-Identifier: Apache-2.0
"""A picture leaves names behind, and no pixel."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from monai_unimedvl.data.bare import bare
from monai_unimedvl.data.record import ImageFile, Message, Record
from monai_unimedvl.data.shards import write_shards

NAME = b"DOE^JANE"
GREYS = np.random.default_rng(0).integers(0, 4096, (12, 20)).astype(np.uint16)


def picture(kind: str, mode: str, orientation: int = 1) -> bytes:
    """A picture of 12 x 20 with a name wherever its format has room for one."""
    text, exif, stream = PngInfo(), Image.Exif(), io.BytesIO()
    text.add_text("PatientName", NAME.decode())
    text.add(b"prVt", NAME)
    exif[0x010E], exif[274] = NAME.decode(), orientation
    image = Image.fromarray(GREYS) if mode == "I;16" else Image.fromarray((GREYS >> 4).astype("uint8"))
    options = {"PNG": {"pnginfo": text}, "JPEG": {"comment": NAME, "keep_rgb": True}}.get(kind, {})
    if mode == "P":
        options["transparency"] = 7  # of a colour
    (image if mode == "I;16" else image.convert(mode)).save(stream, kind, exif=exif, **options)
    return stream.getvalue() + (NAME if kind in ("PNG", "JPEG") else b"")


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize(
    "kind, mode",
    [("PNG", "L"), ("PNG", "I;16"), ("PNG", "P"), ("PNG", "RGBA"), ("JPEG", "L"), ("JPEG", "RGB"),
     ("JPEG", "CMYK"), ("TIFF", "I;16"), ("TIFF", "RGB"), ("WEBP", "RGB")],
)  # fmt: skip
def test_names_are_left_behind_and_pixels_kept(kind: str, mode: str, orientation: int) -> None:
    content = picture(kind, mode, orientation)
    assert NAME in content
    found = bare(content)
    assert NAME not in found and bare(found) == found
    before, after = ImageOps.exif_transpose(Image.open(io.BytesIO(content))), Image.open(io.BytesIO(found))
    if mode != "I;16":
        before, after = before.convert("RGBA"), after.convert("RGBA")
    assert np.array_equal(np.asarray(before), np.asarray(after))


@pytest.mark.parametrize("jfif", [True, False])
@pytest.mark.parametrize("transform", [0, 1, None])
def test_colours_stay_those_that_jfif_and_adobe_say(jfif: bool, transform: int | None) -> None:
    stream, image = (
        io.BytesIO(),
        Image.fromarray(np.stack([GREYS >> 4, GREYS >> 5, GREYS >> 6], 2).astype("uint8")),
    )
    image.save(stream, "JPEG", quality=95)
    content = stream.getvalue()
    assert content[2:11] == b"\xff\xe0\x00\x10JFIF\0"
    adobe = b"" if transform is None else b"\xff\xee\x00\x0eAdobe\0\x64\0\0\0\0" + bytes([transform])
    thumbnail = b"\xff\xe0\x00\x13" + content[6:18] + b"\x01\x01\x0a\x0b\x0c"
    content = content[:2] + (thumbnail if jfif else b"") + adobe + content[20:]
    found = bare(content)
    assert b"\x0a\x0b\x0c" not in found[:40]
    before, after = (np.asarray(Image.open(io.BytesIO(each)).convert("RGB")) for each in (content, found))
    assert np.array_equal(before, after)


def test_shards_hold_no_name_of_a_picture_file(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(picture("PNG", "L"))
    record = Record(
        id="0", main_task_type="image-to-text", sub_task_type="vqa", modality="ct", dataset="d",
        licence="unknown", source="s", input_img=(ImageFile("0.png", 12, 20),),
        message=(Message("human", "<image> What?"), Message("gpt", "That.")),
    )  # fmt: skip
    assert write_shards([record], tmp_path / "shards", root=tmp_path)["records"] == 1
    for file in (tmp_path / "shards").rglob("*"):
        assert file.is_dir() or NAME not in file.read_bytes()
