# SPDX-License-Identifier: Apache-2.0
"""What was drawn slice by slice, back in place in a volume that is written as it comes.

A picture knows by its affine which part of its slice it shows, so whatever a recipe cut, padded or stretched
is undone by one resampling; pixel edges meet. What lies outside every picture keeps the value of the start.
  C channels   h, w drawn rows and columns   H, W those of the slice
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import IO, Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Transform
from torch import Tensor

from monai_unimedvl.transforms.slices import Display, check_plane, display_of, release

IN_MEMORY = 64 * 2**20  # bytes; a larger volume is written to a file
CUBIC, LINEAR = "cubic", "linear"


def empty_volume(shape: Sequence[int], dtype: np.dtype | type, fill: float = 0) -> np.ndarray:
    """An array (C, X, Y, Z) to be written slice by slice; a large one lies in a temporary file, gone with it.

    X runs fastest and Z slowest, as in NIfTI files, so that a slice along Z lies together.
    """
    kind, stored = np.dtype(dtype), (shape[0], *reversed(shape[1:]))
    if int(np.prod(shape, dtype=float)) * kind.itemsize <= IN_MEMORY:
        values = np.full(stored, fill, kind)
    else:
        store: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the mapping
        values = np.memmap(store, kind, "w+", shape=stored)
        if fill:
            for part in values.reshape(-1, *stored[2:]):
                part[...] = fill
    return values.transpose(0, 3, 2, 1)


def squared_grid(
    shape: Sequence[int], affine: np.ndarray, plane: str
) -> tuple[tuple[int, int, int], np.ndarray]:
    """The shape (X, Y, Z) and affine of a volume whose pixels in `plane` are square, as small as the smaller
    side; the outer edges stay where they are."""
    sizes = np.linalg.norm(np.asarray(affine, dtype=float)[:3, :3], axis=0)
    display = display_of(shape, np.asarray(affine, dtype=float), plane)
    rows, columns, _ = display.axes
    side = min(sizes[rows], sizes[columns])
    finer, place = list(shape), np.array(affine, dtype=np.float64)
    for axis in (rows, columns):
        finer[axis] = max(1, round(shape[axis] * sizes[axis] / side))
        ratio = shape[axis] / finer[axis]
        place[:3, 3] += affine[:3, axis] * (ratio - 1) / 2
        place[:3, axis] = affine[:3, axis] * ratio
    return (finer[0], finer[1], finer[2]), place


def _kernel(x: np.ndarray, mode: str) -> np.ndarray:
    """Weights at distance x: Keys' cubic with a = -1/2, as PIL has it, or the triangle."""
    x = np.abs(x)
    if mode == LINEAR:
        return np.clip(1 - x, 0, None)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


@lru_cache(maxsize=64)
def axis_weights(
    count: int, step: float, first: float, drawn: int, mode: str
) -> tuple[Tensor, int, int]:  # fmt: skip
    """What each pixel takes from a row of `drawn` ones, (n, drawn), and from where to where they are covered.

    Args:
        step, first: pixel n lies at n * step + first, in drawn pixels.
        mode: "cubic" or "linear"; both average where `step` is above 1.
    """
    at = np.arange(count) * step + first
    (inside,) = ((at >= -0.5 - 1e-6) & (at <= drawn - 0.5 + 1e-6)).nonzero()
    low, high = (int(inside[0]), int(inside[-1]) + 1) if len(inside) else (0, 0)
    weights = _kernel((np.arange(drawn) - at[low:high, None]) / max(abs(step), 1.0), mode)
    return torch.from_numpy(weights / weights.sum(1, keepdims=True)).float(), low, high


class Restack(Transform):
    """Pictures of slices -> the volume they were cut from; the way back from `SelectSlices`.

    Args:
        shape: (X, Y, Z) of the volume.
        affine: (4, 4) from its voxels to RAS mm.
        plane: of the slices.
        channels: C.
        dtype: of the volume; whole numbers are rounded and cut to their type.
        fill: where nothing is put.
        mode: "cubic" for pictures, "linear" for probabilities.
        values: (C, X, Y, Z) to write into; None makes one.

    Example::

        back = Restack(volume.shape[1:], volume.affine)
        for picture in SelectSlices(policy="all")(volume):
            back.put(network(picture), picture)
        result = back.volume  # MetaTensor (1, X, Y, Z)
    """

    def __init__(
        self, shape: Sequence[int], affine: Any, plane: str = "axial", *, channels: int = 1,
        dtype: Any = np.float32, fill: float = 0, mode: str = CUBIC, values: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        if len(shape) != 3:
            raise ValueError(f"Restack got shape {tuple(shape)}, expected (X, Y, Z): leave the channel out.")
        self.affine = np.asarray(affine, dtype=np.float64)
        self.shape, self.plane, self.mode = tuple(int(side) for side in shape), check_plane(plane), mode
        if values is None:
            values = empty_volume((channels, *self.shape), dtype, fill)
        self.values = values
        self.display: Display = display_of(self.shape, self.affine, plane)
        self._from_mm = np.linalg.inv(self.display.affine)
        self._shown = self.display.shown(self.values)  # (C, H, W, D), the same memory

    @property
    def volume(self) -> MetaTensor:
        """(C, X, Y, Z) on the same memory, with the affine."""
        return MetaTensor(torch.from_numpy(self.values), affine=torch.from_numpy(self.affine.copy()))

    def __call__(self, drawn: Sequence[Tensor], pictures: Sequence[MetaTensor]) -> MetaTensor:
        """Everything at once: n drawings (C, h, w) of n pictures -> (C, X, Y, Z)."""
        for one, picture in zip(drawn, pictures, strict=True):
            self.put(one, picture)
        return self.volume

    def put(
        self, drawn: Tensor, picture: MetaTensor, *, add: bool = False,
        last: Callable[[Tensor], Tensor] | None = None,
    ) -> None:  # fmt: skip
        """Write one slice; pixels that the picture does not show keep their value.

        Args:
            drawn: (C, h, w), of any size; it covers what `picture` shows.
            picture: (3, H, W) with its affine and `meta["source"]`.
            add: to what is there, instead of in its place.
            last: what is done with the resampled slice (C, h', w') before it is written, such as a choice
                among probabilities.

        Raises:
            ValueError: the picture does not know its place, lies outside, or not along the slices.
        """
        index, to_picture = self._placed(picture)
        scales = [drawn.shape[axis] / picture.shape[axis] for axis in (1, 2)]
        across = [
            axis_weights(
                self._shown.shape[1 + axis], round(to_picture[axis, axis] * scale, 9),
                round((to_picture[axis, 3] + to_picture[axis, 2] * index + 0.5) * scale - 0.5, 7),
                drawn.shape[1 + axis], self.mode,
            )
            for axis, scale in enumerate(scales)
        ]  # fmt: skip
        (rows, top, bottom), (columns, left, right) = across
        resampled = rows @ drawn.detach().as_subclass(Tensor).cpu().float() @ columns.T
        if self.mode == CUBIC:
            resampled = resampled.clamp(*map(float, drawn.aminmax()))
        values = (resampled if last is None else last(resampled)).numpy()
        place = self._shown[:, top:bottom, left:right, index]
        if add:
            values = values + place
        if place.dtype.kind in "iu" and values.dtype != place.dtype:
            limits = np.iinfo(place.dtype)
            values = np.clip(np.rint(values), limits.min, limits.max)
        elif place.dtype.kind == "b":
            values = values >= 0.5
        place[...] = values

    def _placed(self, picture: MetaTensor) -> tuple[int, np.ndarray]:
        """The slice nearest to the picture's middle, and (4, 4) from (row, column, slice) to its pixels."""
        source = picture.meta.get("source") or {}
        if source.get("affine") is None:
            raise ValueError(
                "Restack got a picture without its place in mm, expected one that SelectSlices or a recipe "
                "cut out of a volume: pass that."
            )
        place = picture.affine.detach().cpu().numpy().astype(np.float64)
        to_slices = self._from_mm @ place
        turned = np.abs(to_slices[:3, :3]) / np.abs(to_slices[:3, :3]).max(0)
        middle = to_slices @ [(picture.shape[-2] - 1) / 2, (picture.shape[-1] - 1) / 2, 0, 1]
        index = round(float(middle[2]))
        if turned[[1, 2, 0, 2], [0, 0, 1, 1]].max() > 1e-3 or not 0 <= index < self._shown.shape[3]:
            raise ValueError(
                f"a {source['plane']} picture at slice position {float(middle[2]):.2f} came, but this volume "
                f"has {self._shown.shape[3]} {self.plane} slices of its own direction: restack what was cut "
                "from it."
            )
        return index, np.linalg.inv(to_slices)

    def release(self) -> None:
        """Let the system drop written pages from memory; they are in the file."""
        release(self.values)
