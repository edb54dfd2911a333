# SPDX-License-Identifier: Apache-2.0
"""DICOM: one file or the folder of a series -> a MetaTensor in real-world values, with its place in RAS mm.

Rescale slope and intercept (also per frame) are applied, palettes and YBR become RGB, MONOCHROME1 is turned
so that bright means bright (not in CT, whose HU have a meaning). The VOI LUT only when asked (PS3.3, C.11.2).
Of each header only what `deidentify` keeps is ever looked at: no name, date or number of a patient gets in.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import torch
from monai.data import MetaTensor
from PIL import Image
from pydicom.encaps import generate_fragments
from pydicom.filereader import read_partial
from pydicom.pixels import apply_color_lut, apply_modality_lut
from torch import Tensor

from monai_unimedvl.transforms.deidentify import deidentify, is_dicom
from monai_unimedvl.transforms.image import MAX_IMAGE_PIXELS, too_large
from monai_unimedvl.transforms.video import read_video
from monai_unimedvl.transforms.volume import nearest_plane, to_display

Header = pydicom.Dataset
File = tuple[Path, Header]
FILMS = "1.2.840.10008.1.2.4.10"  # .100 to .108: MPEG-2, MPEG-4 AVC, HEVC
PIXELS = 0x7FE00010  # the tag of the pixels
EVEN = 0.05  # of the spacing: how far gaps between slices may differ


def read_file(path: Path, voi: bool = False, frames: int | None = None) -> MetaTensor:
    """(C, H, W), turned to radiological display where the file knows its orientation, or (C, H, W, T).

    Args:
        frames: of a film (MPEG-2, H.264, HEVC) at most that many, evenly spread.
    """
    header = deidentify(_dataset(path))
    if str(header.file_meta.get("TransferSyntaxUID", "")).startswith(FILMS) and "PixelData" in header:
        film = read_video(path, frames, b"".join(generate_fragments(header.PixelData)))
        film.meta = {**film.meta, "unit": False, **_described(header)}
        return film
    values, unit = pixels(header, path.name, voi)
    meta = {"kind": "image" if values.ndim == 3 else "frames", "unit": unit, **_described(header)}
    affine = _affine(header)
    if affine is None or values.ndim == 4:
        down, across = _mirrored(header)
        if down or across:
            values, meta["flipped"] = values.flip([1] * down + [2] * across), [down, across]
        return MetaTensor(values, meta=meta)
    as_volume = values.transpose(1, 2).unsqueeze(-1)  # (C, columns, rows, 1)
    shown, place = to_display(as_volume, affine, nearest_plane(affine[:3, 2]))
    return MetaTensor(
        shown[..., 0].contiguous(), affine=torch.from_numpy(place), meta={**meta, "placed": True}
    )


def read_series(folder: Path, files: list[Path], voi: bool = False) -> MetaTensor:
    """(1, columns, rows, slices) and its affine; frames (C, H, W, T) where all slices share one place.

    Raises:
        ValueError: several series, slices that differ in size or direction, a gap where slices are missing.
    """
    headers: list[File] = []
    for path in files:
        try:
            header = deidentify(pydicom.dcmread(path, force=True, stop_before_pixels=True))
        except Exception as error:  # pydicom raises many kinds for damaged headers
            raise ValueError(
                f"{path.name} in {folder} cannot be read as DICOM ({error}): copy it again."
            ) from error
        if "Rows" in header and "Columns" in header:
            headers.append((path, header))
    if not headers:
        raise ValueError(
            f"folder {folder} holds no images: its {len(files)} DICOM files have no pixels; "
            "name the folder of an image series."
        )
    series = {str(header.get("SeriesInstanceUID", "")) for _, header in headers}
    if len(series) > 1:
        raise ValueError(
            f"folder {folder} holds {len(series)} DICOM series, but one is expected: put each in its own "
            "folder."
        )
    if len(headers) == 1:
        return _read_slice(*headers[0], voi, alone=True)
    shapes = {(int(h.Rows), int(h.Columns)) for _, h in headers}
    if len(shapes) > 1:
        raise ValueError(
            f"slices in {folder} differ in size, {sorted(shapes)}: move the odd ones (scouts) away."
        )
    places = [_affine(header) for _, header in headers]
    if any(place is None for place in places):
        return _stack(headers, list(range(len(headers))), None, voi)
    affines = np.stack([place for place in places if place is not None])  # (N, 4, 4)
    if np.abs(affines[:, :3, :2] - affines[0, :3, :2]).max() > 1e-3 * np.abs(affines[0, :3, :2]).max():
        raise ValueError(
            f"slices in {folder} differ in direction or pixel size: move the odd ones (scouts) away."
        )
    normal = affines[0, :3, 2] / np.linalg.norm(affines[0, :3, 2])
    heights = affines[:, :3, 3] @ normal  # mm along the stack
    order = sorted(range(len(headers)), key=lambda i: heights[i])
    gaps = np.diff(heights[order])
    if gaps.min() < 1e-3:
        if gaps.max() > 1e-3:
            raise ValueError(
                f"slices in {folder} share places (several echoes or times): put each volume in its own "
                "folder."
            )
        times = sorted(range(len(headers)), key=lambda i: int(headers[i][1].get("InstanceNumber") or 0))
        return _stack(headers, times, None, voi)
    step = float(np.median(gaps))
    if np.abs(gaps - step).max() > EVEN * step:
        raise ValueError(
            f"slices in {folder} are {gaps.min():.2f} to {gaps.max():.2f} mm apart, but even steps are "
            "expected: "
            "one may be missing; complete the series or pass the files one by one."
        )
    affine = affines[order[0]].copy()
    affine[:3, 2] = (affines[order[-1], :3, 3] - affine[:3, 3]) / (len(order) - 1)
    return _stack(headers, order, affine, voi)


def _stack(
    headers: list[File], order: list[int], affine: np.ndarray | None, voi: bool
) -> MetaTensor:  # fmt: skip
    slices = [_read_slice(*headers[i], voi) for i in order]
    values = torch.stack([s.as_subclass(Tensor) for s in slices], dim=-1)  # (C, rows, columns, N)
    meta = {**_described(headers[0][1]), "unit": slices[0].meta["unit"]}
    if affine is None or values.shape[0] != 1:
        return MetaTensor(values, meta={**meta, "kind": "frames"})
    volume = values.transpose(1, 2).contiguous()
    return MetaTensor(
        volume, affine=torch.from_numpy(affine), meta={**meta, "kind": "volume", "placed": True}
    )


def _read_slice(path: Path, header: Header, voi: bool, alone: bool = False) -> MetaTensor:
    try:
        if alone:
            return read_file(path, voi)
        values, unit = pixels(deidentify(_dataset(path)), path.name, voi)
    except ValueError as error:
        if path.name in str(error):
            raise
        raise ValueError(
            f"{path.name} cannot be read as DICOM ({str(error).splitlines()[0][:160]}): copy it again."
        ) from error
    except Exception as error:
        raise ValueError(
            f"{path.name} cannot be read as DICOM ({error}): copy or export it again."
        ) from error
    return MetaTensor(values, meta={"unit": unit})


def series_uids(path: Path) -> list[str]:
    """The hashed UIDs of the series in a DICOM file or folder, for a manifest; none for other kinds."""
    files = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
    uids = set()
    for file in files:
        if is_dicom(file):
            header = pydicom.dcmread(file, force=True, specific_tags=["SeriesInstanceUID"])
            uids.add(str(deidentify(header).get("SeriesInstanceUID", "")))
    return sorted(uids - {""})


def _dataset(path: Path) -> Header:
    """Header and pixels; what some devices pad behind them, thousands of empty elements, is not parsed."""
    seen: list[int] = []  # the last tag; tags of padding are zero, so the pixels must be remembered

    def behind_pixels(tag: int, vr: str | None, length: int) -> bool:
        seen.append(int(tag))
        return len(seen) > 1 and seen.pop(0) == PIXELS

    with path.open("rb") as file:
        return read_partial(file, stop_when=behind_pixels, force=True)


def pixels(header: Header, name: str, voi: bool = False) -> tuple[Tensor, bool]:
    """(C, H, W) or (C, H, W, T), uint8 or float32, and whether the values are in [0, 1] already.

    Raises:
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
                _by_table(partial(_meant, header=header, index=i, voi=unit), frame)
                for i, frame in enumerate(stored[0])
            ]
        )[None]
        if dark:
            values = (1 - values) if unit else (values.max() + values.min() - values)
        stored = values
    kept = stored if stored.dtype == np.uint8 else stored.astype(np.float32)
    result = torch.from_numpy(np.moveaxis(kept, 1, -1))  # (C, H, W, T)
    return (result if frames else result[..., 0].contiguous()), unit


def _stored(header: Header) -> np.ndarray:
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
    low, high = int(stored.min()), int(stored.max())
    if stored.dtype.itemsize > 2 or stored.dtype.kind not in "iu" or stored.size <= high - low:
        return meaning(stored)
    numbers = np.arange(low, high + 1).astype(stored.dtype)
    table = meaning(numbers)
    if table is numbers:
        return stored
    places = stored.view(f"u{stored.itemsize}") - numbers[:1].view(f"u{stored.itemsize}")
    return np.take(table, places)


def _meant(stored: np.ndarray, header: Header, index: int, voi: bool) -> np.ndarray:
    """Stored numbers -> the maker's unit, or what its window shows."""
    values = _real_world(stored, header, index)
    return _voi(values, header) if voi else values  # type: ignore[return-value]


def _real_world(frame: np.ndarray, header: Header, index: int) -> np.ndarray:
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


def _voi(values: np.ndarray, header: Header) -> np.ndarray | None:
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


def _affine(header: Header) -> np.ndarray | None:
    """(4, 4) from (column, row, slice) to RAS mm, or None where the file does not say."""
    direction, position = header.get("ImageOrientationPatient"), header.get("ImagePositionPatient")
    spacing = header.get("PixelSpacing") or header.get("ImagerPixelSpacing")
    if not direction or not position or not spacing or len(direction) != 6:
        return None
    across, down = np.array(direction[:3], float), np.array(direction[3:], float)
    thickness = float(header.get("SpacingBetweenSlices") or header.get("SliceThickness") or 1.0)
    matrix = np.eye(4)
    matrix[:3, 0] = across * float(spacing[1])
    matrix[:3, 1] = down * float(spacing[0])
    matrix[:3, 2] = np.cross(across, down) * (abs(thickness) or 1.0)
    matrix[:3, 3] = [float(v) for v in position]
    if abs(np.linalg.det(matrix)) < 1e-9:
        return None
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ matrix  # LPS -> RAS


def _mirrored(header: Header) -> tuple[bool, bool]:
    """Whether rows and columns of a radiograph run against the usual: head up, patient's right at image left.

    Side views are left as they are: there both ways are usual.
    """
    along = [str(direction)[:1].upper() for direction in header.get("PatientOrientation") or []]
    if header.get("Modality") not in ("CR", "DX", "RG", "RF") or len(along) != 2:
        return False, False
    return along[1] == "H", along[0] == "R"


def _described(header: Header) -> dict[str, Any]:
    """The facts about the picture that carry no name, date or number of a patient."""
    return {"modality": str(header.get("Modality", "")), **_regions(header)}


def _regions(header: Header) -> dict[str, list[list[int]]]:
    """Where an ultrasound picture shows tissue or flow: boxes [top, left, bottom, right] (PS3.3, C.8.5.5)."""
    ends = ("RegionLocationMinY0", "RegionLocationMinX0", "RegionLocationMaxY1", "RegionLocationMaxX1")
    boxes = [
        [int(region[end].value) for end in ends]
        for region in header.get("SequenceOfUltrasoundRegions") or []
        if region.get("RegionSpatialFormat") in (1, 2) and all(end in region for end in ends)
    ]  # 2-D and M-mode; spectra and curves are no pictures of the patient
    return {"regions": boxes} if boxes else {}
