# SPDX-License-Identifier: Apache-2.0
"""An invisible mark in the pixels, for the day when somebody strips the metadata.

Each 8 x 8 block of the brightness becomes its cosine series; numbers of the middle band whose sign is not the
one that a keyed pattern asks for are pushed over zero, far enough to outlive 8 bits and JPEG at quality 90.
The pattern repeats every 64 pixels, so that it is found after a crop. Reading needs no original, it adds up
signs: without a mark the score is a normed sum of fair coins, so P(score > t) <= exp(-t * t / 2) at each
place that is looked at (Hoeffding 1963), whatever the picture.

Half of the pattern says "here", the other half carries an id of 24 bits with 8 bits of checksum. It is a
label and no lock: who knows the pattern can wipe it out. It does not outlive resizing, turning or smoothing.

  B, B' rows and columns of blocks   K = 23 numbers of the band   T = 8 blocks, the side of a tile
"""

from __future__ import annotations

import hashlib
import io
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.floating[Any]]

KEY = "monai_unimedvl synthetic 1"  # another key would no longer read what this one wrote
SIDE = 256  # of the smallest picture that holds enough blocks
LEAST = 40.0  # dB PSNR that a marked picture keeps
FOUND = 7.0  # from this score on there is a mark: P < 3e-11 at one place, < 1e-7 at all 4096
AIM = 14.0  # the score after JPEG at which marking is content
MARGINS = (3.0, 4.5, 6.5, 9.0, 13.0, 2.0)  # in grey levels: the first strong and unseen enough is taken
QUALITY = 90
BLOCK, TILE, BITS = 8, 8, 32
CT_WINDOW = (-160.0, 240.0)  # HU, the abdominal window: a mark made for all of HU would be noise in this one
LARGEST = 512  # pixels a side, in the middle, that the search for crops looks at
_FLAT = 2.0  # a number of the series below this has less than a whole vote
_LUMA = np.array([0.299, 0.587, 0.114])  # as JPEG weighs colours


@dataclass(frozen=True)
class Applied:
    """What marking came to: the id and the PSNR in dB, or why there is none."""

    id: str | None
    psnr: float | None = None
    why: str = ""

    def manifest(self) -> dict[str, Any]:
        """JSON values."""
        if self.id is None:
            return {"applied": False, "why": self.why}
        return {"applied": True, "id": self.id, "psnr": self.psnr}


@dataclass(frozen=True)
class Found:
    """What the detector says.

    Args:
        score: from `FOUND` on there is a mark.
        id: six hex digits, None where the checksum does not fit.
        shift: (rows, columns) by which the pattern lies off the corner, in 0..63.
    """

    score: float
    id: str | None = None
    shift: tuple[int, int] = (0, 0)

    def __bool__(self) -> bool:
        return self.score >= FOUND


def embed(
    image: NDArray[Any], id: str, span: tuple[float, float] = (0.0, 255.0)
) -> tuple[NDArray[Any], Applied]:
    """The picture with the weakest mark that outlives JPEG, and what that came to.

    Args:
        image: (H, W) or (H, W, 3) of any number type, which is kept.
        id: six hex digits.
        span: the values shown as black and white. Whole numbers are rounded; 8-bit ones stay in 0..255.

    Raises:
        ValueError: `id` is not six hex digits, or `span` is empty.
    """
    if len(id) != 6 or not set(id) <= set("0123456789abcdef"):
        raise ValueError(f"id {id!r} came, but six hex digits are expected, as in Facts.id().")
    if not span[1] > span[0]:
        raise ValueError(f"span {span} is empty, but (black, white) is expected: take the picture's range.")
    if min(image.shape[:2]) < SIDE:
        return image, Applied(None, why=f"smaller than {SIDE}x{SIDE}")
    scaled = (image.astype(np.float64) - span[0]) * (255 / (span[1] - span[0]))
    series = _series(_luma(scaled))
    signs = _signs(id, *series.shape[:2])
    best: tuple[float, NDArray[Any], float] | None = None
    for margin in MARGINS:
        marked = _push(scaled, series, signs, margin)
        stored = _as_type(marked * ((span[1] - span[0]) / 255) + span[0], image)
        shown = (stored.astype(np.float64) - span[0]) * (255 / (span[1] - span[0]))
        psnr = _psnr(scaled, shown)
        if psnr < LEAST:
            continue
        found = _found(_fold(_votes(_luma(_after_jpeg(shown)))))
        if found.id == id and (best is None or found.score > best[0]):
            best = found.score, stored, psnr
        if best is not None and best[0] >= AIM:
            break
    if best is None or best[0] < FOUND + 1:
        return image, Applied(None, why=f"too flat or too busy to hold one above {LEAST:g} dB")
    return best[1], Applied(id, psnr=round(best[2], 1))


def detect(image: NDArray[Any], span: tuple[float, float] | None = None, crops: bool = True) -> Found:
    """Whether a picture bears the mark; `Found` is true where it does.

    Args:
        image: (H, W) or (H, W, 3).
        span: the values shown as black and white; None takes 0..255 for 8 bits, else the picture's range.
        crops: look at all 64 x 64 places of the pattern, not only at the corner.
    """
    if min(image.shape[:2]) < 2 * BLOCK * TILE:
        return Found(0.0)
    if span is None:
        whole = image.dtype == np.uint8
        span = (0.0, 255.0) if whole else (float(image.min()), float(image.max()))
    luma = _luma((image.astype(np.float64) - span[0]) * (255 / max(span[1] - span[0], 1e-12)))
    found = _found(_fold(_votes(luma)))
    if found or not crops:
        return found
    edges = [max(0, size - LARGEST) // 2 for size in luma.shape]
    luma = luma[edges[0] : edges[0] + LARGEST, edges[1] : edges[1] + LARGEST].astype(np.float32)
    best, place = found, (0, 0)
    for top in range(BLOCK):
        for left in range(BLOCK):
            folded = _fold(_votes(luma[top:, left:]))
            scores = _all_tiles(folded)  # (T, T)
            row, column = np.unravel_index(int(scores.argmax()), scores.shape)
            if scores[row, column] > best.score:
                best = _found(np.roll(folded, (row, column), (0, 1)))
                place = (
                    int(edges[0] + top - BLOCK * row) % 64,
                    int(edges[1] + left - BLOCK * column) % 64,
                )
    return Found(best.score, best.id, place)


def _luma(image: Floats) -> Floats:
    return image if image.ndim == 2 else image[..., :3] @ _LUMA


def _series(luma: Floats) -> Floats:
    """(H, W) -> (B, B', K)"""
    rows, columns = luma.shape[0] // BLOCK, luma.shape[1] // BLOCK
    blocks = luma[: rows * BLOCK, : columns * BLOCK].reshape(rows, BLOCK, columns, BLOCK)
    return blocks.transpose(0, 2, 1, 3).reshape(rows, columns, -1) @ _WAVES.T.astype(luma.dtype)


def _push(image: Floats, series: Floats, signs: NDArray[np.int64], margin: float) -> Floats:
    """The picture with each number of the band on its side of zero; what is far on the other side stays."""
    rows, columns = series.shape[:2]
    height, width = rows * BLOCK, columns * BLOCK
    agreed = signs * series
    push = signs * np.where((agreed < margin) & (agreed > -2 * margin), margin - agreed, 0.0)
    blocks = _luma(image)[:height, :width].reshape(rows, BLOCK, columns, BLOCK)
    low, high = blocks.min((1, 3)), blocks.max((1, 3))
    background = (high - low < 1) & ((low < 1) | (high > 254))  # black stays black
    push[background] = 0.0
    change = (push @ _WAVES).reshape(rows, columns, BLOCK, BLOCK).transpose(0, 2, 1, 3).reshape(height, width)
    marked = image.copy()
    marked[:height, :width] += change if image.ndim == 2 else change[..., None]
    return marked


def _votes(luma: Floats) -> Floats:
    """(H, W) -> (B, B', K) in [-1, 1]: the sign of each number, less of it where there is hardly any."""
    return np.clip(_series(luma) / _FLAT, -1, 1)


def _fold(votes: Floats) -> Floats:
    """(B, B', K) -> (T, T, K): the votes of all tiles, added."""
    short = [-size % TILE for size in votes.shape[:2]]
    padded = np.pad(votes, ((0, short[0]), (0, short[1]), (0, 0)))
    return padded.reshape(padded.shape[0] // TILE, TILE, -1, TILE, votes.shape[2]).sum((0, 2))


def _found(folded: Floats) -> Found:
    """(T, T, K) at the corner of a tile -> what it says."""
    agreed = folded * _PATTERN
    here = agreed[_ROLE < 0]
    score = float(here.sum() / max(np.sqrt((here**2).sum()), 1e-9))
    sums = np.bincount(_ROLE[_ROLE >= 0], agreed[_ROLE >= 0], BITS)
    read = np.packbits(sums > 0).tobytes()
    fits = score >= FOUND and _checked(read[:3]) == read
    return Found(score, read[:3].hex() if fits else None)


def _all_tiles(folded: Floats) -> Floats:
    """(T, T, K) -> (T, T): the score after rolling the tile by so many blocks."""
    pilot = np.where(_ROLE < 0, _PATTERN, 0)
    scores = np.empty((TILE, TILE))
    for row in range(TILE):
        for column in range(TILE):
            agreed = np.roll(folded, (row, column), (0, 1)) * pilot
            scores[row, column] = agreed.sum() / max(np.sqrt((agreed**2).sum()), 1e-9)
    return scores


def _signs(id: str, rows: int, columns: int) -> NDArray[np.int64]:
    """The sign of every number of the band, (B, B', K)."""
    bits = np.unpackbits(np.frombuffer(_checked(bytes.fromhex(id)), np.uint8)).astype(np.int64) * 2 - 1
    tile = _PATTERN * np.append(bits, 1)[_ROLE]  # role -1 is the last: always 1
    return np.tile(tile, (-(-rows // TILE), -(-columns // TILE), 1))[:rows, :columns]


def _checked(body: bytes) -> bytes:
    return body + bytes([zlib.crc32(body) & 255])


def _as_type(values: Floats, like: NDArray[Any]) -> NDArray[Any]:
    if like.dtype.kind not in "iu":
        return values.astype(like.dtype)
    limits = np.iinfo(like.dtype)
    return np.clip(np.rint(values), limits.min, limits.max).astype(like.dtype)


def _after_jpeg(shown: Floats) -> Floats:
    stream = io.BytesIO()
    Image.fromarray(np.clip(np.rint(shown), 0, 255).astype(np.uint8)).save(stream, "JPEG", quality=QUALITY)
    return np.asarray(Image.open(stream)).astype(np.float64)


def _psnr(before: Floats, after: Floats) -> float:
    return float(10 * np.log10(255**2 / max(float(((before - after) ** 2).mean()), 1e-12)))


def _waves() -> Floats:
    """The cosine products of the band, (K, 64), each of length 1; those up to the third diagonal are seen."""
    n = np.arange(BLOCK)
    cosines = np.sqrt(2 / BLOCK) * np.cos(np.pi * (2 * n[None] + 1) * n[:, None] / (2 * BLOCK))
    cosines[0] = np.sqrt(1 / BLOCK)
    band = [(u, v) for u in range(6) for v in range(6) if 2 <= u + v <= 6]
    return np.stack([np.outer(cosines[u], cosines[v]).ravel() for u, v in band])


def _keyed(count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """A sign for each place of a tile, and its role: -1 says "here", others are the number of a bit.

    Both come from SHA-256 alone, so that no version of NumPy can change them.
    """
    stream = b"".join(hashlib.sha256(f"{KEY} {i}".encode()).digest() for i in range(count // 4 + 1))
    words = np.frombuffer(stream, ">u8")[:count]
    role = np.empty(count, np.int64)
    order = np.argsort(words, kind="stable")
    role[order[: count // 2]] = -1
    role[order[count // 2 :]] = np.arange(count - count // 2) % BITS
    return (words & 1).astype(np.int64) * 2 - 1, role


_WAVES = _waves()
_PATTERN, _ROLE = (part.reshape(TILE, TILE, -1) for part in _keyed(TILE * TILE * len(_WAVES)))
