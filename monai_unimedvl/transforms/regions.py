# SPDX-License-Identifier: Apache-2.0
"""Boxes and points: from pixels or mm into a prompt, and out of an answer back to the source.

In words a box is `<box>(x0,y0),(x1,y1)</box>` and a point `<point>(x,y)</point>`, in thousandths of the
picture's width and height from its upper left corner, as Qwen-VL writes them; `<ref>name</ref>` before says
what it is. So the words do not depend on the size that a model gives to the picture.
In numbers x is the column and y the row; pixel n covers n to n + 1.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from monai.data import MetaTensor

from monai_unimedvl.transforms.geometry import Box

FULL = 1000  # thousandths
_BOX = re.compile(
    r"(?:<ref>(?P<ref>[^<]*)</ref>\s*)?<(?P<kind>box|point)>(?P<inside>[^<]*)</(?P=kind)>", re.IGNORECASE
)
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


@dataclass(frozen=True)
class Region:
    """A box on a picture, or a point where both corners are the same.

    Args:
        left, top, right, bottom: in pixels of the picture, edges included.
        label: what it is.

    Raises:
        ValueError: corners in the wrong order, or no finite numbers.
    """

    left: float
    top: float
    right: float
    bottom: float
    label: str = ""

    def __post_init__(self) -> None:
        corners = self.left, self.top, self.right, self.bottom
        if not np.isfinite(corners).all() or self.right < self.left or self.bottom < self.top:
            raise ValueError(
                f"Region got corners {corners}, expected left <= right and top <= bottom: swap them."
            )

    @property
    def is_point(self) -> bool:
        """Whether it has no size."""
        return (self.left, self.top) == (self.right, self.bottom)

    def words(self, picture: MetaTensor) -> str:
        """As a prompt says it.

        Args:
            picture: (C, H, W) that the region lies on.

        Raises:
            ValueError: it leaves the picture.
        """
        height, width = picture.shape[-2:]
        if self.left < 0 or self.top < 0 or self.right > width or self.bottom > height:
            raise ValueError(
                f"region ({self.left:g}, {self.top:g}) to ({self.right:g}, {self.bottom:g}) leaves the "
                f"picture of {width}x{height} pixels: give x and y from 0 to these."
            )
        x0, x1 = (round(x / width * FULL) for x in (self.left, self.right))
        y0, y1 = (round(y / height * FULL) for y in (self.top, self.bottom))
        name = f"<ref>{self.label}</ref>" if self.label else ""
        if self.is_point:
            return f"{name}<point>({x0},{y0})</point>"
        return f"{name}<box>({x0},{y0}),({x1},{y1})</box>"

    def on_source(self, picture: MetaTensor) -> Region:
        """The same region in pixels of the slice or file that a recipe made the picture of."""
        place = _affine(picture)
        source = (picture.meta.get("source") or {}).get("affine")
        to_source = place if source is None else np.linalg.inv(np.asarray(source)) @ place
        corners = (
            to_source
            @ np.array(
                [[self.top - 0.5, self.left - 0.5, 0, 1], [self.bottom - 0.5, self.right - 0.5, 0, 1]]
            ).T
        )
        (top, bottom), (left, right) = np.sort(corners[0] + 0.5), np.sort(corners[1] + 0.5)
        return Region(float(left), float(top), float(right), float(bottom), self.label)

    def in_mm(self, picture: MetaTensor) -> np.ndarray:
        """Upper left and lower right corner in RAS mm, (2, 3).

        Raises:
            ValueError: the picture has no place in mm.
        """
        corners = [[self.top - 0.5, self.left - 0.5, 0, 1], [self.bottom - 0.5, self.right - 0.5, 0, 1]]
        found: np.ndarray = (_placed(picture) @ np.array(corners).T)[:3].T
        return found

    def told(self, picture: MetaTensor) -> dict[str, Any]:
        """Everything that is known of it, as JSON values."""
        there = self.on_source(picture)
        source = picture.meta.get("source") or {}
        corners = [round(x, 2) for x in (there.left, there.top, there.right, there.bottom)]
        known: dict[str, Any] = {"label": self.label, "pixels": corners}
        if source.get("plane"):
            known |= {"plane": source["plane"], "slice": source["index"]}
        if source.get("affine") is not None:
            known["mm"] = self.in_mm(picture).round(2).tolist()
        return known


def region_from_mm(
    picture: MetaTensor, first: Sequence[float], second: Sequence[float] | None = None, label: str = ""
) -> Region:
    """The region of a picture between two points in RAS mm, or at one.

    Raises:
        ValueError: the picture has no place in mm; a point that does not lie in its slice, or beside it.
    """
    to_picture = np.linalg.inv(_placed(picture))
    points = []
    for point in (first, first if second is None else second):
        if len(point) != 3:
            raise ValueError(f"point {tuple(point)} came, expected three numbers (R, A, S) in mm.")
        row, column, off = (to_picture @ [*point, 1])[:3]
        if abs(off) > 0.5 + 1e-6:
            raise ValueError(
                f"point {tuple(float(x) for x in point)} lies {abs(off):.1f} slices off the picture: take "
                "the slice that holds it."
            )
        points.append((column + 0.5, row + 0.5))
    (x0, x1), (y0, y1) = (sorted(values) for values in zip(*points, strict=True))
    height, width = picture.shape[-2:]
    if x0 < 0 or y0 < 0 or x1 > width or y1 > height:
        raise ValueError(
            f"the region lies at x {x0:.1f} to {x1:.1f}, y {y0:.1f} to {y1:.1f}, outside of the picture "
            f"of {width}x{height} pixels: take the picture that shows it."
        )
    return Region(float(x0), float(y0), float(x1), float(y1), label)


def region_from_source(
    picture: MetaTensor, left: float, top: float, right: float, bottom: float, label: str = ""
) -> Region:
    """The region of a picture that a box covers in pixels of the slice or file it was made of.

    Raises:
        ValueError: corners in the wrong order, or a box that leaves the picture.
    """
    given = Region(left, top, right, bottom, label)
    place = _affine(picture)
    source = (picture.meta.get("source") or {}).get("affine")
    to_picture = np.linalg.inv(place) @ (np.eye(4) if source is None else np.asarray(source))
    corners = [[given.top - 0.5, given.left - 0.5, 0, 1], [given.bottom - 0.5, given.right - 0.5, 0, 1]]
    (y0, y1), (x0, x1) = np.sort((to_picture @ np.array(corners).T)[:2] + 0.5)
    found = Region(float(x0), float(y0), float(x1), float(y1), label)
    found.words(picture)  # raises where it leaves the picture
    return found


def region_of(text: str, picture: MetaTensor) -> Region:
    """The region that a text names: pixels of the slice as it was read, or mm.

    Raises:
        ValueError: it is none, or lies outside of the picture.
    """
    numbers, millimetres, label = numbers_of(text)
    try:
        if millimetres:
            second = numbers[3:] if len(numbers) == 6 else None
            return region_from_mm(picture, numbers[:3], second, label)
        left, top, right, bottom = numbers if len(numbers) == 4 else [*numbers, *numbers]
        return region_from_source(picture, left, top, right, bottom, label)
    except ValueError as error:
        raise ValueError(f"box {text}: {error}") from error


def numbers_of(text: str) -> tuple[list[float], bool, str]:
    """Numbers, whether they are mm, and the label of "10,20,60,80=node" or "-4,30,12mm".

    Raises:
        ValueError: anything else.
    """
    where, _, label = text.partition("=")
    plain = where.strip().lower()
    millimetres = plain.endswith("mm")
    try:
        numbers = [float(part) for part in plain.removesuffix("mm").split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in ((3, 6) if millimetres else (2, 4)) or not all(map(math.isfinite, numbers)):
        raise ValueError(
            f"box {text!r} came, but X0,Y0,X1,Y1 or X,Y in pixels, or six or three numbers and mm, are"
            " expected, such as 10,20,60,80=node."
        )
    return numbers, millimetres, label.strip()


def regions_in(answer: str, picture: MetaTensor) -> list[Region]:
    """The boxes and points that an answer names, on the picture that was shown, in order.

    Corners in the wrong order are swapped and what leaves the picture is cut to it; a mark that holds
    anything but two or four numbers is words.

    Args:
        picture: (C, H, W); for several pictures in a prompt, the one that is meant.
    """
    height, width = picture.shape[-2:]
    found = []
    for mark in _BOX.finditer(str(answer)):
        numbers = [float(x) for x in _NUMBER.findall(mark["inside"])]
        rest = re.sub(r"-?\d+(?:\.\d+)?|[\s,()\[\]]", "", mark["inside"])
        if rest or len(numbers) != {"box": 4, "point": 2}[mark["kind"].lower()]:
            continue
        xs, ys = sorted(numbers[0::2]), sorted(numbers[1::2])
        x0, x1 = (min(max(x / FULL, 0.0), 1.0) * width for x in (xs[0], xs[-1]))
        y0, y1 = (min(max(y / FULL, 0.0), 1.0) * height for y in (ys[0], ys[-1]))
        found.append(Region(x0, y0, x1, y1, (mark["ref"] or "").strip()))
    return found


def moved(words: str, size: tuple[int, int], box: Box) -> str:
    """Words whose boxes and points lie where they did, once the picture of `size` (H, W) is cut or padded.

    What leaves the new picture is cut to it; a mark that holds no numbers stays.
    """

    def one(mark: re.Match[str]) -> str:
        places = iter(range(4))

        def number(found: re.Match[str]) -> str:
            axis = 1 - next(places) % 2  # x comes first
            start, side = ((box.top, box.height), (box.left, box.width))[axis]
            place = (float(found[0]) / FULL * size[axis] - start) / side
            return str(round(min(max(place, 0.0), 1.0) * FULL))

        inside = mark["inside"]
        if len(_NUMBER.findall(inside)) != {"box": 4, "point": 2}[mark["kind"].lower()]:
            return mark[0]
        start = mark.start("inside") - mark.start()
        return mark[0][:start] + _NUMBER.sub(number, inside) + mark[0][start + len(inside) :]

    return _BOX.sub(one, words)


def without_regions(answer: str) -> str:
    """The words of an answer, names kept and coordinates left out."""
    return re.sub(r"\s+", " ", _BOX.sub(lambda mark: f" {mark['ref'] or ''} ", str(answer))).strip()


def _affine(picture: MetaTensor) -> np.ndarray:
    """(4, 4) from (row, column, 0) to mm, or to rows and columns of the file."""
    if not isinstance(picture, MetaTensor) or picture.affine.shape[-1] != 4:
        raise ValueError(
            "a picture without an affine came, expected one that a recipe made: regions need its place."
        )
    found: np.ndarray = picture.affine.detach().cpu().numpy().astype(np.float64)
    return found


def _placed(picture: MetaTensor) -> np.ndarray:
    place = _affine(picture)
    if (picture.meta.get("source") or {}).get("affine") is None:
        raise ValueError("the picture has no place in mm: give regions in pixels.")
    return place
