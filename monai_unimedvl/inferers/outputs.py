# SPDX-License-Identifier: Apache-2.0
"""What drawn slices become in a volume: greys, colours, or labels; alone, or fused over several planes.

C channels of the result   A channels that are added up over planes   K names of a legend
h, w drawn rows and columns   H, W those of a slice
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from monai_unimedvl.transforms.lazy import Prepared
from monai_unimedvl.transforms.masks import ColoursToLabels, Legend, as_legend
from monai_unimedvl.transforms.restack import CUBIC, LINEAR


class Output(Protocol):
    """A kind of result.

    `seen` is what one drawing gives, resampled by `mode`; `chosen` makes values of it, `fused` of sums over
    planes.
    """

    @property
    def channels(self) -> int:
        """C"""
        ...

    @property
    def added(self) -> int:
        """A"""
        ...

    @property
    def mode(self) -> str:
        """How drawings are resampled."""
        ...

    @property
    def added_dtype(self) -> Any:
        """The type of the sums."""
        ...

    def dtype(self, prepared: Prepared) -> np.dtype:
        """The type of the result."""
        ...

    def fill(self, prepared: Prepared) -> float:
        """The value where nothing was drawn."""
        ...

    def shades(self, prepared: Prepared) -> tuple[float, float] | None:
        """The values that black and white stand for; None for labels."""
        ...

    def seen(self, drawn: Tensor, prepared: Prepared, planes: int) -> Tensor:
        """(3, h, w) in [0, 1] -> (C, h, w), or (A, h, w) where several planes are fused."""
        ...

    def chosen(self, resampled: Tensor) -> Tensor:
        """(C, H, W) after resampling -> what is written."""
        ...

    def fused(self, sums: np.ndarray, fill: float) -> np.ndarray:
        """Sums over planes (A, ...) -> (C, ...)"""
        ...


@dataclass(frozen=True)
class Grey:
    """Grey values, in the unit and type of the source where the recipe has one window.

    Args:
        unit: "source" turns [0, 1] back into the source's values and type; "one" keeps float32 in [0, 1].
        bounds: the values that black and white of the drawing stand for, where they are not the source's:
            HU of a window that was asked for.
    """

    unit: str = "source"
    bounds: tuple[float, float] | None = None
    channels: int = 1
    added: int = 2  # values and how many planes gave one
    mode: str = CUBIC
    added_dtype: Any = np.float32

    def __post_init__(self) -> None:
        if self.unit not in ("source", "one"):
            raise ValueError(f"Grey got unit={self.unit!r}, expected 'source' or 'one': use one.")
        if self.bounds is not None and not self.bounds[0] < self.bounds[1]:
            raise ValueError(f"Grey got bounds={self.bounds}, expected black below white: turn them round.")

    def dtype(self, prepared: Prepared) -> np.dtype:
        """The source's, or float32."""
        volume, (low, high) = prepared.volume, self.shades(prepared)
        kind = torch.zeros(0, dtype=volume.dtype).numpy().dtype
        scaled = (volume.slope, volume.inter) != (1.0, 0.0)
        if (low, high) == (0.0, 1.0) or scaled or kind.kind == "b":
            return np.dtype(np.float32)
        if self.bounds is not None and kind.kind in "iu":
            limits = np.iinfo(kind)
            return kind if limits.min <= low and high <= limits.max else np.dtype(np.float32)
        return kind

    def fill(self, prepared: Prepared) -> float:
        """What is shown as black."""
        return self.shades(prepared)[0]

    def seen(self, drawn: Tensor, prepared: Prepared, planes: int) -> Tensor:
        """The mean of the colours, in the unit of the source."""
        low, high = self.shades(prepared)
        values = drawn.as_subclass(Tensor).cpu().float().mean(0, keepdim=True) * (high - low) + low
        return values if planes == 1 else torch.cat([values, torch.ones_like(values)])

    def chosen(self, resampled: Tensor) -> Tensor:
        """As it is."""
        return resampled

    def fused(self, sums: np.ndarray, fill: float) -> np.ndarray:
        """The mean of the planes that gave a value."""
        values, count = sums[:-1], sums[-1:]
        return np.where(count > 0.5, values / np.maximum(count, 1), fill)

    def shades(self, prepared: Prepared) -> tuple[float, float]:
        """What was asked for, else the source's, or 0 and 1."""
        if self.unit == "one":
            return 0.0, 1.0
        return self.bounds or prepared.bounds or (0.0, 1.0)


@dataclass(frozen=True)
class Colour:
    """Red, green and blue in uint8, such as a stain."""

    channels: int = 3
    added: int = 4
    mode: str = CUBIC
    added_dtype: Any = np.float32

    def dtype(self, prepared: Prepared) -> np.dtype:
        """uint8"""
        return np.dtype(np.uint8)

    def fill(self, prepared: Prepared) -> float:
        """Black."""
        return 0.0

    def shades(self, prepared: Prepared) -> tuple[float, float]:
        """0 and 255."""
        return 0.0, 255.0

    def seen(self, drawn: Tensor, prepared: Prepared, planes: int) -> Tensor:
        """[0, 1] as 0 to 255."""
        values = drawn.as_subclass(Tensor).cpu().float() * 255
        return values if planes == 1 else torch.cat([values, torch.ones_like(values[:1])])

    def chosen(self, resampled: Tensor) -> Tensor:
        """As it is."""
        return resampled

    def fused(self, sums: np.ndarray, fill: float) -> np.ndarray:
        """The mean of the planes that gave a value."""
        return Grey().fused(sums, fill)


@dataclass(frozen=True)
class Labels:
    """A label map in uint8: each drawn pixel votes for the nearest colour of the legend.

    Args:
        legend: name -> (red, green, blue) in 0..255, as in `data.atlas_tasks.LEGENDS`.
        threshold: see `ColoursToLabels`; farther pixels vote for "uncertain".
    """

    legend: Legend | Mapping[str, Sequence[int]]
    threshold: float | None = 0.5
    channels: int = 1
    mode: str = LINEAR
    added_dtype: Any = np.uint8
    vote: ColoursToLabels = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "vote", ColoursToLabels(as_legend(self.legend), self.threshold))

    @property
    def added(self) -> int:
        """K + 2: background, names, uncertain."""
        return self.vote.legend.uncertain + 1

    def dtype(self, prepared: Prepared) -> np.dtype:
        """uint8"""
        return np.dtype(np.uint8)

    def fill(self, prepared: Prepared) -> float:
        """Background."""
        return 0.0

    def shades(self, prepared: Prepared) -> None:
        """None"""

    def seen(self, drawn: Tensor, prepared: Prepared, planes: int) -> Tensor:
        """One vote a pixel; those of all planes fit into a byte."""
        votes = self.vote.votes(drawn.as_subclass(Tensor).cpu())  # (K + 2, h, w)
        return votes if planes == 1 else votes * (255 // planes)

    def chosen(self, resampled: Tensor) -> Tensor:
        """The label with most votes."""
        best, label = resampled[0], torch.zeros_like(resampled[0], dtype=torch.uint8)
        for n, votes in enumerate(resampled[1:], 1):  # argmax over the first axis is ten times slower
            label[votes > best] = n
            best = torch.maximum(best, votes)
        return label.unsqueeze(0)

    def fused(self, sums: np.ndarray, fill: float) -> np.ndarray:
        """The label with most votes."""
        found: np.ndarray = sums.argmax(0)[None].astype(np.uint8)
        return found
