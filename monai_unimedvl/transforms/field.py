# SPDX-License-Identifier: Apache-2.0
"""A square field of stated width: what a model trained on square pictures of one scale expects.

There is one way of squaring a picture: a recipe's last step, for Python, the command line and the bundles.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from monai.data import MetaTensor
from torch import Tensor

from monai_unimedvl.transforms.geometry import Box, Geometry, GeometryPerKey, Plan, bright_box
from monai_unimedvl.transforms.image import MIN_SIDE, meta_of
from monai_unimedvl.transforms.slices import BRIGHT


class SquareField(Geometry):
    """Pad, or cut, until the picture is square; `inverse` puts what was drawn back.

    Args:
        width: None leaves pictures as they are. A number is the side of the field in mm, for pictures whose
            source says how large a pixel is. "square" is the side `square`. A picture without pixel size is
            padded to its longer side.
        centre: of a field in mm: "middle" of the picture; of the box around what is "bright" in it; or of
            that around what is bright in the whole "series", so that the slices lie on each other as they do
            on a workstation (`SelectSlices(centre="series")` notes it; a lone picture is its own series).
        square: what "square" means: mm as above, or None for the longer side, which cuts nothing.
        fill: what is padded with, in [0, 1].
    """

    centres: ClassVar = ("middle", "bright", "series")

    def __init__(
        self, width: float | str | None = None, centre: str = "middle", square: float | None = None,
        fill: float = 0.0, lazy: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(lazy)
        for side in (width, square):
            if isinstance(side, str) and side != "square" or isinstance(side, int | float) and not side > 0:
                raise ValueError(
                    f"SquareField got width={side!r}, expected mm above 0, 'square' or null: change field."
                )
        if centre not in self.centres:
            raise ValueError(
                f"SquareField got centre={centre!r}, expected one of {', '.join(self.centres)}: name one."
            )
        self.width, self.centre, self.square, self.fill = width, centre, square, fill

    def marked(self, meta: dict[str, Any]) -> dict[str, Any]:
        """A picture that was squared once is not squared again in the same way."""
        return dict(meta) if self.width is None else {**meta, "field": self._rule}

    @property
    def _rule(self) -> str:
        side = self.square if self.width == "square" else self.width
        return f"{side or 'longer side'} around {self.centre}"

    def plan(self, image: Tensor, size: tuple[int, int]) -> Plan:
        """The square."""
        height, across = size
        if self.width is None or meta_of(image, "field") == self._rule:
            return Box(0, 0, height, across)
        side = max(height, across)
        top, left, bottom, right = 0, 0, height, across
        width = self.square if self.width == "square" else self.width
        known = (meta_of(image, "source") or {}).get("spacing") is not None
        if width is not None and known and isinstance(image, MetaTensor):
            pixel = float(image.peek_pending_affine()[:3, 1].norm())  # mm; SquarePixels made both sides equal
            side = max(MIN_SIDE, round(float(width) / pixel))
            body = meta_of(image, "body") if self.centre == "series" else None
            box = None
            if body is not None:
                row, column, *_ = np.linalg.inv(image.peek_pending_affine().numpy()) @ [*body, 1.0]
                box = Box(round(row), round(column), 1, 1)
            elif self.centre != "middle":
                shown = image.as_subclass(Tensor).amax(0)  # (H, W)
                box = bright_box(shown > BRIGHT * float(shown.max()), 0.02)
            if box is not None:
                top, left, bottom, right = box.top, box.left, box.top + box.height, box.left + box.width
        return Box((top + bottom - side) // 2, (left + right - side) // 2, side, side, self.fill)


class SquareFieldd(GeometryPerKey):
    """Dictionary form of `SquareField`."""

    array = SquareField


SquareFieldD = SquareFieldDict = SquareFieldd
