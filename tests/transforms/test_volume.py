# SPDX-License-Identifier: Apache-2.0
"""Slices are shown as radiologists see them, whatever the file's axes, and know their place in mm."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from torch.testing import assert_close

from monai_unimedvl.transforms.volume import (
    SelectFrames,
    SelectSlices,
    SelectSlicesd,
    nearest_plane,
    picked,
    place_in_words,
    placed_prompt,
    to_display,
)

# what rows, columns and slices of a picture must follow in RAS mm
TOWARDS = {"axial": (-1, 0, 2), "coronal": (-2, 0, 1), "sagittal": (-2, -1, 0)}


def patient(order: tuple[int, ...], flips: tuple[bool, ...], shape: tuple[int, int, int]) -> MetaTensor:
    """A volume whose voxel values tell their place, stored with its axes in any order and direction."""
    spacing = np.array([1.0, 2.0, 3.0])
    matrix = np.eye(4)
    matrix[:3, :3] = 0
    for axis, (world, flipped) in enumerate(zip(order, flips, strict=True)):
        matrix[world, axis] = -spacing[world] if flipped else spacing[world]
        matrix[world, 3] = 50.0 if flipped else -40.0
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    place = index @ matrix[:3, :3].T + matrix[:3, 3]  # (X, Y, Z, 3) in RAS mm
    code = place @ [1.0, 1000.0, 1000000.0]
    return MetaTensor(torch.from_numpy(code)[None], affine=torch.from_numpy(matrix), meta={"kind": "volume"})


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_orientation_does_not_depend_on_how_the_file_is_stored(plane: str) -> None:
    first = None
    for order in itertools.permutations(range(3)):
        for flips in itertools.product([False, True], repeat=3):
            volume = patient(order, flips, tuple(np.array([8, 9, 10])[list(order)]))
            shown, place = to_display(volume.as_subclass(torch.Tensor), volume.affine.numpy(), plane)
            steps = place[:3, :3]  # columns: row, column, slice direction in RAS
            down, across, through = (int(np.abs(steps[:, i]).argmax()) for i in range(3))
            expected = {"axial": (1, 0, 2), "coronal": (2, 0, 1), "sagittal": (2, 1, 0)}[plane]
            assert (down, across, through) == expected
            assert steps[down, 0] < 0, "rows run to posterior or inferior"
            assert steps[across, 1] < 0, "columns run to the patient's left, or to posterior"
            assert steps[through, 2] > 0, "slices run to right, anterior, superior"
            first = shown.shape if first is None else first
            assert shown.shape == first


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_every_pixel_knows_its_place(plane: str) -> None:
    volume = patient((2, 0, 1), (True, False, True), (10, 12, 14))
    for one in SelectSlices(count=3, plane=plane)(volume):
        affine = np.array(one.meta["source"]["affine"])
        for row, column in ((0, 0), (3, 5), (one.shape[1] - 1, one.shape[2] - 1)):
            place = (affine @ [row, column, 0, 1])[:3]
            assert float(one[0, row, column]) == pytest.approx(place @ [1.0, 1000.0, 1000000.0])
        middle = affine @ [(one.shape[1] - 1) / 2, (one.shape[2] - 1) / 2, 0, 1]
        assert_close(np.array(one.meta["source"]["position"]), middle[:3])
        assert_close(one.affine.numpy(), affine)


def test_source_names_slice_and_spacing() -> None:
    volume = patient((0, 1, 2), (False, False, False), (10, 12, 20))
    one = SelectSlices(count=4)(volume)[0]
    source = one.meta["source"]
    assert (source["plane"], source["index"], source["count"], source["shape"]) == (
        "axial",
        2,
        20,
        [1, 10, 12, 20],
    )
    assert source["spacing"] == [2.0, 1.0, 3.0] and source["size"] == [12, 10]
    assert source["position"][2] == -40 + 3 * 2


def test_an_oblique_volume_is_cut_along_its_nearest_axis() -> None:
    angle = np.deg2rad(30)
    matrix = np.eye(4)
    matrix[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    volume = MetaTensor(torch.rand(1, 8, 9, 10), affine=torch.from_numpy(matrix), meta={"kind": "volume"})
    one = SelectSlices(count=1, plane="axial")(volume)[0]
    assert torch.equal(one[0], volume[0, :, :, 5].flip(0, 1).T)  # the middle of ten: index 5
    assert nearest_plane(matrix, 2) == "axial"


def test_policies_take_what_they_say() -> None:
    assert picked(4, "uniform", 20, (), "") == [2, 7, 12, 17]
    assert picked(20, "uniform", 20, (), "") == picked(1, "all", 20, (), "") == list(range(20))
    assert picked(3, "center", 20, (), "") == [8, 9, 10]


def test_slices_lie_every_so_many_mm_around_the_middle() -> None:
    volume = patient((0, 1, 2), (False, False, False), (10, 12, 21))  # 3 mm apart
    places = [p.meta["source"]["position"][2] for p in SelectSlices(policy="mm", every=12.0)(volume)]
    assert places == [-34.0, -22.0, -10.0, 2.0, 14.0]
    with pytest.raises(ValueError, match="every=2.0.* is finer than the slices, which lie 3 mm apart"):
        SelectSlices(policy="mm", every=2.0)(volume)


def test_slices_without_content_are_passed_over() -> None:
    values = torch.zeros(1, 16, 16, 30)
    values[:, 4:12, 4:12, 10:20] = 100
    volume = MetaTensor(values, affine=torch.eye(4))
    found = [p.meta["source"]["index"] for p in SelectSlices(count=5, policy="content")(volume)]
    assert found == [11, 13, 15, 17, 19]
    with pytest.raises(ValueError, match="found no slice that shows anything in shape"):
        SelectSlices(count=5, policy="content")(MetaTensor(torch.zeros(1, 16, 16, 30)))


@pytest.mark.parametrize("project, expected", [("mean", 15.0), ("max", 16.0), ("min", 14.0)])
def test_a_slab_is_projected_over_its_thickness(project: str, expected: float) -> None:
    values = torch.arange(32.0).expand(1, 9, 10, 32)
    volume = MetaTensor(values, affine=torch.diag(torch.tensor([1.0, 1, -3, 1])))  # stored top to bottom
    (one,) = SelectSlices(count=1, slab=6.5, project=project)(volume)
    assert one.meta["source"]["slab"] == [15, 17] and one.meta["source"]["index"] == 16
    assert_close(one.as_subclass(torch.Tensor), torch.full((1, 10, 9), expected))
    assert place_in_words(one.meta["source"]) == "Axial slab, S -45.0 mm"


def test_a_prompt_says_where_its_pictures_lie() -> None:
    volume = patient((0, 1, 2), (False, False, False), (10, 12, 20))
    pictures = SelectSlices(count=2, plane="coronal")(volume)
    prompt = placed_prompt(pictures, "What is seen?")
    assert [part for part in prompt if isinstance(part, str)] == [
        "Coronal slice, A -34.0 mm:", "Coronal slice, A -22.0 mm:", "What is seen?",
    ]  # fmt: skip
    assert prompt[1] is pictures[0] and prompt[3] is pictures[1]


def test_too_many_slices_are_refused_with_the_mend() -> None:
    message = (
        r"SelectSlices\(count=32\) needs 32 slices, got 20 in shape \(1, 512, 512, 20\): "
        r'lower count or use policy="all"\.'
    )
    with pytest.raises(ValueError, match=message):
        SelectSlices(count=32)(torch.zeros(1, 512, 512, 20))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"policy": "best"}, "policy 'best' is not known: use one of uniform, center, content, mm, all"),
        ({"plane": "oblique"}, "plane 'oblique' is not known: use one of sagittal, coronal, axial"),
        ({"count": 0}, "count=0, expected 1 or more"),
        ({"every": 5.0}, 'policy="uniform" with every=5.0, but every .* belong together'),
        ({"policy": "mm"}, 'policy="mm" with every=None'),
        ({"slab": -1.0}, "slab=-1.0, project='mean', expected mm of 0 or more"),
        (
            {"slab": 5.0, "project": "sum"},
            "project='sum', expected mm of 0 or more and one of mean, max, min",
        ),
    ],
)
def test_wrong_settings_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SelectSlices(**arguments)


def test_a_series_in_time_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(1, 8, 8, 8, 3\), expected a volume"):
        SelectSlices()(torch.zeros(1, 8, 8, 8, 3))


def test_frames_come_in_order_and_volumes_are_no_frames() -> None:
    run = MetaTensor(torch.arange(5.0).expand(3, 8, 8, 5), meta={"kind": "frames"})
    assert [float(one[0, 0, 0]) for one in SelectFrames()(run)] == [0, 1, 2, 3, 4]
    assert [one.meta["source"]["index"] for one in SelectFrames(2, "uniform")(run)] == [1, 3]
    with pytest.raises(ValueError, match=r"a 4-D volume came, shape \(1, 8, 8, 5\), where a 3-D picture"):
        SelectFrames()(torch.zeros(1, 8, 8, 5))


def test_image_and_label_are_cut_alike() -> None:
    volume = patient((0, 1, 2), (False, True, False), (10, 12, 20))
    records = SelectSlicesd(["image", "label"], count=2)({"image": volume, "label": volume * 2, "id": "a"})
    assert len(records) == 2
    for record in records:
        assert_close(record["label"].as_subclass(torch.Tensor), record["image"].as_subclass(torch.Tensor) * 2)
        assert record["id"] == "a"
