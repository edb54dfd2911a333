# SPDX-License-Identifier: Apache-2.0
"""What a picture is here: its checks, its colours, PIL's resize and the released resize rule.

Every transform takes (C, H, W), keeps the range of values, and a MetaTensor stays one (`intensity.py` brings
values to [0, 1], `geometry.py` moves pixels).
Each class `Name` has a dictionary form `Named` (also `NameD`, `NameDict`), `keys` before the same arguments.
  C channels   H rows   W columns   w, h target columns and rows (PIL's order)
"""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import MetaTensor, get_track_meta, set_track_meta
from monai.transforms import MapTransform, Transform
from monai.utils import TransformBackends, convert_to_tensor
from PIL import Image
from torch import Tensor

MIN_SIDE = 8  # pixels; below that nothing of a picture is left to read
MAX_IMAGE_PIXELS = 20_000_000  # the guard of UniMedVL's data code
MAX_PIXELS = 14 * 14 * 9 * 1024  # 1,806,336: the resize rule's default


def grid_size(
    width: int, height: int, max_size: int, min_size: int, stride: int,
    max_pixels: int = MAX_PIXELS, num_images: int = 1,
) -> tuple[int, int]:  # fmt: skip
    """The size (w, h) in pixels that the released model's resize rule gives to a picture (width, height).

    Every rounding is Python's, half to even. The step for `max_pixels` scales sides by the ratio of areas and
    not by its root, as the reference does: it shrinks more than it must.
    """

    def scaled(sides: tuple[int, int], scale: float) -> tuple[int, int]:
        w, h = (max(stride, int(round(round(side * scale) / stride) * stride)) for side in sides)
        return w, h

    scale = max(min(max_size / max(width, height), 1.0), min_size / min(width, height))
    size = scaled((width, height), scale)
    if size[0] * size[1] > max_pixels / num_images:
        size = scaled(size, max_pixels / num_images / (size[0] * size[1]))
    if max(size) > max_size:
        size = scaled(size, max_size / max(size))
    return size


@dataclass(frozen=True)
class Rule:
    """A resize rule: longest and shortest side, multiple of `stride`, most pixels."""

    max_size: int
    min_size: int
    stride: int
    max_pixels: int = MAX_PIXELS

    def size(self, width: int, height: int, num_images: int = 1) -> tuple[int, int]:
        """(width, height) -> (w, h) in pixels; see `grid_size`."""
        return grid_size(
            width, height, self.max_size, self.min_size, self.stride, self.max_pixels, num_images
        )


def resize(image: Tensor, size: tuple[int, int], limits: tuple[float, float] | None = None) -> Tensor:
    """PIL's bicubic: (C, H, W) -> (C, h, w) for size (w, h); the picture itself where the size is right.

    uint8 gives PIL's own bytes. Other types are computed in float32 and come back as they were; integers are
    rounded and cut to their type. `limits` cuts the overshoot of a float picture.
    """
    if (image.shape[2], image.shape[1]) == tuple(size):
        return image
    exact = image.dtype == torch.uint8
    plain = image.as_subclass(Tensor).cpu()
    grey = len(plain) == 3 and torch.equal(plain[0], plain[1]) and torch.equal(plain[0], plain[2])
    some = plain[:1] if grey else plain
    planes = np.asarray(some if exact else some.float())
    resized = [np.asarray(Image.fromarray(p).resize(size, Image.Resampling.BICUBIC)) for p in planes]
    result = torch.from_numpy(np.stack(resized * 3 if grey else resized))  # (C, h, w)
    if limits is not None:
        result = result.clamp(*limits)
    if not exact and not image.dtype.is_floating_point:
        bounds = torch.iinfo(image.dtype)
        result = result.round().clamp(bounds.min, bounds.max)
    return result.to(image.device, image.dtype)


@contextmanager
def tracked() -> Iterator[None]:
    """Steps hand on meta inside, whatever `set_track_meta` said: by it they know what a value stands for."""
    before = get_track_meta()
    set_track_meta(True)
    try:
        yield
    finally:
        set_track_meta(before)


def not_finite(values: Tensor) -> int:
    """How many values are NaN or Inf; one sum tells that none is, all but always."""
    plain = values.as_subclass(Tensor)
    if not plain.dtype.is_floating_point or bool(torch.isfinite(plain.sum())):
        return 0
    return int((~torch.isfinite(plain)).sum())


def check_picture(image: Tensor, name: str = "image", channels: Sequence[int] = (1, 3, 4)) -> None:
    """Refuse what is no picture: (C, H, W), C in `channels`, finite, sides and area within limits.

    Raises:
        ValueError: one line that says what came, what was expected and what to do.
    """
    shape = tuple(image.shape)
    if len(shape) != 3:
        raise ValueError(
            f"{name} has {len(shape)} dimensions, shape {shape}, but a picture is 3-D (C, H, W): "
            "pass one slice or frame, or use a recipe for volumes (mri, ct)."
        )
    if shape[0] not in channels:
        raise ValueError(
            f"{name} has {shape[0]} channels, shape {shape}, but {' or '.join(map(str, channels))} are "
            "expected "
            "(1 grey, 3 RGB, 4 RGBA; channels come first): choose or average channels before."
        )
    height, width = shape[1:]
    if min(height, width) < MIN_SIDE:
        raise ValueError(
            f"{name} has {width}x{height} pixels, but each side needs at least {MIN_SIDE}: pass the full "
            "picture."
        )
    if height * width > MAX_IMAGE_PIXELS:
        raise ValueError(too_large(name, f"{width}x{height} pixels"))
    if count := not_finite(image):
        raise ValueError(
            f"{name} has {count} pixels that are NaN or Inf, but finite numbers are expected: "
            "repair the file, or read it with nonfinite=0.0 to count them as 0."
        )


def check_turned(image: Tensor, name: str = "image") -> None:
    """Refuse a picture (C, W, H) as MONAI's LoadImage gives it; warn of a square one, where none can tell.

    Raises:
        ValueError: its sides are those of the file, the wrong way round.
    """
    width, height = (meta_of(image, side) for side in ("width", "height"))
    if image.ndim != 3 or meta_of(image, "format") is None or tuple(image.shape[1:]) != (width, height):
        return
    mend = "put Transposed(keys, [0, 2, 1]) behind it, or let a recipe read the file"
    if width != height:
        raise ValueError(
            f"{name} has shape {tuple(image.shape)}, with columns first as LoadImage gives flat pictures, "
            f"expected (C, {height}, {width}), rows first: {mend}."
        )
    warnings.warn(
        f"{name} is a square picture that LoadImage has read, which gives columns first: it lies on its side "
        f"unless it was turned since. If it was not, {mend}.",
        stacklevel=3,
    )


def too_large(name: str, what: str) -> str:
    """The one line for pictures above the limit of 20 million pixels."""
    return (
        f"{name} has {what}, but at most {MAX_IMAGE_PIXELS:,} (20 million) are read at once: "
        "cut it into tiles (histopathology) or make it smaller."
    )


def as_picture(image: NdarrayOrTensor) -> Tensor:
    """(C, H, W) as a tensor, a MetaTensor where MONAI tracks meta; raises ValueError for other dimensions."""
    tracked = isinstance(image, MetaTensor) and get_track_meta()
    picture = image if tracked else convert_to_tensor(image, track_meta=get_track_meta())
    if picture.ndim != 3:
        check_picture(picture)
    return picture


def like(
    source: Tensor, values: Tensor, to_source: np.ndarray | None = None, **meta: object
) -> Tensor:  # fmt: skip
    """`values` with the meta of `source`; `to_source` (4, 4) leads from new (row, column, 0) to old ones."""
    if not isinstance(source, MetaTensor):
        return values
    result = MetaTensor(values.as_subclass(Tensor)).copy_meta_from(source, copy_attr=True)
    result.meta = {**source.meta, **meta}
    if to_source is not None and source.affine.shape[-1] == 4:
        result.affine = source.affine @ torch.as_tensor(to_source, dtype=source.affine.dtype)
    return result


def meta_of(image: Tensor, key: str, default: Any = None) -> Any:
    """`image.meta[key]`, or `default` where there is no meta or no such key."""
    return image.meta.get(key, default) if isinstance(image, MetaTensor) else default


def is_shown(image: Tensor) -> bool:
    """Whether a scaling step made [0, 1] of it, and nobody has scaled it again since.

    Meta goes along with arithmetic; changes of light and resampling may leave [0, 1] a little.
    """
    return bool(meta_of(image, "unit")) and like_shown(image)


def like_shown(values: Tensor) -> bool:
    """Whether values may be those of a picture in [0, 1] that was resampled, or changed in its light."""
    if not values.numel():
        return False
    low, high = values.as_subclass(Tensor).aminmax()
    return bool(low >= -0.5) and bool(high <= 1.5)


class ToRGB(Transform):
    """Three channels, red first: grey is repeated, RGBA is pasted on white, RGB is left as it is."""

    backend: ClassVar = [TransformBackends.TORCH]

    def __call__(self, image: NdarrayOrTensor) -> Tensor:
        """(1 | 3 | 4, H, W) -> (3, H, W) of the same type; RGBA must be uint8 or in [0, 1]."""
        x = as_picture(image)
        channels = x.shape[0]
        if channels == 3:
            return x
        if channels == 1:
            return like(x, x.expand(3, -1, -1).contiguous())
        check_picture(x)
        if x.dtype == torch.uint8:  # PIL's own arithmetic
            picture = Image.fromarray(np.ascontiguousarray(x.cpu().permute(1, 2, 0).numpy()), "RGBA")
            paper = Image.new("RGB", picture.size, (255, 255, 255))
            paper.paste(picture, mask=picture.getchannel("A"))
            return like(x, torch.from_numpy(np.array(paper)).permute(2, 0, 1).contiguous().to(x.device))
        if bool(x.min() < 0) or bool(x.max() > 1):
            raise ValueError(
                f"RGBA image has values in [{float(x.min()):g}, {float(x.max()):g}], "
                "but uint8 or [0, 1] is expected: scale it first."
            )
        return like(x, x[:3] * x[3:] + (1 - x[3:]))


class PerKey(MapTransform):
    """The dictionary form of a transform: `array(*args, **kwargs)` on the value of each key."""

    array: ClassVar[type[Transform]]

    def __init__(
        self, keys: KeysCollection, *args: object, allow_missing_keys: bool = False, **kwargs: object
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.transform = self.array(*args, **kwargs)
        self.backend = getattr(self.array, "backend", [])

    def __call__(self, data: Mapping[Hashable, Any]) -> Any:
        """A new mapping in which each key holds what the array form makes of it."""
        result = dict(data)
        for key in self.key_iterator(result):
            result[key] = self.transform(result[key])
        return result


class ToRGBd(PerKey):
    """Dictionary form of `ToRGB`."""

    array = ToRGB


ToRGBD = ToRGBDict = ToRGBd
