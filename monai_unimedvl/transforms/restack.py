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
    """An array to be written slice by slice; a large one lies in a temporary file, gone with the array."""
    kind = np.dtype(dtype)
    if int(np.prod(shape, dtype=float)) * kind.itemsize <= IN_MEMORY:
        return np.full(shape, fill, kind)
    store: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the mapping
    values = np.memmap(store, kind, "w+", shape=tuple(shape))
    if fill:
        for part in values.reshape(-1, *shape[-1:]):
            part[...] = fill
    return values


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
def axis_weights(count: int, step: float, first: float, drawn: int, mode: str) -> Tensor:
    """(count, drawn): what each of `count` pixels takes from a row of `drawn` ones; zeros where outside.

    Args:
        step, first: pixel n lies at n * step + first, in drawn pixels.
        mode: "cubic" or "linear"; both average where `step` is above 1.
    """
    at = np.arange(count) * step + first
    wide = max(abs(step), 1.0)
    weights = _kernel((np.arange(drawn) - at[:, None]) / wide, mode)
    total = weights.sum(1, keepdims=True)
    weights = weights / np.where(np.abs(total) < 1e-9, 1.0, total)
    weights[(at < -0.5 - 1e-6) | (at > drawn - 0.5 + 1e-6)] = 0
    return torch.from_numpy(weights).float()


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
        """Write one slice.

        Args:
            drawn: (C, h, w), of any size; it covers what `picture` shows.
            picture: (3, H, W) with its affine and `meta["source"]`.
            add: to what is there, instead of in its place.
            last: what is done with the resampled slice (C, H, W) before it is written, such as a choice among
                probabilities.
        """
        index = self.index_of(picture)
        resampled, inside = self.resampled(drawn, picture, index)
        if last is not None:
            resampled = last(resampled)
        values, place = resampled.numpy(), self._shown[..., index]
        kind = place.dtype
        if add:
            values = values + place
        if kind.kind in "iu":
            limits = np.iinfo(kind)
            values = np.clip(np.rint(values.astype(np.float64)), limits.min, limits.max)
        elif kind.kind == "b":
            values = values >= 0.5
        np.copyto(place, values.astype(kind), where=inside.numpy())

    def index_of(self, picture: MetaTensor) -> int:
        """Which slice of this volume lies nearest to the middle of the picture.

        Raises:
            ValueError: the picture does not know its place, lies outside, or not along the slices.
        """
        source = picture.meta.get("source") or {}
        if source.get("affine") is None:
            raise ValueError(
                "Restack got a picture without its place in mm, expected one that SelectSlices or a recipe "
                "cut out of a volume: pass that."
            )
        from_picture = self._to_slices(picture)
        turned = np.abs(from_picture[:3, :3]) / np.abs(from_picture[:3, :3]).max(0)
        middle = from_picture @ [(picture.shape[-2] - 1) / 2, (picture.shape[-1] - 1) / 2, 0, 1]
        index = round(float(middle[2]))
        if turned[[1, 2, 0, 2], [0, 0, 1, 1]].max() > 1e-3 or not 0 <= index < self._shown.shape[3]:
            raise ValueError(
                f"a {source['plane']} picture at slice position {float(middle[2]):.2f} came, but this volume "
                f"has {self._shown.shape[3]} {self.plane} slices of its own direction: restack what was cut "
                "from it."
            )
        return index

    def resampled(self, drawn: Tensor, picture: MetaTensor, index: int) -> tuple[Tensor, Tensor]:
        """What was drawn (C, h, w) on the pixels of slice `index`: (C, H, W) float32, and where it lies."""
        height, width = self._shown.shape[1:3]
        values = drawn.detach().as_subclass(Tensor).cpu().float()
        matrix = np.linalg.inv(self._to_slices(picture))  # slice pixel -> picture pixel
        weights = []
        for axis, count in enumerate((height, width)):
            scale = drawn.shape[1 + axis] / picture.shape[1 + axis]
            step, first = matrix[axis, axis] * scale, (matrix[axis, 3] + 0.5) * scale - 0.5
            first += matrix[axis, 2] * index * scale
            weights.append(
                axis_weights(count, round(step, 9), round(first, 7), drawn.shape[1 + axis], self.mode)
            )
        limits = float(values.min()), float(values.max())
        result = weights[0] @ values @ weights[1].T
        inside = (weights[0].sum(1) != 0)[:, None] & (weights[1].sum(1) != 0)
        return result.clamp(*limits), inside  # (C, H, W), (H, W)

    def release(self) -> None:
        """Let the system drop written pages from memory; they are in the file."""
        release(self.values)

    def _to_slices(self, picture: MetaTensor) -> np.ndarray:
        """(4, 4) from (row, column, 0) of the picture to (row, column, slice) of this volume."""
        place = picture.affine.detach().cpu().numpy().astype(np.float64)
        found: np.ndarray = np.linalg.inv(self.display.affine) @ place
        return found
