# SPDX-License-Identifier: Apache-2.0
"""Volumes that stay on disk, and a recipe's pictures of them one at a time: memory does not grow with slices.

`prepare(recipe, source)` gives the same pictures as `recipe(source)` with every slice taken, but only when
they are asked for. NIfTI files are mapped by nibabel (large packed ones from a temporary file), DICOM series
are read slice by slice into an array that lies in a file where it is large; the rest is read at once.
"""

from __future__ import annotations

import gzip
import os
import tempfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from monai.data import MetaTensor
from nibabel.volumeutils import array_from_file
from torch import Tensor

from monai_unimedvl.transforms import Recipe
from monai_unimedvl.transforms.dicom import open_series
from monai_unimedvl.transforms.image import check_picture, like
from monai_unimedvl.transforms.intensity import PercentileScale, ToUnit, Windows, window
from monai_unimedvl.transforms.read import MAX_VOXELS, NIFTI, Read, dicom_files, read
from monai_unimedvl.transforms.slices import Slices, Volume, plane_of
from monai_unimedvl.transforms.volume import SelectSlices

MEASURED = 32_000_000  # voxels that percentiles are measured on at most; a recipe alone takes all
IN_MEMORY = 64 * 2**20  # bytes; what is larger lies in a file
Bounds = tuple[float, float]


def open_volume(source: Any, *, volume: int | None = None, nonfinite: float | None = None) -> Volume:
    """A volume or series of volumes, on disk where it can stay there.

    Args:
        source: path of a NIfTI (3-D, or 4-D whose times become channels); or whatever `read` takes.
        volume: only this one of a 4-D series; None for all.
        nonfinite: what NaN and Inf are read as.

    Raises:
        ValueError: as `read`; a picture or frames where a volume is needed.
    """
    if isinstance(source, Volume):
        return source
    path = Path(source) if isinstance(source, str | os.PathLike) else None
    if path and path.name.lower().endswith(NIFTI) and path.is_file() and path.stat().st_size:
        return _nifti(path, volume, nonfinite)
    if path and path.is_dir() and (files := dicom_files(path)):
        values, affine, meta = open_series(path, files)
        if affine is not None and values.ndim == 4:
            told = {**meta, "file": str(path), "filename_or_obj": str(path)}
            return Volume(values, affine, nonfinite=nonfinite, meta=told)
    if isinstance(source, Tensor | np.ndarray) and source.ndim == 3 and min(source.shape) > 4:
        raise ValueError(
            f"shape {tuple(source.shape)} came where a volume (1, X, Y, Z) is needed: add a channel in "
            "front, as MONAI's EnsureChannelFirst does."
        )
    if isinstance(source, Tensor) and source.ndim == 4 and source.shape[0] > 1:
        image = source if isinstance(source, MetaTensor) else MetaTensor(source)
    else:
        image = read(source, volume=volume, nonfinite=nonfinite)
    if image.meta.get("placed") and image.ndim == 3 and image.shape[0] == 1:  # a lone slice of a DICOM series
        image = like(image, image.as_subclass(Tensor).mT.unsqueeze(-1), kind="volume")
        image.affine = image.affine[:, [1, 0, 2, 3]]
    if image.ndim != 4 or image.meta.get("kind") == "frames":
        raise ValueError(
            f"shape {tuple(image.shape)} came where a volume (1, X, Y, Z) is needed: use ImageInferer, or on "
            "the command line leave --whole out, for single pictures and frames."
        )
    kept = source.dtype if isinstance(source, Tensor) else image.dtype
    values = image.as_subclass(Tensor).cpu()
    if isinstance(source, MetaTensor) and source.shape == image.shape and nonfinite is None:
        values = source.as_subclass(Tensor).cpu()
    affine = image.affine.detach().cpu().numpy().astype(np.float64)
    if kept in (torch.bfloat16, torch.float16):
        values = values.float()
    return Volume(values.numpy(), affine, nonfinite=nonfinite, meta={"kind": "volume", **image.meta})


@dataclass(frozen=True)
class Prepared:
    """A volume, and how a slice of it becomes a picture.

    Args:
        volume: the source.
        scale: true values (1, H, W) -> what the later steps get.
        steps: of the recipe, after the slices are chosen.
        bounds: the true values that became 0 and 1, where the recipe has one such pair.
        name: of the recipe.
    """

    volume: Volume
    scale: Callable[[MetaTensor], Tensor] | None
    steps: Sequence[Callable[[Any], Any]]
    bounds: Bounds | None
    name: str

    def slices(self, plane: str) -> Slices:
        """The raw slices along a plane; of a volume of one slice that one, whatever the plane."""
        return Slices(self.volume, plane_of(self.volume.shape[1:], self.volume.affine, plane))

    def picture(self, one: MetaTensor) -> MetaTensor:
        """A raw slice (1, H, W) as the recipe's picture (3, h, w) in [0, 1], with its affine.

        Raises:
            ValueError: NaN or Inf in it, or what the recipe's steps refuse.
        """
        name = f"{one.meta['source']['plane']} slice {one.meta['source']['index']}"
        check_picture(one.as_subclass(Tensor), name)
        made: Any = one if self.scale is None else self.scale(one)
        for step in self.steps:
            made = step(made)
        check_picture(made, name, channels=(3,))
        made.meta["recipe"] = self.name
        return made


def prepare(recipe: Recipe, source: Any) -> list[Prepared]:
    """A recipe for volumes, taken apart at its choice of slices: one for each channel, or time, of `source`.

    What stands before the choice works on the whole volume; percentiles are measured once and applied slice
    by slice.

    Raises:
        ValueError: a recipe that chooses no slices; what `open_volume` refuses.
    """
    at = next((i for i, step in enumerate(recipe.steps) if type(step) is SelectSlices), None)
    if at is None:
        raise ValueError(
            f"recipe {recipe.name!r} chooses no slices, expected one for volumes: use mri, ct or one with "
            "SelectSlices among its steps."
        )
    before, after = list(recipe.steps[:at]), list(recipe.steps[at + 1 :])
    noted = recipe.steps[at].noted
    options: dict[str, Any] = {}
    if before and type(before[0]) is Read:
        options = {"volume": before[0].volume, "nonfinite": before[0].nonfinite}
        before = before[1:]
    whole = open_volume(source, **options)
    parts = [whole.channel(c) for c in range(whole.shape[0])]
    made = [_prepared(recipe.name, before, after, part) for part in parts]
    seen = [None if part.scale is None else part.bounds for part in made]
    return [replace(part, volume=noted(part.volume, bounds)) for part, bounds in zip(made, seen, strict=True)]


def _prepared(name: str, before: Sequence[Any], after: Sequence[Any], volume: Volume) -> Prepared:
    if len(before) == 1 and type(before[0]) is PercentileScale and not volume.meta.get("unit"):
        low, high = before[0].bounds(volume.sample(MEASURED))
        return Prepared(volume, partial(_scaled, low=low, high=high), after, (low, high), name)
    if before:
        values: Any = MetaTensor(
            volume.true(volume.values), affine=torch.from_numpy(volume.affine), meta=dict(volume.meta)
        )
        for step in before:
            values = step(values)
        place = values.affine.numpy().astype(np.float64)
        volume = Volume(values.as_subclass(Tensor).numpy(), place, meta=dict(values.meta))
    return Prepared(volume, None, after, _bounds(after, volume), name)


def _scaled(one: MetaTensor, low: float, high: float) -> Tensor:
    plain = one.as_subclass(Tensor)
    scaled = window(plain, low, high) if high > low else torch.zeros_like(plain, dtype=torch.float32)
    return like(one, scaled, unit=True)


def _bounds(steps: Sequence[Any], volume: Volume) -> Bounds | None:
    """The values that the first scaling step of a slice makes 0 and 1; None for three windows."""
    for step in steps:
        if isinstance(step, Windows):
            if volume.dtype == torch.uint8:
                return 0.0, 255.0
            return step.bounds[0] if len(step.bounds) == 1 else None
        if isinstance(step, ToUnit):
            return (0.0, 255.0) if volume.dtype == torch.uint8 else None
    return None


def _nifti(path: Path, volume: int | None, nonfinite: float | None) -> Volume:
    try:
        file: Any = nibabel.load(path, mmap="r")
        proxy, shape, kind = file.dataobj, tuple(file.shape), file.get_data_dtype()
    except Exception as error:  # nibabel raises many kinds for damaged headers
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:160]
        raise ValueError(
            f"{path.name} cannot be read as NIfTI ({reason}): copy or export it again."
        ) from error
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    shape = (*shape, 1, 1)[: max(len(shape), 3)]
    affine = np.array(file.affine, dtype=np.float64)
    if len(shape) > 4 or min(shape) < 1 or int(np.prod(shape[:3], dtype=float)) > MAX_VOXELS:
        raise ValueError(
            f"{path.name} has shape {file.shape}, but a volume (X, Y, Z) or a series (X, Y, Z, T) of at most "
            f"{MAX_VOXELS:,} voxels is expected: split it."
        )
    if kind.kind not in "buif":
        raise ValueError(f"{path.name} holds values of type {kind}, but numbers are expected: convert it.")
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise ValueError(
            f"{path.name} has an affine that cannot be inverted, expected mm per voxel: repair its header."
        )
    values = _stored(path, proxy).reshape(shape, order="F")
    values = np.moveaxis(values, 3, 0) if len(shape) == 4 else values[None]
    if volume is not None:
        if not 0 <= volume < len(values):
            raise ValueError(
                f"{path.name} has volumes 0 to {len(values) - 1}, not volume={volume}: choose one of these."
            )
        values = values[volume : volume + 1]
    slope = 1.0 if proxy.slope is None else float(proxy.slope)
    inter = 0.0 if proxy.inter is None else float(proxy.inter)
    meta = {"kind": "volume", "file": str(path), "filename_or_obj": str(path), "placed": True}
    return Volume(values, affine, slope, inter, nonfinite, meta)


def _stored(path: Path, proxy: Any) -> np.ndarray:
    """The stored values of a NIfTI as nibabel maps them; large packed ones from a temporary file."""
    left = proxy.offset + int(np.prod(proxy.shape, dtype=float)) * proxy.dtype.itemsize
    try:
        if left <= IN_MEMORY or not path.name.lower().endswith(".gz"):
            return np.asanyarray(proxy.get_unscaled())
        store: Any = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the mapping
        with gzip.open(path) as packed:
            while left and (part := packed.read(min(left, 2**22))):
                store.write(part)
                left -= len(part)
        store.flush()
        return array_from_file(proxy.shape, proxy.dtype, store, proxy.offset, "F", mmap="r")
    except (OSError, EOFError, ValueError, zlib.error) as error:
        reason = (str(error).strip().splitlines() or ["no reason given"])[0].rstrip(".")[:160]
        raise ValueError(
            f"{path.name} cannot be read as NIfTI ({reason}): it may be cut short or damaged; copy or "
            "export it again."
        ) from error
