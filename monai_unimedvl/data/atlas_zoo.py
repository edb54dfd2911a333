# SPDX-License-Identifier: Apache-2.0
"""Scans of kinds that the corpus does not hold, to see a model fail: never trained on, never scored.

Five whole DICOM files of pydicom-data (MIT), without burnt-in names. What they show is from their headers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from monai_unimedvl.data.fetch import default_root, sources

__all__ = ["ZooScan", "zoo"]


@dataclass(frozen=True)
class ZooScan:
    """A file, the recipe that reads it, and what it shows."""

    path: Path
    recipe: str
    shows: str


_FILES = {
    "RG1_UNCR.dcm": ("xray", "frontal chest radiograph with nodules"),
    "RG3_UNCR.dcm": ("xray", "radiograph of a lower leg with a non-ossifying fibroma of the distal tibia"),
    "MR2_UNCR.dcm": ("mri", "MRI of a shoulder"),
    "693_UNCR.dcm": ("ct", "plain CT of a head"),
    "explicit_VR-UN.dcm": ("ct", "CT of an abdomen"),
}


def zoo(root: str | Path | None = None) -> list[ZooScan]:
    """The scans that are in the cache, in a fixed order; none where pydicom-data has not been fetched."""
    base = Path(root) if root is not None else default_root()
    folder = base / next(source.folder for source in sources() if source.name == "pydicom-data")
    return [
        ZooScan(folder / name, recipe, shows)
        for name, (recipe, shows) in _FILES.items()
        if (folder / name).is_file()
    ]
