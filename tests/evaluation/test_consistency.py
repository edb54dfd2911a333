# SPDX-License-Identifier: Apache-2.0
"""Cycles, edits, explanations and volumes that hang together, and such that do not."""

from __future__ import annotations

import pytest
import torch

from monai_unimedvl.evaluation import consistency
from monai_unimedvl.evaluation.asking import Drawing, Made, Said
from monai_unimedvl.evaluation.consistency import (
    difference_map,
    edit_drift,
    explained,
    named_region,
    report_cycle,
    slice_consistency,
)


@pytest.fixture
def region():
    mask = torch.zeros(16, 16, dtype=torch.bool)
    mask[4:8, 4:8] = True
    return mask


@pytest.fixture
def before():
    return torch.rand(3, 16, 16) * 0.5 + 0.2


def test_a_report_is_drawn_and_read_again_one_seed_each(monkeypatch):
    asked = []

    def ask(network, tokenizer, request):
        asked.append(request)
        if request.words:
            return Made(tuple(Said(f"axial {len(p)}", None, None, "end") for p in request.prompts))
        return Made(images=torch.full((len(request.prompts), 3, 4, 4), 255, dtype=torch.uint8))

    monkeypatch.setattr(consistency, "ask", ask)
    found = report_cycle(
        None, None, ["axial 2", "sagittal", "axial"], size=(4, 4), drawing=Drawing(1, 1.0), seed=7, batch=2
    )
    assert [one.scores["token F1"] for one in found] == pytest.approx([1.0, 0.0, 2 / 3])
    drawn, read = asked[0], asked[1]
    assert drawn.seeds == (7, 8) and asked[2].seeds == (9,) and drawn.prompts == [["axial 2"], ["sagittal"]]
    assert read.prompts[0][1] == "Describe this image." and float(read.prompts[0][0].max()) == 1.0


def test_a_cycle_runs_on_a_network(model):
    (one,) = report_cycle(
        *model, ["axial T1 MRI of the head."], size=(16, 16), drawing=Drawing(1, 1.0), words=2
    )
    assert (
        one.image.shape == (3, 16, 16) and one.image.dtype == torch.uint8 and 0 <= one.scores["token F1"] <= 1
    )


def test_an_edit_inside_its_region_does_not_drift(before, region):
    after = before + 0.25 * region
    found = edit_drift(before, after, region)
    assert (found.outside, found.leaked, found.touched, found.psnr) == (0.0, 0.0, 0.0, 100.0)
    assert found.inside == pytest.approx(0.25)


def test_drift_is_the_share_of_the_change_that_leaks_out(before, region):
    after = before + 0.25 * region
    after[:, 12, :8] += 0.1
    found = edit_drift(before, after, region)
    assert found.leaked == pytest.approx(0.8 / (16 * 0.25 + 0.8), rel=1e-5)
    assert found.touched == pytest.approx(8 / 240) and found.outside == pytest.approx(0.8 / 240, rel=1e-5)
    assert found.psnr == pytest.approx(-10 * torch.tensor(0.08 / 240).log10().item(), abs=1e-3)
    assert edit_drift(before, before, region).leaked == 0.0


def test_a_change_where_the_explanation_says_is_explained(before, region):
    right = explained(before, before + 0.25 * region, region, sigma=0.0)
    assert right.inside == pytest.approx(1.0) and right.auroc == 1.0 and right.hit and right.iou == 1.0
    assert right.expected == pytest.approx(16 / 256)
    wrong = explained(before, before + 0.25 * region.flip(0), region, sigma=0.0)
    assert wrong.inside == 0.0 and wrong.auroc < 0.5 and not wrong.hit and wrong.iou == 0.0
    nothing = explained(before, before, region)
    assert (nothing.inside, nothing.auroc, nothing.hit) == (0.0, 0.5, False)


def test_the_auroc_of_a_difference_map_is_scikit_learns(before, region):
    sk = pytest.importorskip("sklearn.metrics")
    after = before + 0.1 * torch.rand(3, 16, 16) + 0.03 * region
    change = difference_map(before, after, 1.0)
    expected = sk.roc_auc_score(region.flatten().numpy(), change.flatten().numpy())
    assert explained(before, after, region).auroc == pytest.approx(expected, abs=1e-6)


def test_a_text_names_its_region(region):
    masks = {"left lung": region, "heart": region.flip(0)}
    assert torch.equal(named_region("Opacity of the LEFT LUNG, removed.", masks), region)
    assert torch.equal(named_region("heart and left lung", masks), region | region.flip(0))
    assert named_region("The liver.", masks) is None


def test_flicker_is_told_from_the_smoothness_of_the_source():
    ramp = torch.linspace(0, 1, 12).expand(16, 16, 12) + torch.rand(16, 16, 1)
    same = slice_consistency(ramp, ramp)
    assert same.ratio == pytest.approx(1.0) and same.similarity == same.real
    flicker = ramp.clone()
    flicker[..., 5:] += 0.5
    found = slice_consistency(flicker.clamp(0, 2), ramp)
    assert found.ratio > 1.3 and found.worst[0] == 4 and found.similarity < same.similarity
    assert slice_consistency(ramp[..., :1].expand(-1, -1, 12) + 0 * ramp, ramp).ratio == 0.0  # smeared
    alone = slice_consistency(flicker)
    assert alone.ratio is None and alone.real is None and alone.worst[0] == 4
    turned = slice_consistency(flicker.clamp(0, 2).movedim(-1, 0), ramp.movedim(-1, 0), axis=0)
    assert turned.ratio == pytest.approx(found.ratio)


def test_what_does_not_fit_together_is_told(before, region):
    with pytest.raises(ValueError, match="resize the edit to its source"):
        edit_drift(before, before[:, :8], region)
    with pytest.raises(ValueError, match="The region has shape .16, 8."):
        edit_drift(before, before, region[:, :8])
    with pytest.raises(ValueError, match="empty or everything"):
        explained(before, before, torch.zeros_like(region))
    with pytest.raises(ValueError, match="resample the one onto the other"):
        slice_consistency(torch.rand(9, 9, 4), torch.rand(9, 9, 5))
    with pytest.raises(ValueError, match="expected .X, Y, Z., some slices"):
        slice_consistency(torch.rand(9, 9, 1))
    with pytest.raises(ValueError, match="one value everywhere"):
        slice_consistency(torch.ones(9, 9, 4))
