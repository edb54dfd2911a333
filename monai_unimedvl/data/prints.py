# SPDX-License-Identifier: Apache-2.0
"""Fingerprints of pictures and words: equal ones, and ones that only look or read alike.

Of a picture: a digest of its pixels, whatever the file around them; two perceptual hashes of `imagehash`,
which find candidates; a thumbnail, which confirms them. Of words: a digest, and a MinHash of `datasketch`.
Lists of them tell a benchmark's pictures and questions without the pictures and questions:

    unimedvl data prints vqa-rad/images --name vqa-rad --out vqa-rad.jsonl
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from monai_unimedvl.atomic import write
from monai_unimedvl.data.dialogue import read_content, shared_pixels
from monai_unimedvl.data.record import PLACEHOLDER, ImageFile, Record
from monai_unimedvl.packages import needed

FORMAT = "unimedvl-prints 1"
BITS = 16  # a side of a perceptual hash: 256 bits
THUMB = 12  # pixels a side
PERMUTATIONS = 32
SHINGLE = 3  # words
IMAGE_BYTES = 2 * BITS * BITS // 8 + THUMB * THUMB  # both hashes and the thumbnail
FEW = 32  # colours up to which a picture is a drawn mask
COUNTED = 65_536  # pixels whose colours are counted at most
LONG = 8  # words from which on texts can be alike without being equal


@dataclass(frozen=True)
class ImagePrint:
    """Of one picture.

    Args:
        pixels: 32 hex digits of the sha256 of its values as (3, H, W).
        average, dct: 64 hex digits each: `imagehash.average_hash` and `imagehash.phash` of 16 x 16 bits.
        thumb: 12 x 12 grey values 0..255 as hex digits.
        colours: how many there are; not part of lists, None of what was read from one.
    """

    pixels: str
    average: str
    dct: str
    thumb: str
    colours: int | None = None

    @property
    def packed(self) -> bytes:
        """Both hashes and the thumbnail, 208 bytes."""
        return bytes.fromhex(self.average + self.dct + self.thumb)

    @property
    def flat(self) -> bool:
        """Whether nothing is to be seen on it, as on a blank slice."""
        grey = bytes.fromhex(self.thumb)
        return max(grey) - min(grey) < 2

    @property
    def drawn(self) -> bool:
        """Whether it has so few colours that others may be equal by chance, as a mask has."""
        return self.colours is not None and self.colours <= FEW

    def to_json(self) -> dict[str, str]:
        """By name, without the colours."""
        return {"pixels": self.pixels, "average": self.average, "dct": self.dct, "thumb": self.thumb}


@dataclass(frozen=True)
class WordPrint:
    """Of a text: 16 hex digits of its words in lower case, and its MinHash as hex, "" where it is short."""

    words: str
    minhash: str = ""

    def to_json(self) -> dict[str, str]:
        """By name, what is not empty."""
        return {"words": self.words, **({"minhash": self.minhash} if self.minhash else {})}


_KNOWN: OrderedDict[bytes, ImagePrint] = OrderedDict()


def image_print(image: ImageFile, root: str | Path | None = None) -> ImagePrint:
    """The print of a picture, embedded or under the root; the records of one picture pay once.

    Raises:
        InvalidRecord: missing or damaged.
    """
    content = read_content(image, root)
    key = hashlib.sha256(content).digest()
    if (known := _KNOWN.get(key)) is None:
        known = _KNOWN[key] = print_of(shared_pixels(replace(image, content=content)).numpy())
        while len(_KNOWN) > 256:
            _KNOWN.popitem(last=False)
    return known


def print_of(values: NDArray[np.float32]) -> ImagePrint:
    """The print of a picture (3, H, W) in [0, 1]."""
    hashes = needed("imagehash", "A fingerprint", "data")
    exact = np.ascontiguousarray(np.rint(values * 65535).astype("<u2"))
    digest = hashlib.sha256(repr(values.shape).encode() + exact.tobytes()).hexdigest()[:32]
    grey = Image.fromarray(np.rint(values.mean(0) * 255).astype(np.uint8))
    small = np.asarray(grey.resize((THUMB, THUMB), Image.Resampling.BOX))
    average, dct = (np.packbits(made(grey, BITS).hash).tobytes().hex()  # as str() writes it, ten times faster
                    for made in (hashes.average_hash, hashes.phash))  # fmt: skip
    flat = exact.reshape(3, -1)
    thinned = flat[:, :: -(-flat.shape[1] // COUNTED)].astype(np.int64)
    colours = len(np.unique(thinned[0] << 32 | thinned[1] << 16 | thinned[2]))
    return ImagePrint(digest, average, dct, small.tobytes().hex(), colours)


def word_print(text: str) -> WordPrint:
    """The print of a text; case, spaces, punctuation and `<image>` marks do not count."""
    words = re.findall(r"\w+", text.replace(PLACEHOLDER, " ").lower())
    digest = hashlib.sha256(" ".join(words).encode()).hexdigest()[:16]
    if len(words) < LONG:
        return WordPrint(digest)
    pieces = {" ".join(words[n : n + SHINGLE]).encode() for n in range(len(words) - SHINGLE + 1)}
    made = _empty_minhash().copy()  # its permutations are drawn once
    made.update_batch(sorted(pieces))
    return WordPrint(digest, made.hashvalues.astype("<u4").tobytes().hex())


@functools.cache
def _empty_minhash() -> Any:
    sketch = needed("datasketch", "A fingerprint", "data")
    return sketch.MinHash(PERMUTATIONS, seed=1, scheme="affine32")  # said, since lists are passed on


def words_of(record: Record) -> str:
    """All that is said in a record, speaker by speaker."""
    return "\n".join(message.value for message in record.message)


def telling_prints(record: Record, root: str | Path | None = None) -> list[ImagePrint]:
    """The prints of pictures that say whose they are: all that is shown or drawn, but no blank picture, and
    no mask among what is drawn, since those of two patients may be equal.

    Raises:
        InvalidRecord: a picture that cannot be read.
    """
    shown = [image_print(image, root) for image in record.input_img]
    drawn = [image_print(image, root) for image in record.output_img]
    return [each for each in (*shown, *(one for one in drawn if not one.drawn)) if not each.flat]


def images_of(record: Record) -> tuple[ImageFile, ...]:
    """All images of a record, those to read first."""
    return (*record.input_img, *record.output_img)


def write_prints(rows: Iterable[ImagePrint | WordPrint], path: str | Path, name: str) -> int:
    """Write a list of prints of a benchmark as JSON lines; returns how many.

    Args:
        name: of the benchmark, which rejects will say.
    """
    lines = [json.dumps({"format": FORMAT, "name": name})]
    lines += sorted({json.dumps(row.to_json()) for row in rows})
    write(path, "\n".join(lines) + "\n")
    return len(lines) - 1


def read_prints(path: str | Path) -> Iterator[tuple[str, ImagePrint | WordPrint]]:
    """(benchmark, print) of each line of a list.

    Raises:
        ValueError: no such file, or a line that is no print.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} is no file, expected a list that `unimedvl data prints` wrote: make one.")
    name = ""
    with path.open(encoding="utf8") as stream:
        for number, line in enumerate(stream, 1):
            try:
                row: dict[str, Any] = json.loads(line)
                if number == 1:
                    assert row["format"] == FORMAT
                    name = str(row["name"])
                else:
                    yield name, (WordPrint(**row) if "words" in row else ImagePrint(**row))
            except (ValueError, KeyError, TypeError, AssertionError) as error:
                raise ValueError(
                    f"{path.name}:{number} is no line of {FORMAT!r}, expected a list that `unimedvl data "
                    "prints` wrote: make it again."
                ) from error


def thumbnails(grey: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(N, 144) of mean 0 and length 1, so that a product is a correlation; a flat picture is nearly 0."""
    wide = grey.astype(np.float32)
    wide -= wide.mean(1, keepdims=True)
    return wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 12.0)  # under one level: noise
