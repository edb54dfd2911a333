# SPDX-License-Identifier: Apache-2.0
"""Damaged files of every kind: each function gives what writes one of them into a folder."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from PIL import Image
from pydicom.uid import JPEG2000Lossless
from sources import block, dicom, nifti, png, series

Made = Callable[[Path], None]


def png_of(width: int, height: int) -> bytes:
    """A PNG that says it has so many pixels, in a few bytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def written(name: str, content: bytes | str) -> Made:
    """A file of this content."""

    def write(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return write


def cut(make_: Callable[[Path], Path], name: str, share: float) -> Made:
    """A file of which the rest is missing."""

    def write(folder: Path) -> None:
        path = make_(folder / name)
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])

    return write


def volume(values: Any) -> Made:
    return lambda folder: (nifti(folder / "bad.nii", values), None)[1]


def patched(offset: int, content: bytes) -> Made:
    """A NIfTI with other bytes in its header."""

    def write(folder: Path) -> None:
        path = nifti(folder / "bad.nii")
        whole = bytearray(path.read_bytes())
        whole[offset : offset + len(content)] = content
        path.write_bytes(bytes(whole))

    return write


PLACED = "(5,0,0) (0,5,0) (0,0,5)"


def nrrd(
    *, values: bytes = bytes(2 * 15 * 20 * 20), sizes: str = "15 20 20", encoding: str = "raw",
    dimension: int = 3, kinds: str = "domain domain domain", directions: str = PLACED, more: str = "",
) -> Made:  # fmt: skip
    """An NRRD of 16 bits, its header as it is said."""
    header = f"NRRD0004\ntype: short\nspace: left-posterior-superior\ndimension: {dimension}\n"
    header += f"sizes: {sizes}\nspace directions: {directions}\nkinds: {kinds}\n"
    header += f"endian: little\nencoding: {encoding}\n"
    return written("bad.nrrd", f"{header}space origin: (0,0,0)\n{more}\n".encode() + values)


def holed() -> np.ndarray:
    values = block()
    values[3, 3, 3] = np.nan
    return values


def endless() -> np.ndarray:
    values = block()
    values[3, 3, 3] = np.inf
    return values


def picture(name: str, mode: str = "RGB", value: Any = None, **options: Any) -> Made:
    def write(folder: Path) -> None:
        noise = np.random.default_rng(9).integers(0, 255, (40, 48), np.uint8)
        image = Image.fromarray(noise if value is None else value)
        (image.convert(mode) if value is None else image).save(folder / name, **options)

    return write


def slice_(number: int = 0, name: str = "bad.dcm", **tags: Any) -> Made:
    return lambda folder: (dicom(folder / name, number=number, **tags), None)[1]


def stack(**extra: Any) -> Made:
    """A series of three slices and one that does not fit."""

    def write(folder: Path) -> None:
        uid = series(folder / "s", 3)
        dicom(folder / "s" / "odd", series=uid, **extra)

    return write


def lied(folder: Path) -> None:
    path = dicom(folder / "bad.dcm")
    header = pydicom.dcmread(path)
    header.Rows = header.Columns = 60000
    header.save_as(path)


def squeezed(folder: Path) -> None:
    """A header that says JPEG 2000 over bytes that are none."""
    path = dicom(folder / "bad.dcm")
    header = pydicom.dcmread(path)
    header.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8 no image"])
    header["PixelData"].is_undefined_length = True
    header.file_meta.TransferSyntaxUID = JPEG2000Lossless
    header.save_as(path)


def row(**values: Any) -> Made:
    """A line of JSON beside a healthy one."""
    return line(json.dumps({"image": "good.png", **values}))


def line(text: str | bytes) -> Made:
    healthy = json.dumps(
        {
            "image": "good.png",
            "conversations": [{"from": "human", "value": "Plane?"}, {"from": "gpt", "value": "axial"}],
        }
    )

    def write(folder: Path) -> None:
        png(folder / "good.png")
        content = text if isinstance(text, bytes) else text.encode("utf8", "surrogatepass")
        (folder / "rows.jsonl").write_bytes(healthy.encode() + b"\n" + content + b"\n")

    return write


def said(*words: str) -> dict[str, Any]:
    return {
        "conversations": [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(words)]
    }


def table(text: str | bytes, header: str = "image,label,size_mm,caption") -> Made:
    def write(folder: Path) -> None:
        png(folder / "good.png")
        content = text if isinstance(text, bytes) else text.encode()
        (folder / "table.csv").write_bytes(f"{header}\ngood.png,mass,3,fine\n".encode() + content + b"\n")

    return write


def coco(*annotations: Any, **entry: Any) -> Made:
    def write(folder: Path) -> None:
        png(folder / "good.png")
        png(folder / "bad.png", 1)
        content = {
            "images": [{"id": 1, "file_name": "good.png"}, {"id": 2, "file_name": "bad.png", **entry}],
            "categories": [{"id": 1, "name": "polyp"}],
            "annotations": [{"image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9]}, *annotations],
        }
        (folder / "coco.json").write_text(json.dumps(content))

    return write


def boxed(*edges: Any) -> dict[str, Any]:
    return {"image_id": 2, "category_id": 1, "bbox": list(edges)}


def masked(mask: Made | None) -> Made:
    def write(folder: Path) -> None:
        for name in ("good", "bad"):
            png(folder / "images" / f"{name}.png", size=(40, 48))
        (folder / "masks").mkdir()
        Image.fromarray(np.tile(np.arange(48, dtype=np.uint8) // 30, (40, 1))).save(
            folder / "masks" / "good.png"
        )
        (folder / "labels.json").write_text('{"a": 1}')
        if mask is not None:
            mask(folder / "masks")

    return write


def paired(second: Made | None) -> Made:
    def write(folder: Path) -> None:
        for name in ("good", "bad"):
            png(folder / "A" / f"{name}.png", size=(40, 48))
        png(folder / "B" / "good.png", 3, size=(40, 48))
        if second is not None:
            second(folder / "B")

    return write


LAUGHS = '<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]><x>&b;</x>'
DEEP = '{"a":' * 100_000 + "1" + "}" * 100_000
GOOD_REPORT = written("good.txt", "FINDINGS: Clear lungs.")
