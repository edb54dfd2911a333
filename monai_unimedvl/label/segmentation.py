# SPDX-License-Identifier: Apache-2.0
"""Label maps to DICOM SEG and back, for MONAI Label's DICOMweb data store: by highdicom, not by pydicom_seg.

The names and arguments are those of MONAI Label's own functions. What the model made is marked as synthetic;
what a person has handed in is not, though it says that a program had a share in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from monai.utils import optional_import

from monai_unimedvl.label.writing import read_nrrd, temporary
from monai_unimedvl.provenance import (
    Facts,
    manifest_path,
    reviewed_segmentation,
    sha256,
    write_segmentation,
)
from monai_unimedvl.provenance.series import LPS
from monai_unimedvl.transforms.read import read

GREY = (200, 200, 200)  # of a label without a colour

Told = Sequence[Mapping[str, Any]] | None  # [{"name": "spleen", "idx": 1, "color": [r, g, b]}, ...]


def reviewed(series_dir: str, label: str, label_info: Told, file_ext: str = "*", use_itk: bool = True) -> str:
    """A label map that a person has handed in, as a SEG on a series; returns its file.

    Args:
        label_info: name, number and colour of each label, as clients of MONAI Label send it.
        file_ext, use_itk: of MONAI Label; without meaning here.

    Raises:
        ValueError: no label is set, or the label map and its names do not fit.
    """
    labels, affine = _read(label)
    path = temporary(".dcm")
    legend = legend_of(labels, label_info)
    reviewed_segmentation(_numbered(labels), path, source=series_dir, legend=legend,
                          affine=affine)  # fmt: skip
    return str(path)


def synthetic(
    series_dir: str, label: str, label_info: Told, file_ext: str = "*", use_itk: bool = True
) -> str:
    """A label map that the model has drawn, as a SEG that is marked; arguments as of `reviewed`."""
    labels, affine = _read(label)
    path = temporary(".dcm")
    legend = legend_of(labels, label_info)
    facts = Facts("as MONAI Label was asked", 0, "", "segment", [sha256(series_dir)])
    write_segmentation(
        _numbered(labels), path, facts, source=series_dir, legend=legend, affine=affine,
        keep_identity=True,
    )  # fmt: skip
    manifest_path(path).unlink(missing_ok=True)
    return str(path)


def to_nifti(label: str, output_ext: str = ".nii.gz") -> str:
    """A SEG file, or a folder with one, as a NIfTI of label numbers; returns its file.

    Raises:
        ValueError: no SEG there.
    """
    hd, found = optional_import("highdicom")
    path = Path(label)
    file = next(iter(sorted(path.iterdir())), path) if path.is_dir() else path
    if not found or not file.is_file():
        raise ValueError(f"{path.name} holds no DICOM SEG that can be read, expected one: check highdicom.")
    volume = hd.seg.segread(file).get_volume(combine_segments=True, skip_overlap_checks=True)
    values = np.asarray(volume.array).transpose(2, 1, 0).astype(np.uint8)  # columns, rows, slices
    affine = LPS @ volume.affine[:, [2, 1, 0, 3]]
    out = temporary(".nii.gz")
    nibabel.save(nibabel.Nifti1Image(values, affine), out)
    return str(out)


def legend_of(labels: np.ndarray, label_info: Told) -> dict[str, tuple[int, int, int]]:
    """Name -> colour of each label that is there, in the order of their numbers; grey where none is told.

    Raises:
        ValueError: no label is there.
    """
    told = {_number(one, place): one for place, one in enumerate(label_info or (), 1)}
    legend: dict[str, tuple[int, int, int]] = {}
    for number in _there(labels):
        one = told.get(number, {})
        red, green, blue = (int(c) for c in list(one.get("color") or GREY)[:3])
        legend[str(one.get("name") or f"label {number}")] = (red, green, blue)
    if not legend:
        raise ValueError(
            "no label is set anywhere, but a SEG needs one voxel at least: draw something first."
        )
    return legend


def _numbered(labels: np.ndarray) -> torch.Tensor:
    """The labels as 1 to the number of names, as a SEG numbers its segments: (X, Y, Z) uint8"""
    out = np.zeros(labels.shape, np.uint8)
    for new, old in enumerate(_there(labels), 1):
        out[labels == old] = new
    return torch.from_numpy(out)


def _there(labels: np.ndarray) -> list[int]:
    """The numbers that are set, ascending."""
    return [int(n) for n in np.unique(labels) if n]


def _number(one: Mapping[str, Any], place: int) -> int:
    return int(one.get("idx", one.get("labelID", place)))


def _read(label: str) -> tuple[np.ndarray, np.ndarray]:
    """(X, Y, Z) of whole numbers, and the affine."""
    if str(label).endswith(".nrrd"):
        return read_nrrd(label)
    image = read(label)
    if image.ndim != 4:
        raise ValueError("a flat label came, expected a volume of label numbers: save it as NIfTI.")
    return image.numpy()[0].astype(np.int64), image.affine.numpy()
