# SPDX-License-Identifier: Apache-2.0
"""A picture file without what is written beside its pixels: text, EXIF, XMP, comments, thumbnails.

That is where cameras, viewers and exports put names. PNG and JPEG lose those parts and nothing else; other
formats, and pictures that only EXIF turns upright, become PNG with the same pixels.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator

from PIL import Image, ImageOps

PNG = b"\x89PNG\r\n\x1a\n"
SUFFIXES = (
    (PNG, ".png"), (b"\xff\xd8", ".jpg"), (b"GIF8", ".gif"), (b"BM", ".bmp"), (b"II*\0", ".tif"),
    (b"MM\0*", ".tif"), (b"RIFF", ".webp"), (b"\0\0\0\x0cjP", ".jp2"),
)  # fmt: skip
TRANSPARENT = b"tRNS"  # of the chunks of PNG that a reader may leave out, the one about pixels
ORIENTATION = 274  # the tag of EXIF
PIXELS, ADOBE, COMMENT, END = 0xDA, 0xEE, 0xFE, b"\xff\xd9"  # marks of JPEG


def bare(content: bytes) -> bytes:
    """The bytes of a picture -> bytes of the same pixels, upright, with nothing beside them."""
    with Image.open(io.BytesIO(content)) as file:
        kind, upright = file.format, file.getexif().get(ORIENTATION, 1) == 1
        if kind == "PNG" and upright:
            return PNG + b"".join(_chunks(content))
        if kind == "JPEG" and upright:
            return b"\xff\xd8" + b"".join(_segments(content))
        turned = ImageOps.exif_transpose(file)
        whole = turned if turned.mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16") else None
        whole = whole or turned.convert("I" if turned.mode.startswith("I;16") else "RGB")
        whole.info = {key: value for key, value in whole.info.items() if key == "transparency"}
        stream = io.BytesIO()
        whole.save(stream, "PNG")
        return stream.getvalue()


def content_name(content: bytes) -> str:
    """The path of a picture inside a corpus, made of its bytes: images/ab/abcdef....png"""
    digest = hashlib.sha256(content).hexdigest()
    suffix = next((suffix for start, suffix in SUFFIXES if content.startswith(start)), "")
    return f"images/{digest[:2]}/{digest[:24]}{suffix}"


def _chunks(content: bytes) -> Iterator[bytes]:
    """The chunks of a PNG that say what its pixels are; nothing after its end."""
    at = len(PNG)
    while at + 12 <= len(content):
        name, end = content[at + 4 : at + 8], at + 12 + int.from_bytes(content[at : at + 4], "big")
        if name[:1].isupper() or name == TRANSPARENT:
            yield content[at:end]
        if name == b"IEND":
            return
        at = end


def _segments(content: bytes) -> Iterator[bytes]:
    """The segments of a JPEG that say what its pixels are, and the pixels; nothing after its end."""
    at = 2
    while at + 4 <= len(content) and content[at] == 0xFF and content[at + 1] != PIXELS:
        mark, end = content[at + 1], at + 2 + int.from_bytes(content[at + 2 : at + 4], "big")
        if content[at + 4 : at + 9] == b"JFIF\0":  # with Adobe's it says which colours these are
            yield b"\xff\xe0\x00\x10" + content[at + 4 : at + 16] + b"\0\0"  # and no thumbnail
        elif mark == ADOBE or not (0xE0 <= mark <= 0xEF or mark == COMMENT):
            yield content[at:end]
        at = end
    last = content.rfind(END, at)
    yield content[at:] if last < 0 else content[at : last + 2]
