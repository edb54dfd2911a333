# SPDX-License-Identifier: Apache-2.0
"""A volume comes out in its own space; what draws is mostly a stand-in that copies or thresholds."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor, decollate_batch, list_data_collate, set_track_meta
from torch import Tensor
from torch.testing import assert_close

from monai_unimedvl.inferers import Colour, Grey, ImageInferer, Labels, TextInferer, Tiles, VolumeInferer
from monai_unimedvl.networks.unimedvl import UniMedVL
from monai_unimedvl.tokenizer import Tokenizer
from monai_unimedvl.transforms import Recipe, recipe
from monai_unimedvl.transforms.volume import SelectSlices

LEGEND = {"dim": (120, 0, 0), "bright": (0, 0, 250)}


class Copy:
    """Draws each picture as it is; remembers how large the batches were and what was said."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.prompts: list[Any] = []

    def __call__(self, batch: Any, network: Any) -> list[Tensor]:
        self.batches.append(len(batch))
        self.prompts += batch
        return [self.draw(next(p for p in prompt if isinstance(p, Tensor))) for prompt in batch]

    def draw(self, picture: Tensor) -> Tensor:
        return torch.as_tensor(picture).as_subclass(Tensor).clone()


class Threshold(Copy):
    """Colours dim pixels dark red and bright ones blue."""

    def draw(self, picture: Tensor) -> Tensor:
        grey = picture.as_subclass(Tensor).mean(0)
        colours = torch.tensor([(0, 0, 0), *LEGEND.values()]) / 255
        return colours[(grey > 0.3).long() + (grey > 0.7).long()].movedim(-1, 0)


def hounsfield() -> Recipe:
    """CT without the stretch to square pixels, which nothing survives to the bit."""
    chain = recipe("ct", window="abdomen")
    chain.steps = [step for step in chain.steps if type(step).__name__ != "SquarePixels"]
    return chain


def source(
    order: tuple[int, ...] = (0, 1, 2), flips: tuple[int, ...] = (1, 1, 1), angle: float = 0.3
) -> MetaTensor:
    """int16 HU with thick oblique slices, its axes stored in any order and direction."""
    matrix = np.eye(4)
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    steps = turn * [0.8, 1.1, 4.0] * flips
    matrix[:3, :3] = steps[:, list(order)]
    matrix[:3, 3] = [-40.0, 55.5, 12.25]
    shape = [(18, 16, 12)[axis] for axis in order]
    values = torch.randint(-150, 251, (1, *shape), generator=torch.Generator().manual_seed(0))
    return MetaTensor(values.to(torch.int16), affine=torch.from_numpy(matrix))


@pytest.mark.parametrize("order, flips", [
    ((0, 1, 2), (1, 1, 1)), ((0, 1, 2), (-1, 1, 1)), ((2, 0, 1), (1, -1, -1)), ((1, 2, 0), (-1, -1, -1)),
])  # fmt: skip
@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_copied_slices_are_the_volume_in_its_own_space(order: Any, flips: Any, plane: str) -> None:
    volume = source(order, flips)
    draw = Copy()
    result = VolumeInferer(draw, hounsfield(), "copy", planes=plane, batch=5)(volume, None)
    assert result.dtype == torch.int16 and result.shape == volume.shape
    assert np.abs(result.affine.numpy() - volume.affine.numpy()).max() <= 1e-6
    assert torch.equal(result.as_subclass(Tensor), volume.as_subclass(Tensor))
    assert result.meta["synthetic"] is True and max(draw.batches) == 5


def test_stretched_slices_come_back_to_their_own_voxels() -> None:
    z, y, x = np.meshgrid(np.arange(12), np.arange(16), np.arange(18), indexing="ij")
    smooth = 50 * np.sin(x / 4) + 60 * np.cos(y / 5) + 8 * z
    volume = source()
    volume = MetaTensor(torch.from_numpy(smooth.transpose(2, 1, 0)[None]).float(), affine=volume.affine)
    result = VolumeInferer(Copy(), recipe("ct", field="square"), planes="sagittal")(volume, None, "copy")
    inside = (slice(None), slice(2, -2), slice(2, -2), slice(2, -2))
    assert float((result - volume).as_subclass(Tensor)[inside].abs().max()) < 2.0


def test_each_time_of_a_series_is_drawn_alone(tmp_path) -> None:
    import nibabel

    one = source().as_subclass(Tensor)[0]
    series = torch.stack([one, one.flip(0), one // 2], -1).numpy()
    nibabel.save(nibabel.Nifti1Image(series, source().affine.numpy()), tmp_path / "series.nii.gz")
    result = VolumeInferer(Copy(), hounsfield(), "copy")(tmp_path / "series.nii.gz", None)
    assert result.shape == (3, *one.shape) and result.dtype == torch.int16
    assert_close(result.as_subclass(Tensor)[1], torch.from_numpy(series[..., 1]))
    assert np.abs(result.affine.numpy() - nibabel.load(tmp_path / "series.nii.gz").affine).max() <= 1e-6
    with pytest.raises(ValueError, match="a series of 3 volumes came where colours are drawn"):
        VolumeInferer(Copy(), recipe("ct"), output=Colour())(tmp_path / "series.nii.gz", None, "stain")


@pytest.mark.parametrize("planes", ["axial", ("axial", "coronal", "sagittal")])
def test_colours_become_labels_on_the_source_voxels(planes: Any) -> None:
    values = torch.zeros(1, 20, 22, 18)
    values[:, 4:14, 5:16, 3:15] = 500
    values[:, 6:10, 8:12, 6:10] = 1000
    volume = MetaTensor(values, affine=torch.diag(torch.tensor([-1.0, 1, 1, 1], dtype=torch.float64)))
    chain = recipe("ct", window=[0, 1000])
    result = VolumeInferer(Threshold(), chain, output=Labels(LEGEND), planes=planes)(volume, None, "go")
    assert result.dtype == torch.uint8
    assert torch.equal(
        result.as_subclass(Tensor), (values > 0).to(torch.uint8) + (values > 700).to(torch.uint8)
    )


def test_three_planes_are_averaged() -> None:
    class Scaled(Copy):
        def draw(self, picture: Tensor) -> Tensor:
            share = {"axial": 0.3, "coronal": 0.6, "sagittal": 0.9}[picture.meta["source"]["plane"]]
            return torch.full((3, 8, 8), share)

    volume = MetaTensor(torch.rand(1, 9, 10, 11), affine=torch.eye(4))
    infer = VolumeInferer(Scaled(), planes=("axial", "coronal", "sagittal"), output=Grey("one"))
    result = infer(volume, None, "go").as_subclass(Tensor)
    assert_close(result, torch.full_like(result, 0.6))


def test_a_stain_gives_colours_and_tiles_cover_large_slices() -> None:
    class Redden(Copy):
        def draw(self, picture: Tensor) -> Tensor:
            assert tuple(picture.shape) == (3, 8, 8), "a window"
            return picture.as_subclass(Tensor) * torch.tensor([1.0, 0.5, 0.0])[:, None, None]

    values = torch.rand(1, 30, 21, 2)
    draw = Redden()
    infer = VolumeInferer(draw, output=Colour(), tiles=Tiles((8, 8), 0.5), batch=6)
    made = infer(MetaTensor(values, affine=torch.eye(4)), None, "stain")
    assert made.meta["shades"] == (0, 255), "what black and white stand for"
    result = made.as_subclass(Tensor)
    assert result.dtype == torch.uint8 and max(draw.batches) == 6
    assert sum(draw.batches) == 2 * 7 * 5, "windows lie half over each other: every 4 pixels of 30 and 21"
    expected = values * 255 * torch.tensor([1.0, 0.5, 0.0])[:, None, None, None]
    assert float((result - expected).abs().max()) <= 1.0


def test_thick_slices_are_drawn_on_square_pixels() -> None:
    volume = source(angle=0.0)
    infer = VolumeInferer(Copy(), recipe("ct"), "sharpen", planes="sagittal", square=True)
    result = infer(volume, None)
    assert result.shape == (1, 18, 16, 44)  # 12 slices of 4 mm, rows of 1.1 mm
    assert_close(result.affine[:3, :3].norm(dim=0), torch.tensor([0.8, 1.1, 48 / 44], dtype=torch.float64))
    corner = torch.tensor([-0.5, -0.5, -0.5, 1], dtype=torch.float64)
    assert_close(result.affine @ corner, volume.affine @ corner)


def test_slices_that_show_nothing_are_not_drawn() -> None:
    values = torch.zeros(1, 16, 16, 10)
    values[..., 4:6] = torch.rand(1, 16, 16, 2)
    draw = Copy()
    infer = VolumeInferer(draw, places=True, batch=4)
    result = infer(MetaTensor(values, affine=torch.eye(4)), None, "go")
    assert sum(draw.batches) == 2 and float(result[..., 0].max()) == 0
    assert draw.prompts[0][0] == "Axial slice, S +4.0 mm:" and draw.prompts[0][2] == "go"


def test_the_result_is_written_in_place(tmp_path) -> None:
    volume = source()
    place = np.memmap(tmp_path / "out.raw", np.int16, "w+", shape=tuple(volume.shape))
    result = VolumeInferer(Copy(), hounsfield(), "copy")(volume, None, out=place)
    assert np.array_equal(place, volume.numpy()) and np.shares_memory(result.numpy(), place)
    with pytest.raises(ValueError, match=r"out has shape \(1, 2, 2, 2\), expected \(1, 18, 16, 12\)"):
        VolumeInferer(Copy(), hounsfield(), "copy")(volume, None, out=np.zeros((1, 2, 2, 2)))


def test_a_batch_of_a_loader_gives_a_batch() -> None:
    first, second = source(), source(angle=0.1)
    for name, one in (("first", first), ("second", second)):
        one.meta["filename_or_obj"] = f"{name}.nii.gz"
    volumes = list_data_collate([first, second])
    for output in (None, Labels(LEGEND, None)):
        result = VolumeInferer(Copy(), hounsfield(), "copy", output=output)(volumes, None)
        assert isinstance(result, MetaTensor) and result.is_batch
        for made, one in zip(decollate_batch(result), (first, second), strict=True):
            assert_close(made.affine, one.affine, check_dtype=False)
            assert made.meta["filename_or_obj"] == one.meta["filename_or_obj"], "what SaveImage names it by"
        if output is None:
            assert_close(result.as_subclass(Tensor), volumes.as_subclass(Tensor))


def test_a_batch_of_pictures_is_no_volume() -> None:
    pictures = list_data_collate([MetaTensor(torch.rand(1, 16, 12)) for _ in range(2)])
    with pytest.raises(ValueError, match=r"batch of shape \(2, 1, 16, 12\), which are pictures, expected"):
        VolumeInferer(Copy(), hounsfield(), "copy")(pictures, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("per, asked", [("slice", 3), ("whole", 1)])
def test_answers_say_where_they_were_found(
    tiny: UniMedVL, tokenizer: Tokenizer, per: str, asked: int
) -> None:
    volume = MetaTensor(torch.rand(1, 12, 12, 9), affine=torch.diag(torch.tensor([1.0, 1, 5, 1])))
    read = VolumeInferer(
        TextInferer(tokenizer, max_new_tokens=2), per=per, places=per == "slice",
        select=SelectSlices(count=3, slab=5.0), batch=2,
    )  # fmt: skip
    answers = read(volume, tiny, "which plane?")
    assert len(answers) == asked and sum(len(one.sources) for one in answers) == 3
    alone = TextInferer(tokenizer, max_new_tokens=2)
    picture = SelectSlices(count=3)(volume)[0].expand(3, -1, -1)
    if per == "slice":
        (expected,) = alone([["Axial slice, S +5.0 mm:", picture, "which plane?"]], tiny)
        assert answers[0].answer == expected
        assert str(answers[0]) == f"Axial slice, S +5.0 mm: {expected}"
    else:
        assert str(answers[0]) == answers[0].answer.text


def test_a_real_inferer_draws_the_same_alone_and_in_batches(tiny: UniMedVL, tokenizer: Tokenizer) -> None:
    volume = MetaTensor(torch.rand(1, 10, 11, 5), affine=torch.eye(4))
    drawn = [
        VolumeInferer(ImageInferer(tokenizer, steps=2), instruction="x", batch=batch, output=Grey("one"))(
            volume, tiny
        )
        for batch in (1, 3)
    ]
    assert_close(drawn[0].as_subclass(Tensor), drawn[1].as_subclass(Tensor))
    assert float(drawn[0].std()) > 0.01


def test_settings_that_do_nothing_are_refused(tokenizer: Tokenizer) -> None:
    text = TextInferer(tokenizer)
    for arguments, message in [
        ({"planes": ()}, "planes=.*, expected one to three"),
        ({"planes": ("axial", "axial")}, "each once"),
        ({"planes": "oblique"}, "plane 'oblique' is not known"),
        ({"per": "voxel"}, "per='voxel', expected one of slice, whole"),
        ({"batch": 0}, "batch=0, expected 1 or more"),
        ({"square": True, "planes": ("axial", "coronal")}, "no common grid"),
        ({"select": SelectSlices()}, "an ImageInferer with select or per"),
    ]:
        with pytest.raises(ValueError, match=message):
            VolumeInferer(Copy(), **arguments)
    for arguments in [{"planes": "coronal"}, {"output": Grey()}, {"square": True}, {"tiles": Tiles((8, 8))}]:
        with pytest.raises(ValueError, match="a TextInferer with settings of drawing"):
            VolumeInferer(text, **arguments)
    with pytest.raises(ValueError, match="got no instruction"):
        VolumeInferer(Copy())(source(), None)
    with pytest.raises(ValueError, match="got 7, expected a question or task: give words"):
        VolumeInferer(Copy())(source(), None, 7)
    with pytest.raises(ValueError, match=r"\(9, 9, 9\) came where .* is needed: add a channel in front"):
        VolumeInferer(Copy(), recipe("ct"), "copy")(torch.zeros(9, 9, 9), None)
    with pytest.raises(ValueError, match="where a volume .* is needed"):
        VolumeInferer(Copy())(torch.rand(3, 20, 20), None, "x")
    with pytest.raises(ValueError, match="recipe 'fundus' chooses no slices"):
        VolumeInferer(Copy(), "fundus")(source(), None, "x")


@pytest.mark.parametrize("axis, plane", [(0, "sagittal"), (1, "coronal"), (2, "axial")])
@pytest.mark.parametrize("planes", [None, "axial", ("axial", "coronal", "sagittal")])
def test_a_volume_of_one_slice_is_drawn_in_its_own_plane(axis: int, plane: str, planes: Any) -> None:
    one = source().as_subclass(Tensor).narrow(1 + axis, 5, 1)
    draw = Copy()
    result = VolumeInferer(draw, hounsfield(), "copy", planes=planes)(
        MetaTensor(one, affine=source().affine), None
    )
    assert torch.equal(result.as_subclass(Tensor), one)
    assert [prompt[0].meta["source"]["plane"] for prompt in draw.prompts] == [plane]


def test_the_recipe_says_which_slices_are_read_and_in_which_plane_is_drawn(
    tiny: UniMedVL, tokenizer: Tokenizer
) -> None:
    text = TextInferer(tokenizer, max_new_tokens=1)
    chain = recipe("ct", count=3, policy="center", plane="coronal")
    taken = [answer.sources[0] for answer in VolumeInferer(text, chain)(source(), tiny, "?")]
    assert [(one["plane"], one["index"]) for one in taken] == [("coronal", i) for i in (6, 7, 8)]
    assert [one.meta["source"]["index"] for one in chain(source())] == [6, 7, 8], "as the recipe alone"
    few = MetaTensor(source().as_subclass(Tensor)[..., :5], affine=source().affine)
    assert len(VolumeInferer(text, recipe("ct"))(few, tiny, "?")) == 5, "nobody has named the usual eight"
    assert len(VolumeInferer(text)((few + 150).clamp(0, 400) / 400, tiny, "?")) == 5
    with pytest.raises(ValueError, match=r"count=8\) needs 8 slices, got 5"):
        VolumeInferer(text, recipe("ct"), select=SelectSlices(count=8))(few, tiny, "?")
    draw = Copy()
    VolumeInferer(draw, recipe("ct", plane="sagittal"))(source(), None, "copy")
    assert {prompt[0].meta["source"]["plane"] for prompt in draw.prompts} == {"sagittal"}


def test_a_window_that_was_asked_for_is_written_in_its_own_values() -> None:
    bone = Grey(bounds=(-500.0, 1500.0))
    shown = (source().as_subclass(Tensor).float() + 150).clamp(0, 400) / 400
    result = VolumeInferer(Copy(), hounsfield(), "copy", output=bone)(source(), None)
    assert result.dtype == torch.int16
    assert_close(result.as_subclass(Tensor).float(), shown * 2000 - 500, atol=0.51, rtol=0)
    small = MetaTensor(source().as_subclass(Tensor).clamp(0, 255).to(torch.uint8), affine=source().affine)
    result = VolumeInferer(Copy(), hounsfield(), "copy", output=bone)(small, None)
    assert result.dtype == torch.float32 and float(result.max()) > 1400, "uint8 holds no HU"
    high = VolumeInferer(Copy(), hounsfield(), "copy", output=Grey(bounds=(0.0, 1500.0)))(small, None)
    assert high.dtype == torch.float32, "nor what lies above 255"
    share = VolumeInferer(Copy(), hounsfield(), "copy", output=Grey(bounds=(0.0, 1.0)))(source(), None)
    assert_close(share.as_subclass(Tensor), shown)
    with pytest.raises(ValueError, match="expected black below white"):
        Grey(bounds=(3.0, 3.0))


def test_a_volume_comes_out_the_same_where_monai_tracks_no_meta() -> None:
    infer, volume = VolumeInferer(Copy(), recipe("ct"), "copy"), source()
    plain = infer(volume, None)
    set_track_meta(False)
    try:
        assert torch.equal(infer(volume, None).as_subclass(Tensor), plain.as_subclass(Tensor))
    finally:
        set_track_meta(True)


def test_every_order_and_flip_keeps_labels_in_place() -> None:
    for order, flips in itertools.product([(0, 1, 2), (2, 1, 0)], itertools.product((1, -1), repeat=3)):
        volume = source(order, flips)
        infer = VolumeInferer(Threshold(), hounsfield(), output=Labels(LEGEND, None))
        result = infer(volume, None, "go")
        grey = (volume.as_subclass(Tensor).float() + 150) / 400
        assert torch.equal(
            result.as_subclass(Tensor), ((grey > 0.3).int() + (grey > 0.7).int()).to(torch.uint8)
        )
