# SPDX-License-Identifier: Apache-2.0
"""A lone DICOM has rows and columns of its own, which reading turns so that it is seen as radiologists do.

`meta["source"]` says how: "flipped" (rows, columns) after it was "transposed".
  C channels   H rows   W columns
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from torch import Tensor


def place_of(whole: Tensor) -> np.ndarray | None:
    """(4, 4) from (column, row, 0) of what was put back on its source to RAS mm; None where that has none."""
    if not isinstance(whole, MetaTensor) or (whole.meta.get("source") or {}).get("affine") is None:
        return None
    found: np.ndarray = whole.affine.numpy()[:, [1, 0, 2, 3]]
    return found


def as_stored(image: MetaTensor) -> MetaTensor:
    """(C, H, W) as a lone DICOM has its rows and columns, which was turned to be seen; others as they are."""
    source = image.meta.get("source") or {}
    flips, transposed = _turns(source)
    if not flips and not transposed:
        return image
    values = image.as_subclass(Tensor).flip([1 + axis for axis in flips])
    result = MetaTensor((values.mT if transposed else values).contiguous())
    result.copy_meta_from(image, copy_attr=True)
    turn = shown_from_stored(source, (image.shape[1], image.shape[2]))
    result.affine = image.affine.double() @ torch.from_numpy(of_rank(turn, image))
    return result


def as_shown(stored: Tensor, source: Mapping[str, Any]) -> Tensor:
    """(C, H, W) of the rows and columns of a lone DICOM, turned as reading has turned it to be seen.

    Args:
        source: of its picture.
    """
    flips, transposed = _turns(source)
    return (stored.mT if transposed else stored).flip([1 + axis for axis in flips])


def shown_from_stored(source: Mapping[str, Any], size: tuple[int, int]) -> np.ndarray:
    """(4, 4) from (row, column, 0) of a lone DICOM to those of what is seen of it, `size` (H, W)."""
    flips, transposed = _turns(source)
    shown = np.eye(4)
    for axis in flips:
        shown[axis, axis], shown[axis, 3] = -1, size[axis] - 1
    return shown[:, [1, 0, 2, 3]] if transposed else shown


def _turns(source: Mapping[str, Any]) -> tuple[list[int], bool]:
    """Which axes (0 rows, 1 columns) are flipped once the two are swapped, and whether they are."""
    flips = [axis for axis, flipped in enumerate(source.get("flipped", ())) if flipped]
    return flips, bool(source.get("transposed"))


def of_rank(matrix: np.ndarray, image: MetaTensor) -> np.ndarray:
    """(4, 4), or (3, 3) for an image whose affine has only rows and columns."""
    return matrix if image.affine.shape[-1] == 4 else matrix[np.ix_([0, 1, 3], [0, 1, 3])]
