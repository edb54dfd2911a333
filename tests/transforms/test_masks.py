# SPDX-License-Identifier: Apache-2.0
"""Colours become the labels of the nearest name, or uncertain; specks and holes go on request."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose
from torch import Tensor

from monai_unimedvl.data.atlas_tasks import LEGENDS
from monai_unimedvl.transforms.masks import (
    CleanLabels,
    CleanLabelsd,
    ColoursToLabels,
    ColoursToLabelsd,
    Legend,
    volumes_of,
)

TISSUE = Legend(LEGENDS["seg-tissue"])


@pytest.mark.parametrize("task", LEGENDS)
def test_each_colour_of_each_task_becomes_its_label_and_back(task: str) -> None:
    legend = Legend(LEGENDS[task])
    labels = torch.arange(len(legend) + 1).repeat(3, 1).to(torch.uint8)
    picture = legend.coloured(labels)
    assert picture.shape == (3, 3, len(legend) + 1)
    for image in (picture, (picture * 255).round().to(torch.uint8), picture + 0.04):
        assert torch.equal(ColoursToLabels(legend)(image)[0], labels)


def test_what_is_near_no_colour_is_uncertain() -> None:
    white, black = torch.tensor(TISSUE["white matter"]) / 255, torch.zeros(3)
    picture = torch.stack([white, (white + black) / 2, white * 0.9])[..., None].movedim(0, 1)  # (3, 3, 1)
    assert ColoursToLabels(TISSUE)(picture)[0, :, 0].tolist() == [2, TISSUE.uncertain, 2]
    assert TISSUE.labels["uncertain"] == 4
    assert TISSUE.uncertain not in ColoursToLabels(TISSUE, None)(picture)
    grey = TISSUE.coloured(torch.full((2, 2), TISSUE.uncertain))
    assert torch.equal(grey, torch.full((3, 2, 2), 0.5))


def test_specks_go_holes_close_and_only_the_largest_stays() -> None:
    labels = torch.zeros(1, 20, 20, dtype=torch.uint8)
    labels[0, 2:10, 2:10] = 1
    labels[0, 5, 5] = 0  # a hole
    labels[0, 15, 15] = 1  # a speck
    labels[0, 12:15, 2:6] = 2
    cleaned = CleanLabels(smallest=4, fill_holes=True)(labels)
    assert cleaned.dtype == torch.uint8 and cleaned[0, 5, 5] == 1 and cleaned[0, 15, 15] == 0
    assert int((cleaned == 2).sum()) == 12 and int((cleaned == 1).sum()) == 64
    largest = CleanLabels([1], largest_only=True)(labels)
    assert largest[0, 15, 15] == 0 and largest[0, 5, 5] == 0 and int((largest == 2).sum()) == 12
    assert torch.equal(CleanLabels()(labels), labels), "nothing asked, nothing done"


def test_cleaning_works_in_three_dimensions_and_keeps_the_affine() -> None:
    labels = torch.zeros(1, 9, 9, 9)
    labels[0, 2:6, 2:6, 2:6] = 1
    labels[0, 8, 8, 8] = 1
    affine = torch.diag(torch.tensor([2.0, 2, 5, 1]))
    cleaned = CleanLabels(smallest=3)(MetaTensor(labels, affine=affine))
    assert isinstance(cleaned, MetaTensor) and torch.equal(cleaned.affine, affine.double())
    assert volumes_of(cleaned, Legend({"lesion": (255, 0, 0)})) == {
        "lesion": 64 * 20 / 1000,
        "uncertain": 0.0,
    }


def test_dictionary_forms_run_in_a_chain() -> None:
    chain = Compose([ColoursToLabelsd("mask", TISSUE), CleanLabelsd("mask", smallest=2)])
    picture = MetaTensor(TISSUE.coloured(torch.ones(10, 10)))
    made = chain({"mask": picture})["mask"]
    assert made.shape == (1, 10, 10) and int(made.as_subclass(Tensor).sum()) == 100
    assert made.meta["legend"]["grey matter"] == 1


def test_settings_that_make_no_sense_are_refused() -> None:
    for make, message in [
        (lambda: Legend({}), "got no colours"),
        (lambda: Legend({"a": (0, 0, 300)}), "three whole numbers in 0..255"),
        (lambda: Legend({"a": (0, 0, 0)}), "got one colour twice"),
        (lambda: Legend({"uncertain": (9, 0, 0)}), "labels 0 and K . 1"),
        (lambda: ColoursToLabels(TISSUE, 0), "threshold=0, expected a distance above 0"),
        (lambda: ColoursToLabels(TISSUE)(torch.zeros(1, 8, 8)), r"shape \(1, 8, 8\), expected colours"),
        (lambda: CleanLabels(smallest=-1), "smallest=-1, expected 0 or more"),
        (lambda: CleanLabels()(torch.rand(1, 8, 8)), "expected whole numbers"),
    ]:
        with pytest.raises(ValueError, match=message):
            make()
