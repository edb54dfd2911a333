# SPDX-License-Identifier: Apache-2.0
"""Which section a slice or a patch belongs to, so that no test picture has a training twin.

In this order:
  by subject  train on one, test on another: ICBM152 family -> Colin27, brain1 -> brain2, lung1 -> lung2;
              itkT1 and daikonPD are for testing only
  by slab     one volume: 30-40 % of the range is val, 62-74 % is test; the three slices beside a slab
              belong to nobody
  by column   large images: a patch that straddles a border belongs to nobody
Sagittal slabs go by |x|, because the templates are mirror-symmetric. A slab is the same in every contrast of
the MNI grid. Random slices would leak: 96 % of them then have a training twin with r > 0.98.
"""

from __future__ import annotations

from monai_unimedvl.data.atlas_volumes import SIDE

__all__ = ["SECTIONS", "section_of_slab", "sections_of_columns"]

SECTIONS = ("train", "val", "test", "test_subject")
VAL_SLAB, TEST_SLAB, GUARD = (0.30, 0.40), (0.62, 0.74), 3


def section_of_slab(position: float, low: float, high: float, step: float) -> str | None:
    """Section of a slice at `position` in [low, high] with slices `step` apart; None in the guard."""
    share, guard = (position - low) / (high - low), GUARD * step / (high - low)
    for name, (start, stop) in (("val", VAL_SLAB), ("test", TEST_SLAB)):
        if start <= share <= stop:
            return name
        if start - guard <= share <= stop + guard:
            return None
    return "train"


def sections_of_columns(width: int, stride: int, size: int = SIDE) -> list[tuple[int, str]]:
    """(left edge, section) of the patches across an image, straddlers dropped.

    Train is left of 62 %, then comes one column of val, then test; a narrow image has no val.
    """
    first = int(width * 0.62)
    second = first + size if width - first >= 2 * size + stride else first
    bounds = [("train", 0, first), ("val", first, second), ("test", second, width)]
    if width - second < size:  # keep at least one test patch
        bounds = [("train", 0, width - size), ("test", width - size, width)]
    return [(left, name) for name, low, high in bounds for left in range(low, high - size + 1, stride)]
