# SPDX-License-Identifier: Apache-2.0
"""Pictures of volumes that are too large to be worked on at once: cut one by one, when they are asked for.

    cut(recipe("ct", count=8), "whole-body.nii.gz")   # as the recipe alone gives them, in less memory

Percentiles of more voxels than `lazy.MEASURED` are measured on an even share of them, so the grey levels of a
very large MRI may differ in the last digit from those of the recipe alone.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import nibabel
from monai.data import MetaTensor

from monai_unimedvl.transforms import Recipe
from monai_unimedvl.transforms.lazy import Prepared, prepare
from monai_unimedvl.transforms.read import NIFTI
from monai_unimedvl.transforms.volume import SelectSlices, picked

LARGE = 64_000_000  # voxels; 256 MB in float32


def cut(chain: Recipe, source: Any) -> Sequence[MetaTensor]:
    """The pictures (3, H, W) of a recipe; of a large volume one at a time.

    Args:
        source: what the recipe takes; large are a NIfTI file, and a volume (1, X, Y, Z) as of a DICOM series.

    Raises:
        ValueError: as the recipe.
    """
    select = next((step for step in chain.steps if type(step) is SelectSlices), None)
    if select is None or select.slab or select.policy not in ("uniform", "center", "all"):
        return chain(source)
    if voxels(source) <= LARGE:
        return chain(source)
    try:
        prepared, *others = prepare(chain, source)
        if others:  # times of a series: the recipe says that one is to be chosen
            return chain(source)
        available = len(prepared.slices(select.plane))
        shape = prepared.volume.shape
        numbers = picked(select.count, select.policy, available, shape, "SelectSlices")
        return Cut(prepared, select.plane, numbers)
    except ValueError as error:
        name = Path(source).name if isinstance(source, str | os.PathLike) else ""
        raise ValueError(f"{name}: {error}") if name and name not in str(error) else error from None


def voxels(source: Any) -> int:
    """Of a NIfTI file by its header, of a volume as it is; 0 of what is none, or cannot be read."""
    if isinstance(source, MetaTensor):
        return source.numel() if source.ndim == 4 and source.meta.get("kind") == "volume" else 0
    if isinstance(source, str | os.PathLike) and Path(source).name.lower().endswith(NIFTI):
        try:
            file: Any = nibabel.load(source)
            return math.prod(file.shape)
        except Exception:  # the recipe says what is wrong with it
            return 0
    return 0


class Cut(Sequence[MetaTensor]):
    """Some slices of a prepared volume as pictures, each made anew when it is asked for."""

    def __init__(self, prepared: Prepared, plane: str, numbers: Sequence[int]) -> None:
        self.prepared, self.numbers = prepared, list(numbers)
        self.slices = prepared.slices(plane)

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, place: int) -> MetaTensor: ...
    @overload
    def __getitem__(self, place: slice) -> list[MetaTensor]: ...
    def __getitem__(self, place: int | slice) -> MetaTensor | list[MetaTensor]:
        if isinstance(place, slice):
            return [self[n] for n in range(*place.indices(len(self)))]
        made = self.prepared.picture(self.slices[self.numbers[place]])
        self.prepared.volume.release()
        return made
