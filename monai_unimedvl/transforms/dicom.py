# SPDX-License-Identifier: Apache-2.0
"""DICOM: one file or the folder of a series -> a MetaTensor in real-world values, with its place in RAS mm.

What the stored numbers mean stands in `dicom_values.py`. Of each header only what `deidentify` keeps is ever
looked at: no name, date or number of a patient gets in. The slices of a series are read one after the other
into one array, which lies in a file where it is large.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import torch
from monai.data import MetaTensor
from pydicom.encaps import generate_fragments
from pydicom.filereader import read_partial
from torch import Tensor

from monai_unimedvl.packages import MissingPackage
from monai_unimedvl.transforms.deidentify import KEPT, deidentify, is_dicom
from monai_unimedvl.transforms.dicom_values import pixels
from monai_unimedvl.transforms.restack import empty_volume
from monai_unimedvl.transforms.slices import display_of, nearest_plane
from monai_unimedvl.transforms.video import read_video

Header = pydicom.Dataset
File = tuple[Path, Header, Header]  # its name, what is kept of its header, and all of it but its pixels
FILMS = "1.2.840.10008.1.2.4.10"  # .100 to .108: MPEG-2, MPEG-4 AVC, HEVC
GROUP, PIXELS = 0x7FE00000, 0x7FE00010  # the group of the pixels, and their tag
EVEN = 0.05  # of the spacing: how far gaps between slices may differ


def holds_dicom(path: str | Path) -> bool:
    """Whether a path is a DICOM file, or a folder with one in it."""
    path = Path(path)
    if path.is_dir():
        return any(is_dicom(file) for file in path.iterdir() if file.is_file())
    return path.is_file() and is_dicom(path)


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
    display = display_of(as_volume.shape[1:], affine, nearest_plane(affine, 2))
    meta |= {"placed": True, "flipped": list(display.flipped[:2]), "transposed": display.axes[0] == 0}
    shown = display.shown(as_volume)[..., 0].contiguous()
    return MetaTensor(shown, affine=torch.from_numpy(display.affine), meta=meta)


def read_series(folder: Path, files: list[Path], voi: bool = False) -> MetaTensor:
    """(1, columns, rows, slices) and its affine; frames (C, H, W, T) where all slices share one place.

    Raises:
        ValueError: as `open_series`.
    """
    values, affine, meta = open_series(folder, files, voi)
    place = None if affine is None else torch.from_numpy(affine)
    return MetaTensor(torch.from_numpy(values), affine=place, meta=meta)


def open_series(
    folder: Path, files: list[Path], voi: bool = False
) -> tuple[np.ndarray, np.ndarray | None, dict[str, Any]]:
    """(1, columns, rows, slices), perhaps mapped from a temporary file, its affine (4, 4), and its meta.

    Where slices have no place, or all the same, it is (C, H, W, T) without affine.

    Raises:
        ValueError: several series, slices that differ in size or direction, a gap where slices are missing.
    """
    headers: list[File] = []
    for path in files:
        try:
            source = _dataset(path, defer=True)
            before = source[:GROUP]
            before.file_meta = source.file_meta
            header = deidentify(before)
        except Exception as error:  # pydicom raises many kinds for damaged headers
            raise ValueError(
                f"{path.name} in {folder} cannot be read as DICOM ({error}): copy it again."
            ) from error
        if "Rows" in header and "Columns" in header:
            headers.append((path, header, source))
    if not headers:
        raise ValueError(
            f"folder {folder} holds no images: its {len(files)} DICOM files have no pixels; "
            "name the folder of an image series."
        )
    series = {str(header.get("SeriesInstanceUID", "")) for _, header, _ in headers}
    if len(series) > 1:
        raise ValueError(
            f"folder {folder} holds {len(series)} DICOM series, but one is expected: put each in its own "
            "folder."
        )
    if len(headers) == 1:
        return _alone(headers[0][0], voi)
    shapes = {(int(h.Rows), int(h.Columns)) for _, h, _ in headers}
    if len(shapes) > 1:
        raise ValueError(
            f"slices in {folder} differ in size, {sorted(shapes)}: move the odd ones (scouts) away."
        )
    places = [_affine(header) for _, header, _ in headers]
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


def _alone(path: Path, voi: bool) -> tuple[np.ndarray, np.ndarray | None, dict[str, Any]]:
    """A folder that holds one picture."""
    with _reading(path):
        image = read_file(path, voi)
    affine = image.affine.numpy() if image.meta.get("placed") else None
    meta = {key: value for key, value in image.meta.items() if key != "affine"}
    return image.as_subclass(Tensor).numpy(), affine, meta


def _stack(
    headers: list[File], order: list[int], affine: np.ndarray | None, voi: bool
) -> tuple[np.ndarray, np.ndarray | None, dict[str, Any]]:
    """The slices in this order, read one at a time."""
    stack: np.ndarray | None = None  # (C, columns, rows, N)
    unit = False
    for place, number in enumerate(order):
        path, header, source = headers[number]
        with _reading(path):
            one, in_unit = pixels(_with_pixels(header, source), path.name, voi)  # (C, rows, columns)
        if one.ndim != 3 or stack is not None and len(one) != len(stack):
            raise ValueError(
                f"{path.name} has shape {tuple(one.shape)} among the slices of a series, but one picture a "
                "file is expected: put files of many frames into folders of their own."
            )
        values = one.transpose(1, 2).numpy()
        if stack is None:
            unit, stack = in_unit, empty_volume((*values.shape, len(order)), values.dtype)
        elif values.dtype != stack.dtype:
            stack = stack.astype(np.float32)
        stack[..., place] = values
    assert stack is not None
    meta = {**_described(headers[0][1]), "unit": unit}
    if affine is None or len(stack) != 1:
        return stack.transpose(0, 2, 1, 3), None, {**meta, "kind": "frames"}
    return stack, affine, {**meta, "kind": "volume", "placed": True}


def _with_pixels(header: Header, source: Header) -> Header:
    """What is kept of a header, and its pixels, which are read from their file now."""
    whole = Header()
    whole.update(header)
    whole.file_meta = header.file_meta
    for tag in source.keys():
        if tag >= GROUP and tag in KEPT:
            whole[tag] = source[tag]
    return whole


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn whatever pydicom raises, but that a package is missing, into one line with the file's name."""
    try:
        yield
    except ValueError as error:
        if path.name in str(error) or isinstance(error, MissingPackage):
            raise
        raise ValueError(
            f"{path.name} cannot be read as DICOM ({str(error).splitlines()[0][:160]}): copy it again."
        ) from error
    except Exception as error:
        raise ValueError(
            f"{path.name} cannot be read as DICOM ({error}): copy or export it again."
        ) from error


def series_uids(path: Path) -> list[str]:
    """The hashed UIDs of the series in a DICOM file or folder, for a manifest; none for other kinds."""
    files = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
    uids = set()
    for file in files:
        if is_dicom(file):
            header = pydicom.dcmread(file, force=True, specific_tags=["SeriesInstanceUID"])
            uids.add(str(deidentify(header).get("SeriesInstanceUID", "")))
    return sorted(uids - {""})


def _dataset(path: Path, defer: bool = False) -> Header:
    """Header and pixels; what some devices pad behind them, thousands of empty elements, is not parsed.

    With `defer` pixels stay in the file until they are asked for.
    """
    seen: list[int] = []  # the last tag; tags of padding are zero, so the pixels must be remembered

    def behind_pixels(tag: int, vr: str | None, length: int) -> bool:
        seen.append(int(tag))
        return len(seen) > 1 and seen.pop(0) == PIXELS

    with path.open("rb") as file:
        return read_partial(file, stop_when=behind_pixels, defer_size="4 KB" if defer else None, force=True)


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
