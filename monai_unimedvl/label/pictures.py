# SPDX-License-Identifier: Apache-2.0
"""What a request names -> the pictures that the model sees: to the bit what every other door gives it.

(X, Y, Z) voxels   (3, H, W) a picture
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from monai.data import MetaTensor

from monai_unimedvl.label.knobs import Knob
from monai_unimedvl.networks.unimedvl import UniMedVL
from monai_unimedvl.transforms import modalities
from monai_unimedvl.transforms.choosing import Choice, choose, knows_only_squares, modality_of, usual_count
from monai_unimedvl.transforms.dicom import holds_dicom
from monai_unimedvl.transforms.lazy import open_volume
from monai_unimedvl.transforms.read import NIFTI, VOLUMES, dicom_files
from monai_unimedvl.transforms.slices import display_of, plane_of

AUTO = "auto"
PLANES = ("axial", "coronal", "sagittal")


def reading_knobs() -> dict[str, Knob]:
    """The settings of how a file is read."""
    return {
        "modality": Knob((AUTO, *modalities())),
        "plane": Knob((AUTO, *PLANES)),
        "slice": Knob(AUTO),
        "count": Knob(0, 0, 64),  # 0: as many as suit the model
        "window": Knob(""),
    }


def source_of(path: str | Path) -> Path:
    """The file itself; or the DICOM series that MONAI Label's data store has made a NIfTI of.

    The series says its own modality and has its full range of values, which the conversion drops.
    """
    path = Path(path)
    for ending in NIFTI:
        if path.name.endswith(ending):
            folder = path.with_name(path.name.removesuffix(ending))
            if folder.is_dir() and holds_dicom(folder):
                return folder
    return path


def choice_of(values: Mapping[str, Any], network: UniMedVL) -> Choice:
    """What of a file is read, by the settings of a request."""
    said = {key: values[key] if values[key] not in (AUTO, "") else None for key in values}
    return Choice(
        modality=said["modality"], plane=said["plane"], slice=said["slice"],
        count=values["count"] or usual_count(network), window=said["window"],
        square=knows_only_squares(network),
    )  # fmt: skip


def pictures_of(
    path: str | Path, values: Mapping[str, Any], network: UniMedVL
) -> tuple[list[MetaTensor], str]:
    """The pictures (3, H, W) in [0, 1] that a request is about, and which they are, in words.

    Raises:
        ValueError: a file that is no image, a modality that must be named, a slice that is not there.
    """
    return choose(source_of(path), choice_of(values, network))


def resolved(values: Mapping[str, Any], path: Path, usual: str = "") -> dict[str, Any]:
    """The settings with the modality that is meant: what was asked for, what the file says, or the usual one.

    Raises:
        ValueError: nobody says.
    """
    if values["modality"] != AUTO:
        return dict(values)
    try:
        modality, _ = modality_of(path)
    except ValueError:
        if not usual or not path.exists():
            raise
        modality = usual
    return {**values, "modality": modality}


def is_volume(path: str | Path) -> bool:
    """Whether a file is a volume, whose result is one too; a DICOM folder of one image is none."""
    path = source_of(path)
    if not path.is_dir():
        return path.name.lower().endswith(VOLUMES)
    files = dicom_files(path)
    if len(files) != 1:
        return True
    header = pydicom.dcmread(files[0], stop_before_pixels=True, specific_tags=["NumberOfFrames"])
    return int(header.get("NumberOfFrames") or 1) > 1


def slice_at(path: Path, point: Sequence[float], plane: str) -> tuple[int, list[float]]:
    """The slice of a volume that holds a voxel, and where that lies in RAS mm.

    Args:
        point: (i, j, k) in voxels, as Slicer and OHIF send it.

    Raises:
        ValueError: outside of the volume, or no volume.
    """
    volume = open_volume(path)
    shape = tuple(volume.shape[1:])
    if len(point) != 3 or any(not -0.5 <= x <= n - 0.5 for x, n in zip(point, shape, strict=True)):
        raise ValueError(
            f"point {list(point)} came, expected voxels (i, j, k) of an image of {shape}: take one inside."
        )
    place = volume.affine @ [*point, 1.0]
    return slice_of(path, place[:3].tolist(), plane, volume=volume), [round(float(x), 3) for x in place[:3]]


def slice_of(path: Path, place: Sequence[float], plane: str, *, volume: Any = None) -> int:
    """The number of the slice that holds a point in RAS mm.

    Raises:
        ValueError: none does.
    """
    volume = open_volume(path) if volume is None else volume
    shape = tuple(volume.shape[1:])
    display = display_of(shape, volume.affine, plane_of(shape, volume.affine, plane))
    index = round(float((np.linalg.inv(display.affine) @ [*place, 1.0])[2]))
    count = shape[display.axes[2]]
    if not 0 <= index < count:
        raise ValueError(
            f"the point lies in {plane} slice {index}, expected 0 to {count - 1}: take one inside."
        )
    return index
