# SPDX-License-Identifier: Apache-2.0
"""Every recipe on a real file of its modality; each YAML in /transforms is found by glob."""

from __future__ import annotations

import importlib.util
import shutil
import time
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from monai.data import MetaTensor, get_track_meta, set_track_meta
from monai.transforms import Flip
from PIL import Image
from pydicom.data import get_testdata_file
from torch.testing import assert_close

from monai_unimedvl import transforms
from monai_unimedvl.transforms import RECIPES, modalities, recipe
from monai_unimedvl.transforms.field import SquareField
from monai_unimedvl.transforms.geometry import put_back
from monai_unimedvl.transforms.intensity import PercentileScale

ALL = sorted(path.stem for path in RECIPES.glob("*.yaml"))


def installed(package: str, *parts: str) -> Path:
    """A file inside an installed package; skips when the package is not there."""
    module = pytest.importorskip(package)
    return Path(module.__file__).parent.joinpath(*parts)


@pytest.fixture(scope="session")
def brain() -> Path:
    return installed("nilearn", "datasets", "data", "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz")


@pytest.fixture
def ct() -> str:
    return str(get_testdata_file("CT_small.dcm", download=False))


def as_expected(pictures: list[MetaTensor]) -> None:
    """What design.md promises of every recipe."""
    assert pictures
    for one in pictures:
        assert isinstance(one, MetaTensor) and one.dtype == torch.float32 and one.shape[0] == 3
        assert 0 <= float(one.min()) and float(one.max()) <= 1
        source = one.meta["source"]
        assert {"shape", "kind", "index", "count", "size"} <= set(source) and None not in source.values()
        assert len({"spacing", "position", "affine"} & set(source)) in (0, 3), "a place is known or not"


def test_the_modalities_are_the_yaml_files() -> None:
    assert modalities() == ALL and {"mri", "xray", "ct", "histopathology", "fundus"} <= set(ALL)


def test_a_wheel_finds_the_recipes_inside_itself(tmp_path: Path) -> None:
    room = tmp_path / "site" / "monai_unimedvl" / "transforms"
    shutil.copytree(RECIPES, room / "recipes")
    (tmp_path / "site" / "transforms").mkdir()  # another package of that name must not be taken for ours
    code = shutil.copy(transforms.__file__, room)
    spec = importlib.util.spec_from_file_location("wheel_transforms", code)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.RECIPES == (room / "recipes").resolve() and module.modalities() == ALL


@pytest.mark.parametrize("name", ALL)
def test_every_recipe_takes_a_picture_and_twice_is_once(name: str, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 56, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    prepare = recipe(name)
    once = prepare(tmp_path / "a.png")
    as_expected(once)
    assert_close(once[0].numpy(), pixels.transpose(2, 0, 1) / np.float32(255))  # 8 bits stay what they are
    twice = prepare(once[0])
    assert len(twice) == 1 and torch.equal(twice[0], once[0])
    assert twice[0].meta["source"] == once[0].meta["source"]


@pytest.mark.parametrize("name", ALL)
def test_every_recipe_refuses_bad_input_with_the_name_of_the_file(name: str, tmp_path: Path) -> None:
    np.save(tmp_path / "five.npy", np.zeros((5, 64, 64), np.uint8))
    (tmp_path / "empty.png").touch()
    Image.new("L", (1, 1)).save(tmp_path / "dot.png")
    for file, message in (("five.npy", "5 channels"), ("empty.png", "is empty"), ("dot.png", "1x1 pixels")):
        with pytest.raises(ValueError, match=rf"{file}.*{message}"):
            recipe(name)(tmp_path / file)


def test_an_unknown_modality_is_named_with_the_known_ones() -> None:
    with pytest.raises(
        ValueError, match=r"modality 'mr' is not known \(did you mean 'mri'\?\): use one of ct, .*xray"
    ):
        recipe("mr")
    with pytest.raises(ValueError, match=r"modality '\.\./ct' is not known"):
        recipe("../ct")


def test_an_unknown_setting_is_named_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"recipe 'ct' has no setting 'windw': use one of .*window"):
        recipe("ct", windw="lung")
    with pytest.raises(ValueError, match=r"window 'lnug' is not known: use one of brain, subdural"):
        recipe("ct", window="lnug")


def test_an_own_yaml_is_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "side: 28\n"
        "steps:\n"
        "  - _target_: monai_unimedvl.transforms.read.Read\n"
        "  - _target_: monai_unimedvl.transforms.volume.SelectFrames\n"
        "  - _target_: monai_unimedvl.transforms.image.ToRGB\n"
        "  - _target_: monai_unimedvl.transforms.geometry.FitToGrid\n"
        "    max_size: '@side'\n    min_size: '@side'\n    stride: 14\n"
        "  - _target_: monai_unimedvl.transforms.intensity.ToUnit\n"
    )
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40)).astype(np.uint8)
    assert recipe(tmp_path / "mine.yaml")(pixels)[0].shape == (3, 28, 28)
    assert recipe(str(tmp_path / "mine.yaml"), side=42)(pixels)[0].shape == (3, 42, 42)
    (tmp_path / "empty.yaml").write_text("side: 28\n")
    with pytest.raises(ValueError, match=r"empty\.yaml has no list `steps`"):
        recipe(tmp_path / "empty.yaml")
    (tmp_path / "odd.yaml").write_text("steps:\n  - _target_: monai_unimedvl.transforms.image.Nothing\n")
    with pytest.raises(ValueError, match=r"recipe 'odd' cannot be built \(.*Nothing.*\): check its steps"):
        recipe(tmp_path / "odd.yaml")
    with pytest.raises(ValueError, match=r"none\.yaml does not exist"):
        recipe(tmp_path / "none.yaml")


@pytest.mark.slow
def test_an_own_yaml_may_name_steps_of_monai_without_their_module(tmp_path: Path) -> None:
    (tmp_path / "turned.yaml").write_text(
        "steps:\n"
        "  - _target_: monai_unimedvl.transforms.read.Read\n"
        "  - _target_: monai_unimedvl.transforms.volume.SelectFrames\n"
        "  - _target_: monai_unimedvl.transforms.image.ToRGB\n"
        "  - _target_: monai_unimedvl.transforms.intensity.ToUnit\n"
        "  - _target_: Rotate90\n"
    )
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60)).astype(np.uint8)
    (turned,) = recipe(tmp_path / "turned.yaml")(pixels)
    assert turned.shape == (3, 60, 40) and np.array_equal(
        turned[0].numpy(), np.rot90(pixels) / np.float32(255)
    )


# Real files ---------------------------------------------------------------------------------------------


def test_the_brain_is_upright_in_every_plane(brain: Path) -> None:
    axial, coronal, sagittal = (
        recipe("mri", count=1, plane=p)(brain)[0] for p in ("axial", "coronal", "sagittal")
    )
    as_expected([axial, coronal, sagittal])
    assert axial.shape == (3, 233, 197) and coronal.shape == (3, 189, 197) and sagittal.shape == (3, 189, 233)
    # the frontal pole is narrower than the parietal lobes; the vertex is up, the cerebellum below and behind
    width = (axial[0] > 0.2).sum(1)
    rows = width.nonzero().flatten()
    assert width[rows[0] + 20] < width[rows[-1] - 60]
    filled = (sagittal[0] > 0.2).float()
    height, half = filled.shape[0], filled.shape[1] // 2
    below = filled[int(height * 0.8) :]
    assert below[:, half:].sum() > 2 * below[:, :half].sum(), (
        "brain stem and cerebellum are behind: at the right"
    )
    # every picture of the middle shows the same place: the voxel nearest to the anterior commissure
    assert [one.meta["source"]["plane"] for one in (axial, coronal, sagittal)] == [
        "axial",
        "coronal",
        "sagittal",
    ]


def test_left_and_right_of_the_brain_are_where_a_radiologist_looks_for_them(brain: Path) -> None:
    from monai_unimedvl.transforms.read import read

    volume = read(brain)
    marked = volume.clone()
    right = volume.affine.inverse() @ torch.tensor([40.0, 20.0, 5.0, 1.0], dtype=torch.float64)  # +x is right
    x, y, z = (int(round(float(v))) for v in right[:3])
    marked[0, x - 4 : x + 5, y - 4 : y + 5, z - 4 : z + 5] = volume.max() * 3
    for plane, other in (("axial", 2), ("coronal", 1)):
        pictures = recipe("mri", policy="all", plane=plane)(marked)
        here = {2: z, 1: y}[other]
        spot = (pictures[here][0] == 1).nonzero().float().mean(0)
        assert spot[1] < pictures[here].shape[2] / 2, "the patient's right is at image left"
        assert spot[0] < pictures[here].shape[1] / 2 or plane == "coronal", "anterior is up"


def test_air_around_the_head_does_not_change_its_greys(brain: Path) -> None:
    from monai_unimedvl.transforms.read import read

    volume = read(brain)
    padded = torch.nn.functional.pad(volume.as_subclass(torch.Tensor), (30,) * 6)
    plain = recipe("mri", count=1)(volume)[0].as_subclass(torch.Tensor)
    wide = recipe("mri", count=1)(MetaTensor(padded, affine=volume.affine))[0].as_subclass(torch.Tensor)
    assert_close(wide[:, 30:-30, 30:-30], plain)


def test_ct_windows_are_hu(ct: str) -> None:
    hu = torch.from_numpy(pydicom.dcmread(ct).pixel_array.astype(np.float32)) - 1024
    lung, both = recipe("ct", window="lung")(ct)[0], recipe("ct", window=["lung", "bone", [0, 80]])(ct)[0]
    as_expected([lung, both])
    assert_close(lung[0].as_subclass(torch.Tensor), ((hu + 1350) / 1500).clamp(0, 1))
    assert torch.equal(lung[0], both[0]) and not torch.equal(both[0], both[1])
    source = lung.meta["source"]
    assert source["plane"] == "axial" and source["size"] == [128, 128]
    assert_close(source["spacing"], [0.661468, 0.661468, 5.0], atol=1e-6, rtol=0)
    header = pydicom.dcmread(ct)
    corner = np.array(source["affine"]) @ [0, 0, 0, 1]
    assert_close(corner[:2], -np.array(header.ImagePositionPatient[:2], float))  # LPS -> RAS
    assert source["position"][2] == pytest.approx(float(header.ImagePositionPatient[2]))


def test_every_named_window_is_used_by_its_name(ct: str) -> None:
    table = recipe("ct").settings["windows"]
    assert {"brain", "subdural", "lung", "mediastinum", "bone", "abdomen"} <= set(table)
    pictures = {name: recipe("ct", window=name)(ct)[0] for name in table}
    assert len({tuple(one.flatten().tolist()) for one in pictures.values()}) == len(table)


def test_a_16_bit_radiograph_uses_all_its_bits(tmp_path: Path) -> None:
    ramp = np.linspace(900, 4000, 64 * 64).reshape(64, 64).astype(np.uint16)  # 12 bits in 16
    Image.fromarray(ramp).save(tmp_path / "chest.png")
    shown = recipe("xray")(tmp_path / "chest.png")[0]
    as_expected([shown])
    assert float(shown.min()) == 0 and float(shown.max()) == 1 and len(shown[0].unique()) > 2_500
    assert float((shown == 1).float().mean()) < 0.01 and float((shown == 0).float().mean()) < 0.01


def test_a_radiograph_is_shown_as_its_file_says(tmp_path: Path) -> None:
    header = pydicom.dcmread(str(get_testdata_file("MR_small.dcm", download=False)))
    header.Modality, header.PhotometricInterpretation = "CR", "MONOCHROME1"
    header.WindowCenter, header.WindowWidth = 600, 801
    header.save_as(tmp_path / "hand.dcm")
    stored = torch.from_numpy(header.pixel_array.astype(np.float32))
    expected = 1 - ((stored - 599.5) / 800 + 0.5).clamp(0, 1)
    shown = recipe("xray")(tmp_path / "hand.dcm")[0]
    assert sorted(shown[0].flatten().tolist()) == pytest.approx(sorted(expected.flatten().tolist()), abs=1e-6)
    own = recipe("xray", voi=False)(tmp_path / "hand.dcm")[0]
    assert not torch.equal(own, shown)


def test_the_retina_fills_its_picture_and_is_red() -> None:
    path = installed("skimage", "data", "retina.jpg")
    retina = recipe("fundus")(path)[0]
    as_expected([retina])
    assert retina.shape[1] < 1411 and retina.shape[2] < 1411
    assert float(retina[0].mean()) > float(retina[1].mean()) > float(retina[2].mean())
    corner = retina.affine @ torch.tensor([0, 0, 0, 1.0], dtype=torch.float64)
    whole = np.asarray(Image.open(path).convert("RGB"))
    row, column = (round(float(v)) for v in corner[:2])
    cut = whole[row : row + retina.shape[1], column : column + retina.shape[2]]
    assert_close(retina.numpy(), cut.transpose(2, 0, 1) / np.float32(255))
    assert torch.equal(recipe("fundus")(retina)[0], retina)


def test_stained_tissue_keeps_its_colours() -> None:
    path = installed("skimage", "data", "ihc.png")
    tissue = recipe("histopathology")(path)[0]
    assert_close(
        tissue.numpy(), np.asarray(Image.open(path).convert("RGB")).transpose(2, 0, 1) / np.float32(255)
    )


def test_thick_slices_seen_from_the_side_have_square_pixels() -> None:
    affine = torch.diag(torch.tensor([1.0, 1.0, 5.0, 1.0], dtype=torch.float64))
    volume = MetaTensor(torch.rand(1, 40, 40, 10) * 100, affine=affine)
    side = recipe("mri", count=1, plane="coronal")(volume)[0]
    assert side.shape == (3, 50, 40) and side.meta["source"]["size"] == [10, 40]
    assert side.meta["source"]["spacing"] == [5.0, 1.0, 1.0]


def test_volumes_and_pictures_are_told_apart(tmp_path: Path) -> None:
    for name in ("xray", "fundus", "histopathology"):
        with pytest.raises(
            ValueError, match=r"a 4-D volume came, shape \(1, 40, 40, 10\), where a 3-D picture"
        ):
            recipe(name)(torch.rand(1, 40, 40, 10))
    for name in ("mri", "ct"):
        with pytest.raises(ValueError, match=r"SelectSlices\(count=8\) needs 8 slices, got 5"):
            recipe(name)(torch.rand(1, 40, 40, 5) * 100)


def test_array_file_and_tensor_give_the_same_picture(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 56, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    first, second, third = (
        recipe("histopathology")(x)[0].as_subclass(torch.Tensor)
        for x in (tmp_path / "a.png", pixels, torch.from_numpy(pixels).permute(2, 0, 1))
    )
    assert torch.equal(first, second) and torch.equal(first, third)


def test_a_slice_costs_milliseconds(brain: Path) -> None:
    from monai_unimedvl.transforms.read import read

    volume, prepare = read(brain), recipe("mri", policy="all")
    start = time.perf_counter()
    pictures = prepare(volume)
    assert (time.perf_counter() - start) / len(pictures) < 0.05


@pytest.mark.parametrize("name", ["mri", "ct", "histopathology"])
def test_a_recipe_shows_the_same_where_monai_tracks_no_meta(name: str, tmp_path: Path) -> None:
    source = torch.rand(1, 40, 30, 9) * 200 if name != "histopathology" else torch.rand(3, 40, 30)
    plain = recipe(name)(source)
    set_track_meta(False)
    try:
        found = recipe(name)(source)
        assert not get_track_meta(), "as the user left it"
    finally:
        set_track_meta(True)
    assert not any(isinstance(one, MetaTensor) for one in found)
    assert all(torch.equal(one, other.as_tensor()) for one, other in zip(found, plain, strict=True))


def test_a_picture_that_was_scaled_again_is_shown_anew() -> None:
    source = MetaTensor(torch.rand(1, 40, 30, 9) * 200)
    (shown,) = recipe("mri", count=1)(source)
    assert recipe("mri", count=1)(shown)[0] is not None and shown.meta["unit"]
    (again,) = recipe("mri", count=1)(PercentileScale()(source) * 4000)
    assert 0 <= float(again.min()) and float(again.max()) <= 1
    (window,) = recipe("ct", count=1, window=[0, 80])(PercentileScale()(source) * 4000 - 1000)
    assert 0 <= float(window.min()) and float(window.max()) <= 1
    brighter = shown * 1.2
    assert float(PercentileScale()(brighter).max()) == float(brighter.max()), "light that a training changed"


def test_what_another_step_moved_is_not_put_back_on_the_wrong_pixels() -> None:
    (shown,) = recipe("mri", count=1, field="square")(torch.rand(1, 40, 30, 9) * 200)
    with pytest.raises(ValueError, match="a picture that Flip has changed after its recipe, expected it as"):
        put_back(shown, Flip(1)(shown))
    assert put_back(shown, shown).shape == (3, 30, 40)
    before = Flip(1)(MetaTensor(torch.rand(3, 40, 30)))  # what came before our steps stays as it is
    shown = SquareField("square")(before)
    assert shown.shape == (3, 40, 40) and len(shown.applied_operations) == 2
    assert torch.equal(put_back(shown, shown).as_tensor(), before.as_tensor())
