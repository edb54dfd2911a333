# SPDX-License-Identifier: Apache-2.0
"""NRRD and .seg.nrrd, as 3D Slicer and pyradiomics write them -> values (X, Y, Z) and their affine to RAS mm.

MONAI's NrrdReader reads the values. Its affine is not taken, since it leaves the spaces other than LPS as
they are. The header is looked at before any value: how large it says it is, and that it names no other file.
"""

from __future__ import annotations

import bz2
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from monai.data import NrrdReader

from monai_unimedvl.packages import needed

NRRD = (".nrrd",)
TOWARDS = {"right": (0, 1.0), "left": (0, -1.0), "anterior": (1, 1.0), "posterior": (1, -1.0),
           "superior": (2, 1.0), "inferior": (2, -1.0)}  # fmt: skip
CHUNK = 2**20  # bytes that are unpacked at a time
WIDEST = 8  # bytes of a voxel


def read_values(path: Path, most: int) -> tuple[np.ndarray, np.ndarray | None]:
    """(X, Y, Z) as stored, and (4, 4) from voxels to RAS mm; None where the file does not say where it lies.

    Args:
        most: voxels that are read.

    Raises:
        MissingPackage: pynrrd is not installed.
        ValueError: several volumes or layers, too many voxels, another file is named.
    """
    header = needed("nrrd", "An NRRD file", "data").read_header(str(path))
    if other := next((key for key in header if key.replace(" ", "").lower() == "datafile"), None):
        raise ValueError(
            f"{path.name} says that its values are in another file ({other!r}), but one file is read: export "
            "it as .nrrd, not as .nhdr."
        )
    sizes = [int(size) for size in header["sizes"]]
    if not sizes or min(sizes) < 1 or float(np.prod(sizes, dtype=float)) > most:
        raise ValueError(
            f"{path.name} says its shape is {tuple(sizes)}, but 1 to {most:,} voxels are read: check the "
            "header."
        )
    kinds = header.get("kinds", ["domain"] * len(sizes))
    kept = [n for n, kind in enumerate(kinds) if kind in ("domain", "space") or sizes[n] > 1]
    if len(kept) > 3 or any(kinds[n] not in ("domain", "space") for n in kept):
        raise ValueError(
            f"{path.name} is {len(sizes)}-D, shape {tuple(sizes)} of {', '.join(map(str, kinds))}, where one "
            "3-D volume is needed: export one volume, or one layer of a segmentation as a label map."
        )
    if (encoding := str(header.get("encoding", "")).lower()) in UNPACKED:
        _check_length(path, encoding, WIDEST * int(np.prod(sizes)))
    values = NrrdReader(index_order="F").read(str(path)).array
    shape = [sizes[n] for n in kept] + [1] * (3 - len(kept))
    return np.asarray(values).reshape(shape, order="F"), _affine(header, kept)


def _affine(header: Mapping[str, Any], kept: list[int]) -> np.ndarray | None:
    """(4, 4) to RAS mm, of the axes that are kept; None where directions or space are not said."""
    towards = [TOWARDS.get(word) for word in str(header.get("space", "")).lower().split("-")[:3]]
    if "space directions" not in header or len(towards) != 3 or None in towards:
        return None
    directions = np.asarray(header["space directions"], dtype=float)[kept]  # (axes, 3), rows as stored
    place = np.eye(4)
    place[:3, : len(kept)] = directions.T
    for missing in range(len(kept), 3):  # a picture: what is thick is not said
        place[:3, missing] = np.cross(place[:3, 0], place[:3, 1]) / np.linalg.norm(place[:3, 0])
    place[:3, 3] = np.asarray(header.get("space origin", [0, 0, 0]), dtype=float)
    turn = np.zeros((4, 4))
    turn[3, 3] = 1
    for column, each in enumerate(towards):
        assert each is not None
        turn[each[0], column] = each[1]
    return turn @ place


def _check_length(path: Path, encoding: str, expected: int) -> None:
    """Nothing, where a packed file unpacks to no more bytes than its header allows; counted, not kept."""
    with path.open("rb") as stream:
        while line := stream.readline():
            if not line.strip():
                break
        length = 0
        for part in UNPACKED[encoding](stream):
            length += len(part)
            if length > expected:
                raise ValueError(
                    f"{path.name} unpacks to more than {expected:,} bytes, expected what its header says: "
                    "export it again."
                )


def _gzip(stream: BinaryIO) -> Iterator[bytes]:
    """What a stream unpacks to, `CHUNK` bytes at a time."""
    unpacker, waiting = zlib.decompressobj(zlib.MAX_WBITS | 16), stream.read(CHUNK)
    while waiting and not unpacker.eof:
        yield unpacker.decompress(waiting, CHUNK)
        waiting = unpacker.unconsumed_tail or stream.read(CHUNK)


def _bzip2(stream: BinaryIO) -> Iterator[bytes]:
    """As `_gzip`."""
    with bz2.BZ2File(stream) as unpacked:
        while part := unpacked.read(CHUNK):
            yield part


UNPACKED = {"gzip": _gzip, "gz": _gzip, "bzip2": _bzip2, "bz2": _bzip2}
