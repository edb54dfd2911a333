# SPDX-License-Identifier: Apache-2.0
"""What a report shows beside a drawing's score."""

from __future__ import annotations

import pytest
import torch

from monai_unimedvl.evaluation.examples import choose
from monai_unimedvl.evaluation.page import against
from monai_unimedvl.sequence import Turn


@pytest.mark.parametrize(
    ("score", "baseline", "verdict"),
    [(30.0, 30.0, "even"), (30.04, 29.96, "even"), (30.1, 30.0, True), (29.9, 30.0, False)],
)
def test_a_drawing_as_good_as_its_baseline_is_told_as_even(score, baseline, verdict):
    picture = torch.zeros(3, 8, 8)
    item = {"turns": [Turn("user", [picture, "Go."])], "truth": picture}
    one = {
        "id": "sr4/a/1", "task": "sr4", "section": "test", "setting": "4 steps", "asked": "Go.", "seed": 0,
        "scores": {"PSNR": score}, "baselines": {"PSNR": {"bicubic": baseline}}, "image": ("sr4", 0),
    }  # fmt: skip
    images = {"sr4": torch.zeros(1, 3, 8, 8, dtype=torch.uint8)}
    (found,) = choose([one], {"sr4/a/1": item}, images)
    assert found.good == verdict and type(found.good) is type(verdict)


def test_what_is_no_number_is_not_compared():
    assert against(float("nan"), 0.5, "{:.2f}") is None and against(0.5, float("nan"), "{:.2f}") is None
