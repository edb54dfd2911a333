# SPDX-License-Identifier: Apache-2.0
"""What lies outside the field of view is blanked: burned-in names and dates, logos, scales, grey bars.

Ultrasound shows a sector or a rectangle, an endoscope a disc or an octagon, on a dark screen with text
around. The field is the largest bright region that is not thin and no writing, over all frames of a run,
filled to its convex hull; of a DICOM file that names its ultrasound regions, only those are looked at. Text
inside the hull (calipers, a name laid over the picture) stays: a picture is anonymous only after somebody
looked.
  C channels   H rows   W columns   T frames
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from monai.config import NdarrayOrTensor
from monai.data import get_track_meta
from monai.transforms import Transform
from monai.utils import TransformBackends, convert_to_tensor
from PIL import Image, ImageDraw
from torch import Tensor

from monai_unimedvl.transforms.geometry import Box, Geometry, GeometryPerKey, Plan
from monai_unimedvl.transforms.image import MIN_SIDE, PerKey, like, meta_of

SIDE = 256  # pixels of the longer side on which the field is looked for
JOIN, THIN = 2, 5  # pixels there: gaps that are closed, half the width of what is thin (text, lines, bars)
INK, LETTER = 0.5, 9  # of the brightest value, what writing has; pixels there that letters lie within
SMALL = 0.005  # of the picture; a smaller field is none


class BlankOutside(Transform):
    """Zero where no field of view is, the same in all frames of a run; `meta["view"]` is its box.

    Args:
        threshold: of the brightest value; what is above is light.
        apply: False leaves pictures as they are.
    """

    backend: ClassVar = [TransformBackends.TORCH]

    def __init__(self, threshold: float = 0.05, apply: bool = True) -> None:
        if not 0 <= threshold < 1:
            raise ValueError(f"BlankOutside got threshold={threshold}, expected 0 to 1: change it.")
        self.threshold, self.apply = threshold, apply

    def __call__(self, image: NdarrayOrTensor) -> Tensor:
        """(C, H, W) or (C, H, W, T) -> the same; a picture without a field (all dark) is left as it is."""
        x = convert_to_tensor(image, track_meta=get_track_meta())
        if not self.apply or meta_of(x, "blanked") is not None:
            return x
        plain = x.as_subclass(Tensor)
        colours = plain[:3]  # without the transparency of a screenshot
        brightest = colours if plain.ndim == 3 else colours[..., 0].clone()
        for frame in colours.unbind(-1)[1:] if plain.ndim == 4 else ():
            torch.maximum(brightest, frame, out=brightest)
        light = brightest.amax(0).float()  # (H, W)
        mask = field_mask(light, self.threshold, meta_of(x, "regions"))
        shown = plain * (mask if plain.ndim == 3 else mask[..., None]).to(plain.dtype)
        shown[3:] = plain[3:]
        rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
        first, last = (int(rows[0]), int(columns[0])), (int(rows[-1]), int(columns[-1]))
        view = [*first, last[0] - first[0] + 1, last[1] - first[1] + 1]
        return like(x, shown, blanked=round(1 - float(mask.float().mean()), 4), view=view)


class CropToView(Geometry):
    """Cut off what lies around the field that `BlankOutside` found; the same in all frames of a run."""

    looks = False

    def __init__(self, apply: bool = True, lazy: bool = False) -> None:
        super().__init__(lazy)
        self.apply = apply

    def marked(self, meta: dict[str, Any]) -> dict[str, Any]:
        """It is cut once."""
        return {key: value for key, value in meta.items() if key != "view" or not self.apply}

    def plan(self, image: Tensor, size: tuple[int, int]) -> Plan:
        """The box of the field; all of the picture where none is known."""
        view = meta_of(image, "view")
        if not self.apply or view is None or min(view[2:]) < MIN_SIDE:
            return Box(0, 0, *size)
        return Box(*view)


def field_mask(light: Tensor, threshold: float, regions: list[list[int]] | None = None) -> Tensor:
    """True inside the field of view: (H, W) of light -> (H, W).

    Args:
        threshold: of the brightest value.
        regions: boxes [top, left, bottom, right] that the file itself names; nothing outside is looked at.
    """
    height, width = light.shape
    allowed = torch.ones(height, width, dtype=torch.bool)
    if regions:
        allowed.zero_()
        for top, left, bottom, right in regions:
            allowed[max(top, 0) : bottom + 1, max(left, 0) : right + 1] = True
    light = light * allowed
    scale = max(1.0, max(height, width) / SIDE)
    size = max(1, round(height / scale)), max(1, round(width / scale))
    small = F.adaptive_avg_pool2d(light[None], size)
    bright = (small > threshold * float(small.max())).float()[None]  # (1, 1, h, w)
    bright = bright * (1 - _words(light, threshold, size))
    joined = _shrunk(_grown(bright, JOIN), JOIN)
    thick = _largest(_grown(_shrunk(joined, THIN), THIN))
    for _ in range(THIN):  # corners that the opening took: the tip of a sector
        thick = torch.minimum(_grown(thick, 1), joined)
    if float(thick.mean()) < SMALL:
        return allowed if regions else torch.ones(height, width, dtype=torch.bool)
    rows = thick[0, 0].amax(1).nonzero().flatten()  # the hull is that of the ends of each row
    shown = thick[0, 0, rows]
    ends = shown.argmax(1), size[1] - shown.flip(1).argmax(1)  # edges left of the first and right of the last
    corners = [(rows + r, end) for r in (0, 1) for end in ends]
    points = torch.cat([torch.stack([c / size[1] * width, r / size[0] * height], 1) for r, c in corners])
    drawn = Image.new("1", (width, height))
    ImageDraw.Draw(drawn).polygon([tuple(p) for p in _hull(points.numpy())], fill=1, outline=1)
    return torch.from_numpy(np.array(drawn)) & allowed


def _words(light: Tensor, threshold: float, size: tuple[int, int]) -> Tensor:
    """1 where writing is, which closing gaps would make a field of: (H, W) -> (1, 1, h, w).

    Within a letter's reach there is ink and dark, less between them, and dark ends often along a row.
    """
    most = float(light.max())
    ink, dark = light > INK * most, light <= threshold * most
    edges = F.pad((dark[:, 1:] != dark[:, :-1]).float(), (0, 1))
    parts = torch.stack([ink.float(), dark.float(), edges])[None]  # (1, 3, H, W)
    reach = F.avg_pool2d(F.adaptive_avg_pool2d(parts, size), LETTER, 1, LETTER // 2, count_include_pad=False)
    inked, darkened, changes = reach.split(1, 1)
    changes = changes * (LETTER * light.shape[1] / size[1])  # in a row of that reach
    words = (inked > 0.05) & (1 - inked - darkened < inked) & (changes > 1.5)
    return _grown(words.float(), LETTER // 2)


def _grown(mask: Tensor, by: int) -> Tensor:
    """(1, 1, h, w) of 0 and 1, every side moved out by `by` pixels."""
    return F.max_pool2d(mask, 2 * by + 1, 1, by)


def _shrunk(mask: Tensor, by: int) -> Tensor:
    """The same moved in; the rim of the picture does not count as outside."""
    return -F.max_pool2d(-mask, 2 * by + 1, 1, by)


def _largest(mask: Tensor) -> Tensor:
    """The largest connected region of (1, 1, h, w)."""
    labels = torch.arange(1, mask.numel() + 1, dtype=torch.float32).view_as(mask) * mask
    while True:  # the highest number of a region floods it
        spread = F.max_pool2d(labels, 3, 1, 1) * mask
        if torch.equal(spread, labels):
            break
        labels = spread
    found, counts = labels[labels > 0].unique(return_counts=True)
    return (labels == found[counts.argmax()]).float() if len(found) else torch.zeros_like(mask)


def _hull(points: np.ndarray) -> list[tuple[float, float]]:
    """The convex hull of (N, 2), by Andrew's monotone chain."""
    ordered = np.unique(points, axis=0).tolist()

    def half(way: list[list[float]]) -> list[list[float]]:
        line: list[list[float]] = []
        for p in way:
            while len(line) > 1 and (line[-1][0] - line[-2][0]) * (p[1] - line[-2][1]) <= (
                line[-1][1] - line[-2][1]
            ) * (p[0] - line[-2][0]):
                line.pop()
            line.append(p)
        return line[:-1]

    return [(x, y) for x, y in half(ordered) + half(ordered[::-1])]


class BlankOutsided(PerKey):
    """Dictionary form of `BlankOutside`."""

    array = BlankOutside


class CropToViewd(GeometryPerKey):
    """Dictionary form of `CropToView`."""

    array = CropToView


BlankOutsideD = BlankOutsideDict = BlankOutsided
CropToViewD = CropToViewDict = CropToViewd
