# SPDX-License-Identifier: Apache-2.0
"""Slabs as volumes: which slices make one, and that the path of volumes shows and scores them as they are."""

from __future__ import annotations

import pytest
import torch

from monai_unimedvl.data.atlas import LEGENDS
from monai_unimedvl.evaluation import volumes
from monai_unimedvl.evaluation.image import paint
from monai_unimedvl.sequence import Turn
from monai_unimedvl.transforms.lazy import prepare

LEGEND = LEGENDS["seg-tissue"]


def slices(places, source="icbm09a"):
    generator = torch.Generator().manual_seed(0)
    found = []
    for place in places:
        mask = torch.randint(0, 4, (1, 16, 12), generator=generator)
        truth, picture = paint(mask, LEGEND)[0], torch.rand(1, 16, 12, generator=generator).expand(3, -1, -1)
        name = f"seg-tissue/{source}/axial/{place:+04d}"
        found.append({"id": name, "truth": truth, "turns": [Turn("user", [picture, "Segment."])]})
    return found


def test_neighbours_make_a_slab_and_gaps_part_them():
    items = slices([8, 2, 4, 6, 20, 22, 24]) + slices(range(0, 10, 2), "other")
    runs = [[item["id"] for item in run] for run in volumes.slabs(items[::-1])]
    assert sorted(map(len, runs)) == [4, 5]
    assert [f"seg-tissue/icbm09a/axial/{n:+04d}" for n in (2, 4, 6, 8)] in runs
    assert volumes.slabs([{"id": "seg-tissue/test/0/"}]) == []


def test_a_slab_is_shown_as_its_slices_were_and_scored_whole(monkeypatch):
    items = slices([0, 2, 4, 6])
    whole = volumes.stacked(items)
    part = prepare(volumes.VolumeInferer(volumes.ImageInferer(None), None).recipe, whole)[0]
    pictures = [part.picture(one) for one in part.slices("axial")]
    for item, picture in zip(items, pictures, strict=True):
        assert torch.allclose(picture.as_subclass(torch.Tensor), item["turns"][0].parts[0], atol=1e-6)

    class Painter(volumes.ImageInferer):
        """Draws the truth of three slices, and nothing for the last."""

        def __call__(self, batch, network, *rest):
            near = [
                [(prompt[0] - item["turns"][0].parts[0]).abs().max() for item in items] for prompt in batch
            ]
            places = [int(torch.tensor(row).argmin()) for row in near]
            return [items[n]["truth"] if n < 3 else torch.zeros(3, 16, 12) for n in places]

    monkeypatch.setattr(volumes, "ImageInferer", Painter)
    alone = {item["id"]: 0.5 for item in items}
    given = items[::-1]  # the order of a slab is not that of the items
    drawn = {"truth": torch.stack([item["truth"] for item in given])}
    (row,) = volumes.measure(
        None, None, given, alone, section="test", setting="2 steps", steps=2, beside=drawn
    )
    assert row.group == "all, as volumes" and row.n == 1
    assert row.baselines == {"its slices": 0.5, "truth": 1.0}
    truth = torch.stack([volumes.labels_from_colours(item["truth"][None], LEGEND)[0] for item in items])
    found = truth.clone()
    found[3] = 0
    each = [
        2 * float(((found == k) & (truth == k)).sum()) / int((found == k).sum() + (truth == k).sum())
        for k in (1, 2, 3)
    ]
    assert row.value == pytest.approx(sum(each) / 3)
