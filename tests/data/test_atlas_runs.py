# SPDX-License-Identifier: Apache-2.0
"""Runs of neighbouring slices: of one volume, evenly spaced, and what is there if any slice shows it."""

from __future__ import annotations

import numpy as np

from monai_unimedvl.data.atlas_pictures import Picture
from monai_unimedvl.data.atlas_runs import Asked, runs
from monai_unimedvl.data.atlas_tasks import YES_AT


def slices(
    positions: list[float], source: str = "v", section: str = "test", **facts: object
) -> list[Picture]:
    known = {"body": "brain", **facts}
    return [
        Picture(f"{source}/{p}", source, "s", "MRI", "T1", "axial", section, np.zeros((4, 4), np.uint8), p,
                dict(known))
        for p in positions
    ]  # fmt: skip


def test_a_run_is_of_one_volume_and_section_and_has_no_gap() -> None:
    pictures = [
        *slices([0, 2, 4, 6, 8, 20, 22]), *slices([0, 2, 4], "w"), *slices([10, 12, 14], section="train"),
        *slices([1, 3, 5], mirrored=True), *slices([0, 1, 3, 5, 7], "x"),
    ]  # fmt: skip
    found = list(runs(pictures, ["test"], length=3, stride=1))
    places = [(run.slices[0].source, [p.position for p in run.slices]) for run in found]
    assert places == [("v", [0, 2, 4]), ("v", [2, 4, 6]), ("v", [4, 6, 8]), ("w", [0, 2, 4]),
                      ("x", [1, 3, 5]), ("x", [3, 5, 7])]  # fmt: skip
    assert len(list(runs(pictures, ["test"], length=3, stride=2))) == 4


def test_a_region_is_there_if_any_slice_shows_it_and_not_asked_in_between() -> None:
    pictures = slices([0, 2, 4])
    for picture, seen, hardly in zip(pictures, (0, YES_AT, 3), (0, YES_AT - 1, 0), strict=True):
        picture.facts["areas"] = {"insula": seen, "thalamus": hardly, "cerebellum": 0}
    (run,) = runs(pictures, ["test"], length=3)
    assert run.asked == (
        Asked("contrast", "T1"), Asked("plane", "axial"), Asked("body", "brain"),
        Asked("region: insula", "yes"), Asked("region: cerebellum", "no"),
    )  # fmt: skip


def test_a_tumour_is_there_if_any_slice_shows_it() -> None:
    pictures = slices([0, 1, 2], tumour=False)
    pictures[1].facts["tumour"] = True
    (run,) = runs(pictures, ["test"], length=3)
    assert run.asked[-1] == Asked("tumour", "yes")
    pictures[1].facts["tumour"] = False
    (run,) = runs(pictures, ["test"], length=3)
    assert run.asked[-1] == Asked("tumour", "no")
