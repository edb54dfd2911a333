# SPDX-License-Identifier: Apache-2.0
"""From a volume, or a run of frames, to pictures that know where they came from.

Pictures are shown as radiologists see them: the patient's right is at image left in axial and coronal
pictures; up is anterior in axial and superior in coronal and sagittal ones; anterior is at image left in
sagittal ones. Slices run in the patient's +R, +A, +S direction (sagittal left to right, coronal back to
front, axial bottom to top). Nothing is resampled: an oblique volume is cut along its own axis nearest to the
plane.
Volumes are (C, X, Y, Z) with an affine to RAS mm, as MONAI's readers give them; a tensor without
affine is taken to lie in RAS. Frames are (C, H, W, T) with `meta["kind"] == "frames"`.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, ClassVar

import nibabel
import numpy as np
import torch
from monai.config import NdarrayOrTensor
from monai.data import MetaTensor
from monai.transforms import Transform
from monai.utils import TransformBackends
from torch import Tensor

from monai_unimedvl.transforms.image import PerKey, check_picture

# plane -> where rows, columns and slices lead in the patient: Right, Left, Anterior, Posterior, Superior, ...
PLANES = {"sagittal": "IPR", "coronal": "ILA", "axial": "PLS"}
POLICIES = ("uniform", "center", "all")


def nearest_plane(normal: np.ndarray) -> str:
    """The plane whose normal is nearest to `normal` (3,) in RAS."""
    return tuple(PLANES)[int(np.abs(normal).argmax())]


def to_display(volume: Tensor, affine: np.ndarray, plane: str) -> tuple[Tensor, np.ndarray]:
    """(C, X, Y, Z), affine (4, 4) -> (C, H, W, D) as displayed, and the affine of (row, column, slice)."""
    here = nibabel.orientations.io_orientation(affine)
    there = nibabel.orientations.axcodes2ornt(tuple(PLANES[plane]))
    turn = nibabel.orientations.ornt_transform(here, there)  # per input axis: output axis, flip
    order = np.argsort(turn[:, 0]).astype(int)
    flips = [1 + int(axis) for axis in range(3) if turn[axis, 1] < 0]
    shown = (volume.flip(flips) if flips else volume).permute(0, *(1 + int(axis) for axis in order))
    back = nibabel.orientations.inv_ornt_aff(turn, tuple(volume.shape[1:]))
    return shown, affine @ back


def picked(count: int, policy: str, available: int, shape: tuple[int, ...], name: str) -> list[int]:
    """Which of `available` slices a policy takes, in order.

    uniform: the middle one of each of `count` equal parts; center: `count` neighbours around the middle; all.

    Raises:
        ValueError: more are wanted than there are.
    """
    if policy == "all":
        return list(range(available))
    if count > available:
        raise ValueError(
            f"{name}(count={count}) needs {count} slices, got {available} in shape {shape}: "
            'lower count or use policy="all".'
        )
    if policy == "center":
        first = (available - count) // 2
        return list(range(first, first + count))
    return [(2 * i + 1) * available // (2 * count) for i in range(count)]


def picture(
    values: Tensor, of: MetaTensor, affine: np.ndarray | None, plane: str | None, index: int, available: int
) -> MetaTensor:
    """One slice or frame (C, H, W) with `meta["source"]`, which no later step changes.

    source: file, shape as read, kind, plane, index and count along it, size (H, W), spacing in mm (row,
    column, slice), position of the middle in RAS mm, affine (4, 4) from (row, column, 0) to RAS mm. None
    where unknown.
    """
    height, width = values.shape[1:]
    source: dict[str, Any] = {
        "file": of.meta.get("file"), "shape": list(of.shape), "kind": of.meta.get("kind"), "plane": plane,
        "index": index, "count": available, "size": [height, width],
        "spacing": None, "position": None, "affine": None,
    }  # fmt: skip
    if affine is not None:
        middle = affine @ [(height - 1) / 2, (width - 1) / 2, 0, 1]
        source["spacing"] = np.linalg.norm(affine[:3, :3], axis=0).round(6).tolist()
        source["position"] = middle[:3].round(4).tolist()
        source["affine"] = affine.tolist()
    meta = {key: of.meta[key] for key in ("file", "filename_or_obj", "modality", "unit") if key in of.meta}
    place = torch.eye(4, dtype=torch.float64) if affine is None else torch.from_numpy(affine)
    return MetaTensor(values.contiguous(), affine=place, meta={**meta, "kind": "image", "source": source})


class SelectSlices(Transform):
    """Slices of a volume, or frames of a run, as a list of pictures; a single picture becomes a list of one.

    Args:
        count: how many; unused with policy "all".
        policy: "uniform" over the length, "center" = neighbours around the middle, or "all".
        plane: "axial", "coronal" or "sagittal"; unused for frames and pictures.
    """

    backend: ClassVar = [TransformBackends.TORCH]

    def __init__(self, count: int = 8, policy: str = "uniform", plane: str = "axial") -> None:
        if policy not in POLICIES:
            raise ValueError(f"policy {policy!r} is not known: use one of {', '.join(POLICIES)}.")
        if plane not in PLANES:
            raise ValueError(f"plane {plane!r} is not known: use one of {', '.join(PLANES)}.")
        if count < 1:
            raise ValueError(
                f"SelectSlices got count={count}, expected 1 or more: name how many slices you want."
            )
        self.count, self.policy, self.plane = count, policy, plane

    def __call__(self, image: NdarrayOrTensor) -> list[MetaTensor]:
        """(1, X, Y, Z), (C, H, W, T) frames or (C, H, W) -> list of (C, H, W), each with `meta["source"]`."""
        x = image if isinstance(image, MetaTensor) else MetaTensor(torch.as_tensor(image))
        known = "kind" in x.meta or isinstance(image, MetaTensor)
        if x.ndim == 3:
            if "source" in x.meta:
                return [x]
            affine = x.affine.numpy().astype(float) if x.meta.get("placed") else None
            plane = None if affine is None else nearest_plane(affine[:3, 2])
            return [picture(x.as_subclass(Tensor), x, affine, plane, 0, 1)]
        if x.ndim != 4:
            raise ValueError(
                f"SelectSlices got shape {tuple(x.shape)}, expected a volume (1, X, Y, Z), frames (C, H, "
                "W, T) "
                "or a picture (C, H, W): choose one volume of the series."
            )
        if x.meta.get("kind") == "frames":
            return self._frames(x)
        return self._slices(x, x.affine.numpy().astype(float) if known else np.eye(4))

    def _frames(self, frames: MetaTensor) -> list[MetaTensor]:
        available = frames.shape[3]
        affine = frames.affine.numpy().astype(float) if frames.meta.get("placed") else None
        values = frames.as_subclass(Tensor)
        indices = picked(self.count, self.policy, available, tuple(frames.shape), type(self).__name__)
        return [picture(values[..., i], frames, affine, None, i, available) for i in indices]

    def _slices(self, volume: MetaTensor, affine: np.ndarray) -> list[MetaTensor]:
        plane = self.plane
        if 1 in volume.shape[1:]:  # one slice thick: there is one way to look at it
            thin = volume.shape[1:].index(1)
            plane = nearest_plane(affine[:3, thin])
        shown, place = to_display(volume.as_subclass(Tensor), affine, plane)  # (C, H, W, D)
        available, count = shown.shape[3], self.count
        if 1 in volume.shape[1:] and available == 1:
            count = 1
        pictures = []
        for index in picked(count, self.policy, available, tuple(volume.shape), type(self).__name__):
            here = place.copy()
            here[:3, 3] += index * place[:3, 2]
            check_picture(shown[..., index], f"{plane} slice of shape {tuple(volume.shape)}")
            pictures.append(picture(shown[..., index], volume, here, plane, index, available))
        return pictures


class SelectFrames(SelectSlices):
    """Frames of a run of pictures (cine, pages, a folder) as a list; refuses volumes.

    Args:
        count: how many; unused with policy "all".
        policy: "uniform" over the length, "center" = neighbours around the middle, or "all".
    """

    def __init__(self, count: int = 8, policy: str = "all") -> None:
        super().__init__(count, policy)

    def _slices(self, volume: MetaTensor, affine: np.ndarray) -> list[MetaTensor]:
        raise ValueError(
            f"a 4-D volume came, shape {tuple(volume.shape)}, where a 3-D picture (C, H, W) is needed: "
            "use a recipe for volumes (mri, ct), or pass one slice."
        )


class _ListPerKey(PerKey):
    """One mapping per slice: every key holds its slice, the rest is copied."""

    def __call__(self, data: Mapping[Hashable, Any]) -> list[dict[Hashable, Any]]:
        """list of mappings, one per slice; all keys must give the same number of slices."""
        lists = {key: self.transform(data[key]) for key in self.key_iterator(dict(data))}
        counts = {len(pictures) for pictures in lists.values()}
        if len(counts) > 1:
            raise ValueError(
                f"keys {list(lists)} give different numbers of slices, {sorted(counts)}: align them."
            )
        return [
            {**data, **{key: pictures[i] for key, pictures in lists.items()}}
            for i in range(max(counts, default=0))
        ]


class SelectSlicesd(_ListPerKey):
    """Dictionary form of `SelectSlices`: one mapping per slice."""

    array = SelectSlices


class SelectFramesd(_ListPerKey):
    """Dictionary form of `SelectFrames`: one mapping per frame."""

    array = SelectFrames


SelectSlicesD = SelectSlicesDict = SelectSlicesd
SelectFramesD = SelectFramesDict = SelectFramesd
