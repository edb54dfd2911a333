# SPDX-License-Identifier: Apache-2.0
"""Greys in the maker's unit -> [0, 1]: HU windows, percentiles, light.

A scaling step marks its result (`meta["unit"]`) and leaves alone what is marked, so a chain run twice equals
a chain run once. 8-bit pictures are what a screen showed: they are divided by 255 and not windowed again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from monai.config import NdarrayOrTensor
from monai.data import get_track_meta
from monai.transforms import Transform
from monai.utils import TransformBackends, convert_to_tensor
from torch import Tensor

from monai_unimedvl.transforms.image import PerKey, as_picture, check_picture, is_shown, like, meta_of


def window(image: Tensor, low: float, high: float) -> Tensor:
    """Clip to [low, high] and scale to [0, 1], in float32.

    Args:
        image: any shape, in its own units (HU for CT).

    Raises:
        ValueError: `high` is not above `low`.
    """
    if not high > low:
        raise ValueError(
            f"window got low={low}, high={high}, but high must be above low: swap or widen them."
        )
    # one new tensor, then in place: memory that was never touched costs more than the arithmetic
    return image.float().sub(low).div_(high - low).clamp_(0, 1)


class Windows(Transform):
    """Intensity windows: numbers in their unit (HU for CT) -> [0, 1], one channel per window.

    Args:
        show: a name of `table`, (low, high), or a list of three such, which become red, green and blue.
        table: name -> {"low": , "high": , ...} in the unit of the image.

    Raises:
        ValueError: a name that `table` lacks; fractions of [0, 1] where HU are expected.
    """

    backend: ClassVar = [TransformBackends.TORCH]

    def __init__(
        self, show: str | Sequence[Any], table: Mapping[str, Mapping[str, Any]] | None = None
    ) -> None:
        self.table = dict(table or {})
        one = isinstance(show, str) or (len(show) == 2 and not isinstance(show[0], str))
        self.bounds = [self._bounds(item) for item in ([show] if one else show)]
        if len(self.bounds) not in (1, 3):
            raise ValueError(
                f"Windows got {len(self.bounds)} windows, expected 1 (grey) or 3 (RGB): {show!r}."
            )

    def _bounds(self, item: str | Sequence[float]) -> tuple[float, float]:
        if not isinstance(item, str):
            low, high = float(item[0]), float(item[1])
        elif item in self.table:
            low, high = float(self.table[item]["low"]), float(self.table[item]["high"])
        else:
            known = ", ".join(self.table) or "none"
            raise ValueError(f"window {item!r} is not known: use one of {known}, or two numbers [low, high].")
        window(torch.zeros(1), low, high)
        return low, high

    def __call__(self, image: NdarrayOrTensor) -> Tensor:
        """(1, H, W) in HU -> (1, H, W) or (3, H, W) float32 in [0, 1]; 8-bit pictures keep their channels."""
        x = as_picture(image)
        if is_shown(x):
            return x
        plain = x.as_subclass(Tensor)
        if _on_screen(x):
            return like(x, _bytes(plain), unit=True)
        if x.shape[0] != 1:
            check_picture(x, channels=(1,))
        if x.dtype.is_floating_point and _fractions(plain):
            raise ValueError(
                "image holds fractions in [0, 1], but HU are expected here (air is -1000): "
                "pass HU, or an 8-bit picture that is windowed already."
            )
        shown = [window(plain, *bounds) for bounds in self.bounds]
        return like(x, shown[0] if len(shown) == 1 else torch.cat(shown), unit=True)


class ToUnit(Transform):
    """Screen values -> float32 in [0, 1]: 8-bit by 255, what exceeds 1 by its maximum; zero stays."""

    backend: ClassVar = [TransformBackends.TORCH]

    def __call__(self, image: NdarrayOrTensor) -> Tensor:
        """(C, H, W) -> (C, H, W); raises ValueError where a value is negative."""
        x = as_picture(image)
        if is_shown(x):
            return x
        plain = x.as_subclass(Tensor)
        if x.dtype == torch.uint8:
            return like(x, _bytes(plain), unit=True)
        low, high = (float(limit) for limit in plain.aminmax())
        if low < 0:
            raise ValueError(
                f"image goes down to {low:g}, but light is 0 or more here: "
                "shift it, or use a recipe for measured values (mri, ct, xray)."
            )
        shown = plain.float()
        return like(x, shown / shown.max() if high > 1 else shown, unit=True)


class PercentileScale(Transform):
    """Percentiles -> [0, 1], not moved by how much air is around the patient. Works on (C, H, W[, D]).

    Voxels equal to the darkest value (padding, masked background) are not counted. `lower` is taken of the
    rest, `upper` of those of the rest that are above their mean, which is the patient and not the noise
    around. With `foreground=False`, for pictures that are filled by the patient, all voxels count for both.
    """

    backend: ClassVar = [TransformBackends.TORCH]
    most = 1_000_000  # voxels looked at; more are thinned evenly

    def __init__(self, lower: float = 0.5, upper: float = 99.5, foreground: bool = True) -> None:
        if not 0 <= lower < upper <= 100:
            raise ValueError(
                f"PercentileScale got lower={lower}, upper={upper}: give 0 <= lower < upper <= 100."
            )
        self.lower, self.upper, self.foreground = lower, upper, foreground

    def bounds(self, image: Tensor) -> tuple[float, float]:
        """The values that become 0 and 1."""
        values = image.as_subclass(Tensor).flatten()
        if self.foreground:
            values = values[values > values.min()]
        values = values[:: -(-len(values) // self.most) or 1].float().cpu()
        if len(values) == 0:
            return 0.0, 0.0
        bright = values[values > values.mean()] if self.foreground else values
        bright = bright if len(bright) else values
        return float(np.percentile(values, self.lower)), float(np.percentile(bright, self.upper))

    def __call__(self, image: NdarrayOrTensor) -> Tensor:
        """(C, H, W) or (C, H, W, D) -> the same, float32 in [0, 1]; a flat image becomes 0."""
        x = convert_to_tensor(image, track_meta=get_track_meta())
        if is_shown(x):
            return x
        if x.dtype == torch.uint8 and (_on_screen(x) or meta_of(x, "kind") == "frames"):
            return like(x, _bytes(x.as_subclass(Tensor)), unit=True)
        low, high = self.bounds(x)
        plain = x.as_subclass(Tensor)
        scaled = window(plain, low, high) if high > low else torch.zeros_like(plain, dtype=torch.float32)
        return like(x, scaled, unit=True)


def _bytes(image: Tensor) -> Tensor:
    """uint8 -> float32 in [0, 1], as `image / 255` gives it, in less than half of its time."""
    return image.float().div_(255)


def _fractions(image: Tensor) -> bool:
    """Whether values lie in [0, 1], and not all at its ends."""
    low, high = (float(limit) for limit in image.aminmax())
    return low >= 0 and high <= 1 and bool(((image > 0) & (image < 1)).any())


def _on_screen(image: Tensor) -> bool:
    """8-bit greys or colours that a screen showed, and not an 8-bit volume."""
    return image.dtype == torch.uint8 and image.ndim == 3


class ShadesOfGrey(Transform):
    """Take the colour cast of the lamp away, after Finlayson and Trezzi, Shades of Gray, CIC 2004.

    The lamp's colour is the mean of order `power` of each channel; each is scaled so that the lamp is white.

    Args:
        power: 1 is the grey world, large ones near the brightest spot.
        apply: False leaves pictures as they are.
    """

    backend: ClassVar = [TransformBackends.TORCH]

    def __init__(self, power: float = 6, apply: bool = True) -> None:
        if not power >= 1:
            raise ValueError(f"ShadesOfGrey got power={power}, expected 1 or more: raise it.")
        self.power, self.apply = power, apply

    def __call__(self, image: NdarrayOrTensor) -> Tensor:
        """(3, H, W) in [0, 1] -> the same; what is black or balanced already stays."""
        x = as_picture(image)
        if not self.apply or meta_of(x, "balanced"):
            return x
        check_picture(x, channels=(3,))
        lamp = x.as_subclass(Tensor).double().pow(self.power).mean((1, 2)).pow(1 / self.power)  # (3,)
        if not bool(lamp.min() > 0):
            return x
        gain = (lamp.pow(2).mean().sqrt() / lamp).to(torch.float32)
        return like(x, (x.as_subclass(Tensor) * gain[:, None, None]).clamp(0, 1), balanced=True)


class Windowsd(PerKey):
    """Dictionary form of `Windows`."""

    array = Windows


class ToUnitd(PerKey):
    """Dictionary form of `ToUnit`."""

    array = ToUnit


class PercentileScaled(PerKey):
    """Dictionary form of `PercentileScale`."""

    array = PercentileScale


class ShadesOfGreyd(PerKey):
    """Dictionary form of `ShadesOfGrey`."""

    array = ShadesOfGrey


WindowsD = WindowsDict = Windowsd
ShadesOfGreyD = ShadesOfGreyDict = ShadesOfGreyd
ToUnitD = ToUnitDict = ToUnitd
PercentileScaleD = PercentileScaleDict = PercentileScaled
