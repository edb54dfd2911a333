# SPDX-License-Identifier: Apache-2.0
"""What a recipe gives goes through MONAI's loaders, also where it lies nowhere in space."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor, PersistentDataset, decollate_batch
from monai.transforms import Compose, LoadImage, ScaleIntensity, Transpose
from PIL import Image
from skimage import data

from monai_unimedvl import recipe
from monai_unimedvl.transforms.geometry import put_back
from monai_unimedvl.transforms.segments import checked_picture
from monai_unimedvl.transforms.slices import place_in_words

VOLUMES = ("ct", "mri")
PICTURES = ("xray", "ultrasound", "fundus", "oct", "endoscopy", "dermoscopy", "histopathology")


def rim() -> torch.Tensor:
    """(3, 120, 150) bright in the middle, so that what is cut off of a field is cut."""
    picture = torch.zeros(3, 120, 150)
    picture[:, 20:100, 30:120] = 0.5 + 0.5 * torch.rand(3, 80, 90, generator=torch.Generator().manual_seed(0))
    return picture


def same(one: MetaTensor, other: MetaTensor) -> None:
    """That a picture came back from a batch with all that is known of it."""
    assert torch.equal(one.as_subclass(torch.Tensor), other.as_subclass(torch.Tensor))
    assert torch.equal(one.affine, other.affine) and one.meta["source"] == other.meta["source"]
    assert place_in_words(one.meta["source"]) == place_in_words(other.meta["source"])
    back, wanted = (put_back(torch.ones(1, *each.shape[1:]), each) for each in (other, one))
    assert torch.equal(back.as_subclass(torch.Tensor), wanted.as_subclass(torch.Tensor))


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("modality", VOLUMES + PICTURES)
def test_pictures_of_every_recipe_are_collated_and_parted(
    modality: str, cached: bool, tmp_path: Path
) -> None:
    source = 2000 * torch.rand(1, 40, 40, 9) - 1000 if modality in VOLUMES else rim()
    picture = recipe(modality)(source)[0]
    dataset = PersistentDataset if cached else Dataset
    items = [{"image": picture}, {"image": picture.clone()}]
    loader = DataLoader(dataset(items, None, **({"cache_dir": tmp_path} if cached else {})), batch_size=2)
    for batch in loader:
        assert batch["image"].shape == (2, *picture.shape)
        for one in decollate_batch(batch):
            same(picture, one["image"])


def test_flat_pictures_of_loadimage_are_not_taken_lying_on_their_side(tmp_path: Path) -> None:
    Image.fromarray(data.retina()[:200, :320]).save(tmp_path / "eye.png")
    Image.fromarray(data.retina()[:200, :200]).save(tmp_path / "square.png")
    load = Compose([LoadImage(ensure_channel_first=True), ScaleIntensity()])
    wide, square = load(tmp_path / "eye.png"), load(tmp_path / "square.png")
    for take in (recipe("histopathology"), lambda picture: checked_picture(picture, "image")):
        with pytest.raises(ValueError, match=r"\(3, 320, 200\), with columns first as LoadImage.*Transposed"):
            take(wide)
        with pytest.warns(UserWarning, match="square picture that LoadImage has read"):
            take(square)
        take(Transpose([0, 2, 1])(wide))


def test_files_without_a_place_are_collated_and_nothing_is_told_that_is_not_known(tmp_path: Path) -> None:
    for name, eye in (("a.png", data.retina()[:400, :400]), ("b.png", data.retina()[100:500, 100:500])):
        Image.fromarray(eye).save(tmp_path / name)
    pictures = [recipe("histopathology")(tmp_path / name)[0] for name in ("a.png", "b.png")]
    (batch,) = DataLoader(Dataset([{"image": picture} for picture in pictures]), batch_size=2)
    for picture, one in zip(pictures, decollate_batch(batch), strict=True):
        same(picture, one["image"])
    assert {"plane", "spacing", "position", "affine"}.isdisjoint(pictures[0].meta["source"])
    assert "plane" in recipe("mri")(torch.rand(1, 20, 20, 9))[0].meta["source"]
