# SPDX-License-Identifier: Apache-2.0
"""The stored numbers of a DICOM file -> values in the unit of its maker, greys or colours.

Rescale slope and intercept (also per frame) are applied, palettes and YBR become RGB, MONOCHROME1 is turned
so that bright means bright (not in CT, whose HU have a meaning). The VOI LUT only when asked (PS3.3, C.11.2).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pydicom
import torch
from PIL import Image
from pydicom import Dataset
from pydicom.pixels import apply_color_lut, apply_modality_lut, get_decoder
from pydicom.uid import UID
from torch import Tensor

from monai_unimedvl.packages import MissingPackage
from monai_unimedvl.transforms.image import MAX_IMAGE_PIXELS, too_large

# JPEG 2000 and HTJ2K, which pylibjpeg-openjpeg unpacks; lossless JPEG and JPEG-LS are GDCM's.
UNPACKED_BY_PYLIBJPEG = tuple(f"1.2.840.10008.1.2.4.{n}" for n in (90, 91, 201, 202, 203))


def pixels(header: Dataset, name: str, voi: bool = False) -> tuple[Tensor, bool]:
    """(C, H, W) or (C, H, W, T), uint8 or float32, and whether the values are in [0, 1] already.

    Raises:
        MissingPackage: they are packed in a way that no installed package unpacks.
        ValueError: no pixels, too many, or damaged ones.
    """
    if not any(key in header for key in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        what = header.get("Modality") or "no DICOM header"
        raise ValueError(f"{name} holds no pixels ({what}), but an image is expected: choose an image file.")
    rows, columns = int(header.get("Rows", 0)), int(header.get("Columns", 0))
    if rows * columns > MAX_IMAGE_PIXELS:
        raise ValueError(too_large(name, f"{columns}x{rows} pixels"))
    if not hasattr(header, "file_meta") or "TransferSyntaxUID" not in header.file_meta:
        header.ensure_file_meta()
        header.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
    _check_unpacker(header.file_meta.TransferSyntaxUID)
    stored = _stored(header)  # ([T,] H, W[, 3]); YBR is RGB already
    photometric = str(header.get("PhotometricInterpretation", "MONOCHROME2"))
    if photometric == "PALETTE COLOR":
        stored = apply_color_lut(stored, header)[..., :3]
        if stored.dtype != np.uint8:
            stored = (stored >> 8).astype(np.uint8)
    colour = photometric == "PALETTE COLOR" or int(header.get("SamplesPerPixel", 1)) == 3
    frames = stored.ndim == (4 if colour else 3)
    stored = stored if frames else stored[None]  # (T, H, W[, 3])
    stored = np.moveaxis(stored, -1, 0) if colour else stored[None]  # (C, T, H, W)
    unit = False
    if not colour:
        unit = voi and _voi(np.zeros(1), header) is not None
        dark = photometric == "MONOCHROME1" and header.get("Modality") != "CT"
        values = np.stack(
            [
                _by_table(partial(_meant, header=header, index=i, voi=unit, exact=dark), frame)
                for i, frame in enumerate(stored[0])
            ]
        )[None]
        if dark:
            values = (1 - values) if unit else _turned(values, header)
        stored = values
    kept = stored if stored.dtype == np.uint8 else stored.astype(np.float32)
    result = torch.from_numpy(np.moveaxis(kept, 1, -1))  # (C, H, W, T)
    return (result if frames else result[..., 0].contiguous()), unit


def _turned(values: np.ndarray, header: Dataset) -> np.ndarray:
    """Bright for dark, about the middle of what the file can hold: the same for all files of a series."""
    if "PixelData" not in header:  # floats hold anything
        return values.max() + values.min() - values
    bits, signed = int(header.BitsStored), int(header.get("PixelRepresentation", 0))
    low = -(2 ** (bits - 1)) if signed else 0
    ends = np.array([low, low + 2**bits - 1], np.int32)
    turned = _meant(ends, header, index=0, voi=False, exact=True).sum() - values
    return turned.astype(np.uint8) if values.dtype == np.uint8 else turned


def _check_unpacker(syntax: UID) -> None:
    """Raise MissingPackage where pydicom knows how pixels are packed, and misses what unpacks them."""
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        return  # a film, or a syntax that pydicom does not know: that is the file's doing
    if not decoder.is_available:
        extra = "dicom" if syntax in UNPACKED_BY_PYLIBJPEG else "dicom-gdcm"
        raise MissingPackage(
            f"DICOM packed as {syntax.name} needs a decoder, which is not installed: "
            f"pip install 'monai-unimedvl[{extra}]'."
        )


def _stored(header: Dataset) -> np.ndarray:
    """([T,] H, W[, 3]) as stored, YBR turned to RGB; that of JPEG by PIL, ten times faster."""
    syntax = header.file_meta.TransferSyntaxUID
    jpeg = syntax in (pydicom.uid.JPEGBaseline8Bit, pydicom.uid.JPEGExtended12Bit)
    if not (jpeg and str(header.get("PhotometricInterpretation", "")).startswith("YBR_FULL")):
        return header.pixel_array
    frames = [
        np.array(Image.fromarray(np.ascontiguousarray(one), "YCbCr").convert("RGB"))
        for one in pydicom.pixels.iter_pixels(header, raw=True)
    ]
    return frames[0] if len(frames) == 1 else np.stack(frames)


def _by_table(meaning: Callable[[np.ndarray], np.ndarray], stored: np.ndarray) -> np.ndarray:
    """`meaning` of each value, worked out once for every number that 8 or 16 bits can hold and looked up."""
    if stored.dtype.kind not in "iu" or stored.dtype.itemsize > 2 or not stored.dtype.isnative:
        return meaning(stored)
    low, high = int(stored.min()), int(stored.max())
    if stored.size <= high - low:
        return meaning(stored)
    numbers = np.arange(low, high + 1).astype(stored.dtype)
    table = meaning(numbers)
    if table is numbers:
        return stored
    places = stored.view(f"u{stored.itemsize}") - numbers[:1].view(f"u{stored.itemsize}")
    return np.take(table, places)


def _meant(stored: np.ndarray, header: Dataset, index: int, voi: bool, exact: bool) -> np.ndarray:
    """Stored numbers -> the maker's unit, or what its window shows; float32 unless `exact` or bytes."""
    values: Any = _real_world(stored, header, index)
    values = _voi(values, header) if voi else values
    return values if exact or values.dtype == np.uint8 else values.astype(np.float32)


def _real_world(frame: np.ndarray, header: Dataset, index: int) -> np.ndarray:
    """Stored numbers -> the maker's unit, by the file's LUT or rescale, or by that of the frame's group."""
    for groups, at in (("PerFrameFunctionalGroupsSequence", index), ("SharedFunctionalGroupsSequence", 0)):
        group = header.get(groups)
        if group and "PixelValueTransformationSequence" in group[at]:
            rescale = group[at].PixelValueTransformationSequence[0]
            return frame * float(rescale.RescaleSlope) + float(rescale.RescaleIntercept)
    if "ModalityLUTSequence" in header or float(header.get("RescaleSlope") or 1) != 1 \
            or float(header.get("RescaleIntercept") or 0) != 0:  # fmt: skip
        return apply_modality_lut(frame, header)
    return frame


def _voi(values: np.ndarray, header: Dataset) -> np.ndarray | None:
    """What the file's own LUT or window shows, in [0, 1]; None when it has neither."""
    table = header.get("VOILUTSequence")
    if table and "LUTData" in table[0]:
        count, first, bits = (int(v) for v in table[0].LUTDescriptor)
        entries = np.frombuffer(table[0].LUTData, np.uint16) if isinstance(table[0].LUTData, bytes) else \
            np.asarray(table[0].LUTData)  # fmt: skip
        places = (values.round().astype(np.int64) - first).clip(0, min(count or 65536, len(entries)) - 1)
        return entries[places].astype(np.float32) / (2**bits - 1)
    center, width = (_first(header.get(key)) for key in ("WindowCenter", "WindowWidth"))
    if center is None or width is None:
        return None
    function = str(header.get("VOILUTFunction", "LINEAR")).upper()
    x = values.astype(np.float64)
    if function == "SIGMOID" and width > 0:
        return (1 / (1 + np.exp(-4 * (x - center) / width))).astype(np.float32)
    if function == "LINEAR_EXACT" and width > 0:
        return ((x - center) / width + 0.5).clip(0, 1).astype(np.float32)
    if width == 1:
        return (x > center - 0.5).astype(np.float32)
    if width < 1:
        raise ValueError(f"the file's window width is {width:g}, expected 1 or more: read it with voi=False.")
    return ((x - (center - 0.5)) / (width - 1) + 0.5).clip(0, 1).astype(np.float32)


def _first(value: Any) -> float | None:
    if value is None or value == "":
        return None
    return float(value[0]) if isinstance(value, pydicom.multival.MultiValue) else float(value)
