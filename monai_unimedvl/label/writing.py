# SPDX-License-Identifier: Apache-2.0
"""Results as files for viewers: NIfTI, NRRD and Slicer's .seg.nrrd with names and colours, PNG, JSON.

All are marked as synthetic in the file itself; MONAI Label hands a file out and removes it, so no manifest
lies beside it: that is in the JSON of the answer.
  (X, Y, Z) columns, rows, slices; affines lead to RAS mm
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.utils import optional_import
from torch import Tensor

from monai_unimedvl.provenance import Facts, manifest_path, save_image, save_text, save_volume
from monai_unimedvl.provenance.series import LPS
from monai_unimedvl.transforms.masks import Legend

VOLUMES = (".nii.gz", ".nii", ".seg.nrrd", ".nrrd")
PICTURES = (".png", ".tif", ".tiff")
FLAT = LPS  # RAS of a picture without a place, as ITK reads one
DTYPES = ("uint8", "uint16", "int16", "int32", "float32", "float64")


def extension_of(request: Mapping[str, Any], usual: str) -> str:
    """The ending of the result: what the request wants, else the usual one.

    Raises:
        ValueError: one that is not written here.
    """
    said = request.get("result_extension") or usual
    extension = said if str(said).startswith(".") else f".{said}"
    if extension not in VOLUMES + PICTURES:
        raise ValueError(
            f"result_extension is {said!r}, expected one of {', '.join(VOLUMES + PICTURES)}: choose one."
        )
    return str(extension)


def write_values(
    values: Tensor, affine: np.ndarray, facts: Facts, request: Mapping[str, Any], usual: str = ".nii.gz",
    legend: Legend | None = None, numbers: Mapping[str, int] | None = None,
) -> str:  # fmt: skip
    """A volume (X, Y, Z) as the file that a request asks for; returns its path.

    Args:
        values: of the type to be written, unless the request has a `result_dtype`.
        legend: of labels; None for greys.
        numbers: name -> label, where they do not follow the order of the legend.

    Raises:
        ValueError: a format or type that cannot hold it.
    """
    extension = extension_of(request, usual)
    values = _cast(values, request.get("result_dtype"), labels=legend is not None)
    if extension in PICTURES:
        if values.shape[2] != 1:
            raise ValueError(
                f"result_extension is {extension!r} for a volume of {values.shape[2]} slices, expected one "
                f"of {', '.join(VOLUMES)}: choose one, or ask for one slice."
            )
        flat = values[..., 0].T  # rows first
        if legend and int(flat.max()) > 255:
            raise ValueError(
                f"label {int(flat.max())} came for a picture, which holds 0 to 255: choose one of "
                f"{', '.join(VOLUMES)}."
            )
        return write_picture(flat.to(torch.uint8) if legend else _as_colours(flat), facts, extension)
    if extension == ".seg.nrrd" and legend is None:
        raise ValueError("result_extension is '.seg.nrrd', expected labels in it: choose .nrrd or .nii.gz.")
    path = temporary(extension)
    if extension in (".nii.gz", ".nii"):
        save_volume(values, affine, path, facts)
        manifest_path(path).unlink()
    else:
        _write_nrrd(values.numpy(), affine, path, facts, legend if extension == ".seg.nrrd" else None,
                    bool(request.get("result_compress", False)), numbers)  # fmt: skip
    return str(path)


def write_picture(image: Tensor, facts: Facts, extension: str = ".png") -> str:
    """A picture (3, H, W) in [0, 1], or labels (H, W) uint8, as a file; returns its path."""
    path = temporary(extension)
    save_image(image, path, facts)
    manifest_path(path).unlink()
    return str(path)


def write_words(text: str, facts: Facts) -> str:
    """Words as a JSON file, as a data store keeps them beside an image; returns its path."""
    path = temporary(".json")
    save_text(text, path, facts)
    return str(path)


def read_nrrd(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Label numbers (X, Y, Z) of a .nrrd or single-layer .seg.nrrd, and the affine to RAS mm.

    Raises:
        ValueError: pynrrd is missing, several layers, or no place in mm.
    """
    values, header = _nrrd().read(str(path), index_order="F")
    if values.ndim != 3 or "space directions" not in header:
        raise ValueError(
            f"{Path(path).name} has shape {values.shape}, expected one layer (X, Y, Z) with a place in mm: "
            "in Slicer, export as a label map."
        )
    place = np.eye(4)
    place[:3, :3] = np.asarray(header["space directions"], dtype=float)[-3:].T
    place[:3, 3] = header["space origin"]
    if "right-anterior" not in str(header.get("space", "left-posterior-superior")).lower():
        place = LPS @ place
    return values.astype(np.int64), place


def _write_nrrd(
    values: np.ndarray, affine: np.ndarray, path: Path, facts: Facts, legend: Legend | None, packed: bool,
    numbers: Mapping[str, int] | None,
) -> None:  # fmt: skip
    place = LPS @ np.asarray(affine, dtype=np.float64)
    header: dict[str, Any] = {
        "space": "left-posterior-superior",
        "kinds": ["domain", "domain", "domain"],
        "space directions": place[:3, :3].T,
        "space origin": place[:3, 3],
        "encoding": "gzip" if packed else "raw",
        "Provenance": json.dumps(facts.manifest()),
    }
    for n, name in enumerate(_named(legend)):
        number = (numbers or _named(legend))[name]
        red, green, blue = _colour(legend, name)
        header |= {
            f"Segment{n}_ID": f"Segment_{number}",
            f"Segment{n}_Name": name,
            f"Segment{n}_Color": f"{red / 255:.6f} {green / 255:.6f} {blue / 255:.6f}",
            f"Segment{n}_LabelValue": str(number),
            f"Segment{n}_Layer": "0",
        }
    _nrrd().write(str(path), values, header, index_order="F")


def _named(legend: Legend | None) -> dict[str, int]:
    return {} if legend is None else {name: n for name, n in legend.labels.items() if n}


def _colour(legend: Legend | None, name: str) -> tuple[int, int, int]:
    return legend[name] if legend is not None and name in legend else (128, 128, 128)


def colour_map(legend: Legend) -> dict[str, list[int]]:
    """Name -> [red, green, blue] in 0..255, "uncertain" in grey."""
    return {name: list(_colour(legend, name)) for name in _named(legend)}


def _cast(values: Tensor, dtype: Any, labels: bool) -> Tensor:
    name = str(dtype).rsplit(".", 1)[-1].strip("'<>") if dtype else ""
    if not name:
        return values
    if name not in DTYPES:
        raise ValueError(f"result_dtype is {dtype!r}, expected one of {', '.join(DTYPES)}: choose one.")
    wanted = np.dtype(name)
    array = values.numpy()
    if wanted.kind in "iu":
        limits = np.iinfo(wanted)
        if labels and array.max() > limits.max:
            raise ValueError(
                f"label {array.max()} came for {name}, which holds 0 to {limits.max}: choose a wider type."
            )
        array = np.clip(np.rint(array), limits.min, limits.max)
    return torch.from_numpy(np.ascontiguousarray(array.astype(wanted)))


def _as_colours(values: Tensor) -> Tensor:
    """Greys (H, W) as a picture (3, H, W), their range as [0, 1]."""
    low, high = values.float().aminmax()
    return ((values.float() - low) / (high - low).clamp_min(1e-12)).expand(3, -1, -1)


def temporary(extension: str) -> Path:
    """A temporary file of that ending; MONAI Label removes it once it is sent."""
    number, name = tempfile.mkstemp(extension, "unimedvl")
    os.close(number)
    return Path(name)


def _nrrd() -> Any:
    module, found = optional_import("nrrd")
    if not found:
        raise ValueError("NRRD needs pynrrd, which is not installed: ask for .nii.gz, or pip install pynrrd.")
    return module
