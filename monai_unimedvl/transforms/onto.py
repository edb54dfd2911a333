# SPDX-License-Identifier: Apache-2.0
"""A mask or a second picture on the pixels of a picture that a recipe has cut, turned and framed.

The picture's affine says where each of its pixels lies: in RAS mm, or, of a flat picture without place, in
rows and columns of its file. There the other one is read: labels at the nearest voxel, values between pixels.
  C channels   H rows   W columns   P points
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from monai.data import MetaTensor
from torch import Tensor
from torch.nn.functional import grid_sample

from monai_unimedvl.transforms.image import meta_of
from monai_unimedvl.transforms.read import read


def labels_onto(
    mask: str | os.PathLike[str] | MetaTensor, picture: MetaTensor, values: Sequence[int]
) -> Tensor:
    """A label map on the pixels of a picture: (H, W) uint8, n where the mask holds the n-th value, else 0.

    Args:
        mask: file, or what `read` gives: a flat label map (1, H', W'), or a volume (1, X, Y, Z).
        picture: (3, H, W), as a recipe gives it.

    Raises:
        ValueError: a mask of other size, one without a place for a picture with one, or colours.
    """
    name = Path(mask).name if isinstance(mask, str | os.PathLike) else "the mask"
    found = mask if isinstance(mask, MetaTensor) else read(mask)
    points = _points(picture)  # (4, P)
    if found.shape[0] != 1:
        raise ValueError(
            f"{name} has {found.shape[0]} channels, expected label numbers: save it as a grey image."
        )
    cells = found.as_subclass(Tensor)[0]
    if found.ndim == 4:
        if not _placed(picture):
            raise ValueError(f"{name} is a volume, but its image a flat picture: pair volumes with volumes.")
        at = np.linalg.inv(found.affine.numpy()) @ points
    else:
        _same_size(name, tuple(found.shape[1:]), picture)
        at = _flat(picture) @ points
    places = torch.from_numpy(np.rint(at[: cells.ndim])).long()  # (2 | 3, P)
    limits = torch.tensor(cells.shape).unsqueeze(1)
    inside = ((places >= 0) & (places < limits)).all(0)
    picked = cells[tuple(places.clamp_min(0).minimum(limits - 1))].round().long()
    labels = torch.zeros(len(picked), dtype=torch.uint8)
    for n, value in enumerate(values, 1):
        labels[inside & (picked == value)] = n
    return labels.view(tuple(picture.shape[1:]))


def picture_onto(other: MetaTensor, picture: MetaTensor) -> Tensor:
    """Another picture (C, H', W') on the pixels of a picture (3, H, W): (C, H, W), 0 outside of it.

    Raises:
        ValueError: they lie apart: by more than half a slice of the finer of both, or flat pictures of other
            sizes.
    """
    name = Path(str(meta_of(other, "file", "the target"))).name
    points = _points(picture)
    if _placed(picture) and _placed(other):
        at = np.linalg.inv(other.affine.numpy()) @ points
        steps = [float(np.linalg.norm(each.affine.numpy()[:3, 2])) for each in (other, picture)]
        away = float(np.abs(at[2]).max()) * steps[0]  # mm
        if away > 0.51 * min(steps):
            raise ValueError(
                f"{name} lies {away:.1f} mm away from its image, expected the same slice (the image has "
                f"slices of {steps[1]:g} mm, {name} of {steps[0]:g} mm): register the pair, or resample one "
                "on the other."
            )
    else:
        _same_size(name, _source_size(other), picture)
        at = np.linalg.inv(_to_source(other)) @ _to_source(picture) @ _grid(picture)
    height, width = other.shape[1:]
    rows, columns = at[0], at[1]
    scaled = np.stack([(2 * columns + 1) / width - 1, (2 * rows + 1) / height - 1], -1)  # (P, 2)
    grid = torch.from_numpy(scaled).float().view(1, *picture.shape[1:], 2)
    values = other.as_subclass(Tensor).float()[None]
    return grid_sample(values, grid, mode="bilinear", align_corners=False)[0].clamp(0, 1)


def _points(picture: MetaTensor) -> np.ndarray:
    """Where the pixels of a picture lie: (4, P), row by row."""
    return picture.affine.numpy() @ _grid(picture)


def _grid(picture: Tensor) -> np.ndarray:
    rows, columns = np.meshgrid(*(np.arange(n) for n in picture.shape[1:]), indexing="ij")
    flat = rows.ravel()
    return np.stack([flat, columns.ravel(), np.zeros_like(flat), np.ones_like(flat)]).astype(np.float64)


def _placed(picture: MetaTensor) -> bool:
    return (meta_of(picture, "source") or {}).get("affine") is not None


def _to_source(picture: MetaTensor) -> np.ndarray:
    """(4, 4) from pixels of a picture to rows and columns of what was read."""
    return _flat(picture) @ picture.affine.numpy()


def _flat(picture: MetaTensor) -> np.ndarray:
    """(4, 4) from where a picture's affine leads to rows and columns of what was read."""
    place = (meta_of(picture, "source") or {}).get("affine")
    return np.eye(4) if place is None else np.linalg.inv(np.asarray(place))


def _source_size(picture: MetaTensor) -> tuple[int, ...]:
    return tuple((meta_of(picture, "source") or {}).get("size", picture.shape[1:]))


def _same_size(name: str, size: tuple[int, ...], picture: MetaTensor) -> None:
    if size != _source_size(picture):
        raise ValueError(
            f"{name} is {size[0]} x {size[1]} pixels, its image "
            f"{' x '.join(map(str, _source_size(picture)))}: bring both to one size."
        )
