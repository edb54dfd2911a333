# SPDX-License-Identifier: Apache-2.0
"""A square field of stated width: what a model trained on square pictures of one scale expects."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch.nn.functional as F
from monai.config import NdarrayOrTensor
from monai.data import MetaTensor
from monai.transforms import Transform
from monai.utils import TransformBackends
from torch import Tensor

from monai_unimedvl.transforms.image import PerKey, as_picture, like, meta_of


class SquareField(Transform):
    """Pad with zeros, or cut, around the centre until the picture is square.

    Args:
        width: side of the field in mm, for pictures whose source says how large a pixel is; a picture
            without pixel size is padded to its longer side, and so is every one for "square". None leaves
            pictures as they are.
    """

    backend: ClassVar = [TransformBackends.TORCH]

    def __init__(self, width: float | str | None = None) -> None:
        if isinstance(width, str) and width != "square" or isinstance(width, int | float) and width <= 0:
            raise ValueError(
                f"SquareField got width={width!r}, expected mm above 0, 'square' or null: change field."
            )
        self.width = width

    def __call__(self, image: NdarrayOrTensor) -> Tensor:
        """(C, H, W) -> (C, S, S)"""
        x = as_picture(image)
        if self.width is None:
            return x
        height, across = x.shape[-2:]
        side = max(height, across)
        known = (meta_of(x, "source") or {}).get("spacing") is not None
        if not isinstance(self.width, str) and known and isinstance(x, MetaTensor):
            pixel = float(x.affine[:3, 1].norm())  # mm; SquarePixels has made both sides the same
            side = max(1, round(self.width / pixel))
        top, left = (side - height) // 2, (side - across) // 2
        to_source = np.eye(4)
        to_source[:2, 3] = -top, -left
        padding = (left, side - across - left, top, side - height - top)  # negative cuts
        return like(x, F.pad(x.as_subclass(Tensor), padding), to_source)


class SquareFieldd(PerKey):
    """Dictionary form of `SquareField`."""

    array = SquareField


SquareFieldD = SquareFieldDict = SquareFieldd
