# SPDX-License-Identifier: Apache-2.0
"""The rates of tests/benchmarks/marks.py on a few of its pictures."""

from __future__ import annotations

import numpy as np
import pytest
from provenance.pictures import drawn, real
from provenance.rates import CASES, CHANGES, FACTS, rates, told_apart

from monai_unimedvl.provenance.invisible import FOUND, LEAST, embed

pytestmark = pytest.mark.slow  # it draws, and reads a brain
pytest.importorskip("nilearn", reason="the pictures need nilearn's brain: pip install 'monai-unimedvl[demo]'")
pytest.importorskip("data_store", reason="the pictures need pydicom-data: pip install 'monai-unimedvl[demo]'")


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    """Five real ones and a drawing."""
    return [*real(5), *drawn(1, steps=2)]


def test_every_case_is_told_for_every_picture(pictures):
    assert told_apart(pictures[1::2]) == {(case, case): 3 for case in CASES}


@pytest.mark.parametrize("name", ["JPEG 90", "crop by 13 x 21 pixels, JPEG 90"])
def test_marks_are_found_and_only_they(pictures, name):
    marked, applied = zip(*(embed(pixels, FACTS.id()) for pixels in pictures), strict=True)
    assert min(one.psnr for one in applied) >= LEAST
    found, false, read = rates(pictures, list(marked), CHANGES[name], name.startswith("crop"))
    assert min(found) > FOUND > max(false) + 1 and read == len(pictures)
