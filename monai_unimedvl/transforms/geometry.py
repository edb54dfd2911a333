# SPDX-License-Identifier: Apache-2.0
"""Steps that move pixels: they cut, pad or resize a picture, and can be undone.

Each takes (C, H, W), keeps the range of values, and a MetaTensor stays one: its affine follows its pixels,
and what was done stands in `applied_operations`, so that MONAI's `Invertd` or `put_back` brings what was
drawn on the model's grid back to the pixels of the source. All run lazily too (`pending_operations`), among
themselves: beside a lazy 2-D step of MONAI, whose matrices have another rank, let one of both be carried out.
  C channels   H rows   W columns   w, h target columns and rows (PIL's order)
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import MetaTensor
from monai.transforms import InvertibleTransform, LazyTransform
from monai.utils import LazyAttr, TraceKeys, TransformBackends
from torch import Tensor

from monai_unimedvl.transforms.image import (
    MAX_PIXELS,
    MIN_SIDE,
    PerKey,
    Rule,
    as_picture,
    is_shown,
    resize,
)
from monai_unimedvl.transforms.stored import as_stored, of_rank


@dataclass(frozen=True)
class Box:
    """A rectangle of the picture, in its pixels; it may leave the picture, where `fill` comes in."""

    top: int
    left: int
    height: int
    width: int
    fill: float = 0.0

    def apply(self, values: Tensor) -> Tensor:
        """(C, H, W) -> (C, height, width)"""
        down, across = values.shape[1:]
        if (self.top, self.left, self.height, self.width) == (0, 0, down, across):
            return values
        right, bottom = self.left + self.width - across, self.top + self.height - down
        around = (-self.left, right, -self.top, bottom)
        padded = F.pad(values, around, value=self.fill).contiguous()
        if len(values) == 4:  # transparency is pasted on white later; what is padded is not transparent
            opaque = 255.0 if values.dtype == torch.uint8 else 1.0
            padded[3:] = F.pad(values[3:], around, value=opaque)
        return padded

    def undo(self, values: Tensor, size: tuple[int, int], nearest: bool) -> Tensor:
        """What lies on the box, (C, h, w) of any size, at its place on a picture (C, *size); 0 around it."""
        values = rescaled(values, (self.height, self.width), nearest)
        return Box(-self.top, -self.left, *size).apply(values)

    def to_source(self, size: tuple[int, int]) -> np.ndarray:
        """(4, 4) from (row, column, 0) of the box to those of the picture of `size`."""
        matrix = np.eye(4)
        matrix[:2, 3] = self.top, self.left
        return matrix


@dataclass(frozen=True)
class Scale:
    """Another number of pixels for the same picture; pixel edges meet."""

    height: int
    width: int
    low: float = -float("inf")
    high: float = float("inf")

    def apply(self, values: Tensor) -> Tensor:
        """(C, H, W) -> (C, height, width), by PIL's bicubic, cut to [low, high]"""
        limits = None if self.low == -float("inf") else (self.low, self.high)
        return resize(values, (self.width, self.height), limits)

    def undo(self, values: Tensor, size: tuple[int, int], nearest: bool) -> Tensor:
        """(C, h, w) of any size -> (C, *size)"""
        return rescaled(values, size, nearest)

    def to_source(self, size: tuple[int, int]) -> np.ndarray:
        """(4, 4) from (row, column, 0) of the resized picture to those of the picture of `size`."""
        down, across = size[0] / self.height, size[1] / self.width
        matrix = np.diag([down, across, 1.0, 1.0])
        matrix[:2, 3] = (down - 1) / 2, (across - 1) / 2
        return matrix


Plan = Box | Scale


def rescaled(values: Tensor, size: tuple[int, int], nearest: bool = False) -> Tensor:
    """(C, h, w) -> (C, *size): bicubic within the range of `values`, or the nearest pixel for labels."""
    if tuple(values.shape[1:]) == tuple(size):
        return values
    if nearest:
        found = F.interpolate(values[None].float(), tuple(size), mode="nearest-exact")[0]
        return found.to(values.dtype)
    if values.dtype == torch.uint8:
        return resize(values, (size[1], size[0]))
    return resize(values, (size[1], size[0]), (float(values.min()), float(values.max())))


def _undone(image: Tensor, done: Mapping[str, Any], nearest: bool = False) -> Tensor:
    """`image` before the step that `applied_operations` tells of; its affine goes back too."""
    extra = dict(done[TraceKeys.EXTRA_INFO])
    kind, mode = extra.pop("geometry"), extra.pop("mode")
    nearest = nearest or mode == "nearest"
    plan: Plan = Box(**extra) if kind == "box" else Scale(**extra)
    height, width = (int(side) for side in done[TraceKeys.ORIG_SIZE])
    values = plan.undo(image.as_subclass(Tensor), (height, width), nearest)
    if not isinstance(image, MetaTensor):
        return values
    result = MetaTensor(values).copy_meta_from(image, copy_attr=True)
    back = np.linalg.inv(plan.to_source((height, width)))
    result.affine = image.affine.double() @ torch.from_numpy(of_rank(back, image))
    return result


def put_back(
    drawn: Tensor, picture: Tensor, *, nearest: bool = False, until: str | None = None
) -> Tensor:  # fmt: skip
    """What was drawn from a recipe's picture, on the pixels of the slice or file that it was read from.

    Args:
        drawn: (C, h, w) of any size, or labels (h, w).
        picture: as the recipe gave it, with its `applied_operations`.
        nearest: labels keep their numbers; implied by (h, w) and by integers other than uint8.
        until: a step by name that is not undone, nor those before: with "SquarePixels" a thick slice seen
            from the side keeps its proportions for the eye; with "Read" a lone DICOM stays turned as reading
            it has turned it.

    Returns:
        (C, H, W) or (H, W), with the meta and the affine of the source pixels; 0 where nothing was drawn.

    Raises:
        ValueError: another step has moved the picture since.
    """
    flat = drawn.ndim == 2
    nearest = nearest or flat or not (drawn.dtype.is_floating_point or drawn.dtype == torch.uint8)
    values = drawn.detach().as_subclass(Tensor)
    values = rescaled(values[None] if flat else values, tuple(picture.shape[1:]), nearest)
    steps = picture.applied_operations if isinstance(picture, MetaTensor) else []
    result: Tensor = values
    if isinstance(picture, MetaTensor):
        result = MetaTensor(values).copy_meta_from(picture, copy_attr=True)
        result.applied_operations = []
    ours = ["geometry" in done.get(TraceKeys.EXTRA_INFO, {}) for done in steps]
    if any(ours) and not ours[-1]:
        raise ValueError(
            f"put_back got a picture that {steps[-1].get(TraceKeys.CLASS_NAME)} has changed after its recipe,"
            " expected it as the recipe gave it: undo that step first, with its inverse."
        )
    for done, own in zip(reversed(steps), reversed(ours), strict=True):
        if done.get(TraceKeys.CLASS_NAME) == until or not own:
            break  # a step before the recipe is not ours to undo
        result = _undone(result, done, nearest)
    if until is None and isinstance(result, MetaTensor):
        result = as_stored(result)
    return result[0] if flat else result


class Geometry(InvertibleTransform, LazyTransform):
    """A step that moves pixels; a subclass says in `plan` which box it cuts or which size it gives."""

    backend: ClassVar = [TransformBackends.TORCH]
    looks = True  # at pixels, so that pending operations must be carried out before

    def __init__(self, lazy: bool = False) -> None:
        LazyTransform.__init__(self, lazy)

    @property
    def requires_current_data(self) -> bool:
        """Whether MONAI has to carry out pending operations before this step."""
        return self.looks

    def plan(self, image: Tensor, size: tuple[int, int]) -> Plan:
        """What to do with a picture of `size` (H, W), its pending operations counted in."""
        raise NotImplementedError

    def marked(self, meta: dict[str, Any]) -> dict[str, Any]:
        """The meta of the result, of that of the picture."""
        return dict(meta)

    def __call__(self, image: NdarrayOrTensor, lazy: bool | None = None) -> Tensor:
        """(C, H, W) -> (C, h, w)"""
        x = as_picture(image)
        lazy = self.lazy if lazy is None else lazy
        size = _size(x)
        plan = self.plan(x, size)
        if not isinstance(x, MetaTensor):
            return plan.apply(x)
        told = {"geometry": type(plan).__name__.lower(), "mode": "bicubic", **vars(plan)}
        matrix = torch.from_numpy(of_rank(plan.to_source(size), x))
        values = x.as_subclass(Tensor) if lazy else plan.apply(x.as_subclass(Tensor))
        result = MetaTensor(values).copy_meta_from(x, copy_attr=True)
        result.meta = self.marked(x.meta)
        if lazy:
            how = {LazyAttr.PADDING_MODE: "zeros", LazyAttr.INTERP_MODE: "bilinear"}
            self.push_transform(
                result, orig_size=size, sp_size=(plan.height, plan.width), affine=matrix, extra_info=told,
                transform_info=how, lazy=True,
            )  # fmt: skip
        else:
            self.push_transform(result, orig_size=size, affine=matrix, extra_info=told)
        return result

    def inverse(self, data: Tensor) -> Tensor:
        """What was made of the result, (C, h, w) of any size, on the pixels that came in."""
        done = self.pop_transform(data)
        return _undone(data, done)


def _size(image: Tensor) -> tuple[int, int]:
    """(H, W) once pending operations are carried out."""
    pending = isinstance(image, MetaTensor) and image.pending_operations
    shape = image.peek_pending_shape() if pending else image.shape[1:]
    return int(shape[0]), int(shape[1])


class CropDarkBorder(Geometry):
    """Cut off the black frame around a bright field, such as the mask of a fundus camera.

    A row or column stays when at least `share` of its pixels are above `threshold` of the maximum; this is
    repeated until nothing changes, so cropping twice is cropping once. An all-dark picture is left as it is.
    """

    def __init__(self, threshold: float = 0.06, share: float = 0.02, lazy: bool = False) -> None:
        super().__init__(lazy)
        self.threshold, self.share = threshold, share

    def plan(self, image: Tensor, size: tuple[int, int]) -> Plan:
        """The box of what is bright."""
        brightest = image.as_subclass(Tensor).float().amax(0)  # (H, W)
        box = bright_box(brightest > self.threshold * float(brightest.max()), self.share)
        return box if box is not None and min(box.height, box.width) >= MIN_SIDE else Box(0, 0, *size)


def bright_box(bright: Tensor, share: float) -> Box | None:
    """The rows and columns of (H, W) of which `share` is true, found again inside what is left; or None."""
    top, left, bottom, right = 0, 0, int(bright.shape[0]), int(bright.shape[1])
    while True:
        inside = bright[top:bottom, left:right].float()
        rows = (inside.mean(1) >= share).nonzero().flatten()
        columns = (inside.mean(0) >= share).nonzero().flatten()
        if not len(rows) or not len(columns):
            return None
        new = top + int(rows[0]), left + int(columns[0]), top + int(rows[-1]) + 1, left + int(columns[-1]) + 1
        if new == (top, left, bottom, right):
            return Box(top, left, bottom - top, right - left)
        top, left, bottom, right = new


class SquarePixels(Geometry):
    """Stretch a picture with oblong pixels (thick slices seen from the side) until they are square.

    Pixel sizes are read from the affine; the smaller one stays. Values in [0, 1] stay there.
    """

    looks = False

    def __init__(self, tolerance: float = 0.01, lazy: bool = False) -> None:
        super().__init__(lazy)
        self.tolerance = tolerance

    def plan(self, image: Tensor, size: tuple[int, int]) -> Plan:
        """The size with square pixels; as it is without an affine, or where they are square."""
        height, width = size
        if not isinstance(image, MetaTensor) or image.affine.shape[-1] != 4:
            return Box(0, 0, height, width)
        affine = image.peek_pending_affine()
        down, across = (float(affine[:3, axis].norm()) for axis in (0, 1))
        if min(down, across) == 0 or abs(down / across - 1) <= self.tolerance:
            return Box(0, 0, height, width)
        side = min(down, across)
        limits = (0.0, 1.0) if is_shown(image) else ()
        return Scale(round(height * down / side), round(width * across / side), *limits)


class FitToGrid(Geometry):
    """The released model's resize: sides become multiples of `stride`, by PIL's bicubic.

    uint8 comes out as in the reference, byte for byte; other types are resized in float and keep their range.

    Args:
        max_size: of the longer side; `min_size`: of the shorter side; both in pixels.
        max_pixels: of one picture; divided by `num_images` where several share it.
        limits: cut the overshoot of a float picture to these two values.
        lazy: leave the resize to MONAI's lazy resampling, which is linear and not PIL's.
    """

    looks = False

    def __init__(
        self, max_size: int, min_size: int, stride: int, max_pixels: int = MAX_PIXELS, num_images: int = 1,
        limits: tuple[float, float] | None = None, lazy: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(lazy)
        self.rule, self.num_images = Rule(max_size, min_size, stride, max_pixels), num_images
        self.limits = limits or ()

    def plan(self, image: Tensor, size: tuple[int, int]) -> Plan:
        """The size that the rule gives."""
        width, height = self.rule.size(size[1], size[0], self.num_images)
        return Scale(height, width, *self.limits)


class GeometryPerKey(PerKey, InvertibleTransform, LazyTransform):
    """The dictionary form of a step that moves pixels: invertible and lazy like its array form."""

    array: ClassVar[type[Geometry]]

    def __init__(
        self, keys: KeysCollection, *args: object, allow_missing_keys: bool = False, lazy: bool = False,
        **kwargs: object,
    ) -> None:  # fmt: skip
        PerKey.__init__(self, keys, *args, allow_missing_keys=allow_missing_keys, **kwargs)
        LazyTransform.__init__(self, lazy)

    @property
    def requires_current_data(self) -> bool:
        """As the array form has it."""
        return bool(self.transform.requires_current_data)

    def __call__(self, data: Mapping[Hashable, Any], lazy: bool | None = None) -> dict[Hashable, Any]:
        """A new mapping in which each key holds what the array form makes of it."""
        result = dict(data)
        for key in self.key_iterator(result):
            result[key] = self.transform(result[key], lazy=self.lazy if lazy is None else lazy)
        return result

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """A new mapping in which each key is on the pixels that came in."""
        result = dict(data)
        for key in self.key_iterator(result):
            result[key] = self.transform.inverse(result[key])
        return result


class CropDarkBorderd(GeometryPerKey):
    """Dictionary form of `CropDarkBorder`."""

    array = CropDarkBorder


class SquarePixelsd(GeometryPerKey):
    """Dictionary form of `SquarePixels`."""

    array = SquarePixels


class FitToGridd(GeometryPerKey):
    """Dictionary form of `FitToGrid`."""

    array = FitToGrid


CropDarkBorderD = CropDarkBorderDict = CropDarkBorderd
SquarePixelsD = SquarePixelsDict = SquarePixelsd
FitToGridD = FitToGridDict = FitToGridd
