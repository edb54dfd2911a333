# SPDX-License-Identifier: Apache-2.0
"""A model that copies fails the gate; one that draws from the same law does not."""

from __future__ import annotations

import pytest
import torch

from monai_unimedvl.evaluation.audit import audit


@pytest.fixture
def people():
    """60 people, 4 images each: their own place, and a little noise."""
    places = torch.randn(60, 8).repeat_interleave(4, 0) * 3
    return places + torch.randn(240, 8) * 0.3, [f"p{n // 4}" for n in range(240)]


def test_new_people_of_the_same_law_pass(people):
    images, _ = people
    held_out, drawn = (torch.randn(80, 8) * 3 for _ in range(2))
    found = audit(drawn, images, held_out, encoder="eight numbers")
    assert found.verdict == "passed" and found.why == ("nothing above its limit by eight numbers",)
    assert found.copies.low < 0.05 and 0.3 < found.memorised.value < 0.65 and found.reidentified is None
    assert found.copies.reference == pytest.approx(0.0125) and found.memorised.reference == 0.5
    assert len(found.nearest) == 80 and str(found) == "passed: nothing above its limit by eight numbers"


def test_copies_fail_and_say_why(people):
    images, _ = people
    drawn = torch.randn(80, 8) * 3
    drawn[:30] = images[10:40] + 0.01
    found = audit(drawn, images, torch.randn(80, 8) * 3, encoder="e")
    assert found.verdict == "failed" and "copy a training image, 5% allowed" in found.why[0]
    assert found.copies.low > 0.25 and found.nearest[0][0] == 10
    apart = torch.cdist(drawn.double(), images.double()).sort(1).values
    assert found.ratio.value == pytest.approx(float((apart[:, 0] / apart[:, 1]).quantile(0.5)))
    assert found.ratio.low <= found.ratio.value <= found.ratio.high  # of the median, not of the mean


def test_drawing_a_patient_again_is_re_identification(people):
    images, patients = people
    drawn = images[::4] + torch.randn(60, 8) * 0.3
    asked = patients[::4]
    found = audit(drawn, images, torch.randn(80, 8) * 3, encoder="e", asked=asked, patients=patients)
    assert found.reidentified.value > 0.9 and found.reidentified.reference == pytest.approx(1 / 60)
    assert found.verdict == "failed" and any("lead back to the patient" in line for line in found.why)
    assert set(found.patients) == set(asked) and found.ratio.value < 0.5
    shuffled = asked[7:] + asked[:7]
    other = audit(drawn, images, drawn + 0.1, encoder="e", asked=shuffled, patients=patients)
    assert other.reidentified.value < 0.1 and not any("lead back" in line for line in other.why)


def test_a_few_images_do_not_decide(people):
    found = audit(torch.randn(20, 8) * 3, people[0], torch.randn(80, 8) * 3, encoder="e")
    assert found.verdict == "undecided" and "20 drawn images are too few, 50 are asked for" in found.why


def test_the_same_audit_gives_the_same_numbers(people):
    drawn, held_out = torch.randn(60, 8), torch.randn(70, 8)
    assert audit(drawn, people[0], held_out, encoder="e") == audit(drawn, people[0], held_out, encoder="e")


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"held_out": torch.zeros(5, 7)},
            "held-out images have features of shape .5, 7., expected",
        ),
        ({"asked": ["a"] * 9}, "expected both"),
        ({"asked": ["a"] * 8, "patients": ["a", "b"] * 10}, "9 drawn images came with 8 patients"),
        ({"asked": ["a"] * 9, "patients": ["a"] * 20}, "All training images are of one patient"),
    ],
)
def test_what_cannot_be_audited_is_told(change, message):
    given = {"drawn": torch.rand(9, 8), "training": torch.rand(20, 8), "held_out": torch.rand(9, 8)}
    with pytest.raises(ValueError, match=message):
        audit(**{**given, "encoder": "e", **change})
