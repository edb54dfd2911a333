# SPDX-License-Identifier: Apache-2.0
"""The slices of a volume as radiologists see them, cut when asked for, each with its place in mm.

The patient's right is at image left in axial and coronal pictures; up is anterior in axial and superior in
coronal and sagittal ones; anterior is at image left in sagittal ones. Slices run in the patient's +R, +A, +S
direction (sagittal left to right, coronal back to front, axial bottom to top). Nothing is resampled: an
oblique volume is cut along its own axis nearest to the plane.
  C channels or points in time   X, Y, Z voxels as stored   H rows   W columns   D slices
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import nibabel
import numpy as np
import torch
from monai.data import MetaTensor
from torch import Tensor

from monai_unimedvl.transforms.image import like_shown

# plane -> where rows, columns and slices lead in the patient: Right, Left, Anterior, Posterior, Superior, ...
PLANES = {"sagittal": "IPR", "coronal": "ILA", "axial": "PLS"}
PROJECTIONS = ("mean", "max", "min")
BRIGHT = 0.1  # of the range of values: the patient, and not the air around
OCCUPIED = 0.02  # of a slice; with less of it bright it shows nothing
# of the meta of a volume or run
KEPT = ("file", "filename_or_obj", "modality", "unit", "blanked", "view", "body")


def check_plane(plane: str) -> str:
    """`plane` itself; raises ValueError where it is none of `PLANES`."""
    if plane not in PLANES:
        raise ValueError(f"plane {plane!r} is not known: use one of {', '.join(PLANES)}.")
    return plane


def nearest_plane(affine: np.ndarray, axis: int) -> str:
    """The plane whose slices, as `display_of` turns them, lie one after the other along a stored `axis`.

    Not that of the largest part of the axis's direction: of an image that is oblique twice another axis may
    have more of it.
    """
    return tuple(PLANES)[int(nibabel.orientations.io_orientation(affine)[axis, 0])]


def plane_of(shape: Sequence[int], affine: np.ndarray, plane: str) -> str:
    """`plane`; or that in which a volume (X, Y, Z) of one slice lies, which can be seen in no other."""
    thin = next((axis for axis, side in enumerate(shape) if side == 1), None)
    return check_plane(plane) if thin is None else nearest_plane(affine, thin)


@dataclass(frozen=True)
class Display:
    """How a volume is turned to be seen: the stored axis of (row, column, slice), and which of them flip.

    `affine` (4, 4) leads from (row, column, slice) to RAS mm.
    """

    axes: tuple[int, int, int]
    flipped: tuple[bool, bool, bool]
    affine: np.ndarray

    def shown(self, values: Any) -> Any:
        """An array (C, X, Y, Z) as a view (C, H, W, D) on the same memory; a flipped tensor is copied."""
        order = (0, *(1 + axis for axis in self.axes))
        if isinstance(values, Tensor):
            flips = [1 + place for place in range(3) if self.flipped[place]]
            turned = values.permute(order)
            return turned.flip(flips) if flips else turned
        steps = tuple(slice(None, None, -1 if flip else 1) for flip in self.flipped)
        return values.transpose(order)[(slice(None), *steps)]


def display_of(shape: Sequence[int], affine: np.ndarray, plane: str) -> Display:
    """How a volume of `shape` (X, Y, Z) is turned to be seen in `plane`."""
    here = nibabel.orientations.io_orientation(affine)
    there = nibabel.orientations.axcodes2ornt(tuple(PLANES[plane]))
    turn = nibabel.orientations.ornt_transform(here, there)  # per stored axis: shown axis, flip
    axes = np.argsort(turn[:, 0]).astype(int)
    back = nibabel.orientations.inv_ornt_aff(turn, tuple(shape))
    a, b, c = (int(axis) for axis in axes)
    flipped = bool(turn[a, 1] < 0), bool(turn[b, 1] < 0), bool(turn[c, 1] < 0)
    return Display((a, b, c), flipped, affine @ back)


def to_display(volume: Tensor, affine: np.ndarray, plane: str) -> tuple[Tensor, np.ndarray]:
    """(C, X, Y, Z), affine (4, 4) -> (C, H, W, D) as displayed, and the affine of (row, column, slice)."""
    display = display_of(volume.shape[1:], affine, plane)
    return display.shown(volume), display.affine


@dataclass
class Volume:
    """A volume that may lie on disk.

    Args:
        values: (C, X, Y, Z) as stored, an array (perhaps mapped from a file) or a tensor.
        affine: (4, 4) from voxels to RAS mm.
        slope, inter: stored value * slope + inter is the true one.
        nonfinite: what NaN and Inf are read as; None keeps them.
        meta: what the pictures inherit: file, kind, modality, unit.
    """

    values: np.ndarray | Tensor
    affine: np.ndarray
    slope: float = 1.0
    inter: float = 0.0
    nonfinite: float | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(C, X, Y, Z)"""
        return tuple(self.values.shape)  # type: ignore[return-value]

    @property
    def dtype(self) -> torch.dtype:
        """The type of the values as they are stored."""
        if isinstance(self.values, Tensor):
            return self.values.dtype
        return torch.from_numpy(np.zeros(0, self.values.dtype.newbyteorder("="))).dtype

    def true(self, stored: Any) -> Tensor:
        """Part of `values` in its unit. Arrays give a copy: uint8 where nothing scales them, else float32."""
        scaled = (self.slope, self.inter) != (1.0, 0.0)
        if isinstance(stored, Tensor):
            part = stored.as_subclass(Tensor)
        else:
            kind = np.dtype(np.float64 if scaled else np.float32)
            if not scaled and stored.dtype in (np.uint8, np.bool_):
                kind = np.dtype(np.uint8)
            part = torch.from_numpy(np.array(stored, dtype=kind, order="C"))
        if scaled:
            part = (part.double() * self.slope + self.inter).float()
        if self.nonfinite is not None and part.is_floating_point():
            part = torch.nan_to_num(part, self.nonfinite, self.nonfinite, self.nonfinite)
        return part

    def channel(self, index: int) -> Volume:
        """One channel, or time, as a volume (1, X, Y, Z) on the same memory."""
        return replace(self, values=self.values[index : index + 1])

    def sample(self, most: int) -> Tensor:
        """At most about `most` voxels (C, x, y, z), thinned evenly; all where there are no more."""
        count = int(np.prod(self.shape))
        step = max(1, math.ceil((count / most) ** (1 / 3) - 1e-9))
        return self.true(self.values[:, ::step, ::step, ::step])

    def around_body(self, bounds: tuple[float, float] | None = None) -> Volume:
        """The same volume, whose pictures know the middle of the box around what is bright in all of it.

        It is `meta["body"]`, in RAS mm, for a `SquareField` that is the same for all slices.

        Args:
            bounds: the values that will be shown as black and white, where they are known.
        """
        sample = self.sample(1_000_000)[0]
        shown = self.meta.get("unit") and like_shown(sample)
        low, high = (0.0, 1.0) if shown else bounds or _range(sample)
        bright = (sample > low + BRIGHT * (high - low)).float()
        middle = []
        for axis in range(3):
            share = bright.mean([other for other in range(3) if other != axis])
            found = (share >= OCCUPIED).nonzero().flatten().tolist() or [0, len(share) - 1]
            middle.append((found[0] + found[-1] + 1) / 2 * self.shape[1 + axis] / len(share) - 0.5)
        place = self.affine @ [*middle, 1.0]
        return replace(self, meta={**self.meta, "body": place[:3].round(4).tolist()})

    def release(self) -> None:
        """Let the system drop the pages that were read from disk; they come back when needed."""
        release(self.values)


def release(values: Any) -> None:
    """Drop the pages of a mapped array from memory (they stay in its file); nothing for other arrays."""
    while values is not None and not isinstance(values, mmap.mmap):
        mapped = getattr(values, "_mmap", None)
        values = getattr(values, "base", None) if mapped is None else mapped
    if isinstance(values, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        values.madvise(mmap.MADV_DONTNEED)


class Slices(Sequence[MetaTensor]):
    """The slices of a volume: `[i]` is (C, H, W) with `meta["source"]`.

    Args:
        plane: "axial", "coronal" or "sagittal".
    """

    def __init__(self, volume: Volume, plane: str) -> None:
        self.volume, self.plane = volume, check_plane(plane)
        self.display = display_of(volume.shape[1:], volume.affine, plane)
        self.gap = float(np.linalg.norm(self.display.affine[:3, 2]))  # mm from slice to slice
        x, y, z = (volume.shape[1 + axis] for axis in self.display.axes)
        self.size, self.number = (x, y), z

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: int) -> MetaTensor:  # type: ignore[override]
        return self.slab(index, 0.0)

    def slab(self, index: int, thickness: float, project: str = "mean") -> MetaTensor:
        """The slices whose middles lie within `thickness` mm around slice `index`, projected: (C, H, W)."""
        if not -self.number <= index < self.number:
            raise IndexError(f"slice {index} of {self.number}")
        index %= self.number
        reach = int(thickness / 2 / self.gap + 1e-6)
        first, last = max(index - reach, 0), min(index + reach, self.number - 1)
        values = self._cut(first, last)
        if last > first:
            stack = values.float()  # (C, H, W, n)
            values = stack.mean(-1) if project == "mean" else getattr(stack, f"a{project}")(-1)
        else:
            values = values[..., 0]
        place = self.display.affine.copy()
        place[:3, 3] += index * place[:3, 2]
        one = picture(values, self.volume.meta, self.volume.shape, place, self.plane, index, self.number)
        if last > first:
            one.meta["source"] |= {"slab": [first, last], "project": project}
        return one

    def occupied(self, share: float = OCCUPIED) -> list[int]:
        """Slices of which at least `share` of the pixels is above a tenth of the range of values."""
        low, high = _range(self.volume.sample(1_000_000))
        thin = max(1, min(self.size) // 64)
        found = []
        for index in range(self.number):
            bright = self._cut(index, index)[:, ::thin, ::thin] > low + BRIGHT * (high - low)
            if float(bright.float().mean()) >= share:
                found.append(index)
        return found

    def _cut(self, first: int, last: int) -> Tensor:
        """True values (C, H, W, n) of the slices `first` to `last`."""
        _, _, axis = self.display.axes
        if self.display.flipped[2]:
            first, last = self.number - 1 - last, self.number - 1 - first
        where = [slice(None)] * 3
        where[axis] = slice(first, last + 1)
        part = self.volume.true(self.volume.values[(slice(None), *where)])
        shown: Tensor = self.display.shown(part)
        return shown


def _range(sample: Tensor) -> tuple[float, float]:
    """The darkest value, and one that hardly any exceeds."""
    return float(sample.min()), float(np.percentile(sample.numpy(), 99.5))


def picture(
    values: Tensor, of: Mapping[str, Any], shape: Sequence[int], affine: np.ndarray | None,
    plane: str | None, index: int, available: int,
) -> MetaTensor:  # fmt: skip
    """One slice or frame (C, H, W) with `meta["source"]`, which no later step changes.

    source: file, shape as read, kind, plane, index and count along it, size (H, W), spacing in mm (row,
    column, slice), position of the middle in RAS mm, affine (4, 4) from (row, column, 0) to RAS mm. What is
    not known has no key, as loaders cannot put None into a batch. Of a slab also: slab (first and last
    slice) and project; of a lone DICOM that was turned as its file says: flipped (rows, columns) after it
    was transposed.
    """
    height, width = values.shape[1:]
    source: dict[str, Any] = {
        "file": of.get("file"), "shape": list(shape), "kind": of.get("kind"), "plane": plane,
        "index": index, "count": available, "size": [height, width],
    }  # fmt: skip
    source = {key: value for key, value in source.items() if value is not None}
    if affine is not None:
        middle = affine @ [(height - 1) / 2, (width - 1) / 2, 0, 1]
        source["spacing"] = np.linalg.norm(affine[:3, :3], axis=0).round(6).tolist()
        source["position"] = middle[:3].round(4).tolist()
        source["affine"] = affine.tolist()
    source |= {key: of[key] for key in ("flipped", "transposed") if key in of}
    meta = {key: of[key] for key in KEPT if key in of}
    place = torch.eye(4, dtype=torch.float64) if affine is None else torch.from_numpy(affine)
    return MetaTensor(values.contiguous(), affine=place, meta={**meta, "kind": "image", "source": source})


def place_in_words(source: Mapping[str, Any]) -> str:
    """Where a slice lies, for a prompt: "Axial slice, S +20.0 mm"; a frame or lone picture by its number."""
    if "plane" not in source or "position" not in source:
        return f"Frame {source['index'] + 1} of {source['count']}" if source["count"] > 1 else "Picture"
    axis = tuple(PLANES).index(source["plane"])
    what = "slab" if source.get("slab") else "slice"
    return f"{source['plane'].capitalize()} {what}, {'RAS'[axis]} {source['position'][axis]:+.1f} mm"
