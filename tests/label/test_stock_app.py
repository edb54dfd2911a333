# SPDX-License-Identifier: Apache-2.0
"""MONAI Label's own bundle app serves our bundles as they are, with zoo_source local and no network."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from label_server import Server
from PIL import Image

from monai_unimedvl import bundle

pytestmark = pytest.mark.label
BUNDLES = ("unimedvl_nano", "unimedvl_vqa_report", "unimedvl_image_translation", "unimedvl_text_to_image",
           "unimedvl_volume")  # fmt: skip


@pytest.fixture(scope="module")
def stock(served: Any, studies: Path, tmp_path_factory: pytest.TempPathFactory) -> Server:
    """The sample app monaibundle with copies of our bundles."""
    folder = tmp_path_factory.mktemp("stock")
    shutil.copytree(Path(sys.prefix) / "monailabel" / "sample-apps" / "monaibundle", folder / "app")
    for name in BUNDLES:
        bundle.copy(name, folder / "app" / "model" / name)
    conf = ("--conf", "models", ",".join(BUNDLES), "--conf", "zoo_source", "local", "--conf", "sam2", "false")
    return served(folder / "app", studies, *conf, key="", environment={"HTTPS_PROXY": "http://127.0.0.1:9"})


def test_bundles_are_listed_with_their_settings(stock: Server) -> None:
    models = stock.get("/info/").json()["models"]
    assert set(models) == set(BUNDLES)
    assert models["unimedvl_nano"]["config"]["question"] == "Which plane is this?"
    assert models["unimedvl_nano"]["version"] == bundle.metadata("unimedvl_nano")["version"]


@pytest.mark.parametrize("name", ["unimedvl_nano", "unimedvl_vqa_report"])
@pytest.mark.parametrize("image", ["picture", "brain0"])
def test_a_question_of_the_request_is_answered(stock: Server, name: str, image: str) -> None:
    told = stock.infer(name, image, "json", question="Which contrast or stain is this?")
    assert told["answer"] == "T1" and told["synthetic"] is True
    assert stock.infer(name, image, "json")["answer"] == "axial", "the next request has its own"


def test_a_mask_of_a_picture_and_of_a_slice(stock: Server, studies: Path, tmp_path: Path) -> None:
    (tmp_path / "mask.png").write_bytes(stock.infer("unimedvl_nano", "picture", "image").content)
    mask, source = (np.asarray(Image.open(p)) for p in (tmp_path / "mask.png", studies / "picture.png"))
    assert mask.shape == source.shape[:2] and set(np.unique(mask)) == {0, 1, 2, 3}
    volume = stock.volume("unimedvl_image_translation", "oblique")
    whole = nibabel.load(studies / "oblique.nii.gz")
    centre = np.array([(n - 1) / 2 for n in volume.shape[:2]] + [0, 1])
    back = np.linalg.inv(whole.affine) @ volume.affine @ centre
    assert abs(back[2] - 4) < 1e-3, "the middle slice lies where it was"
    assert np.abs(back[:2] - [(n - 1) / 2 for n in whole.shape[:2]]).max() < 0.6
    sharper = {"instruction": "Sharpen this image four times."}
    grey = np.asarray(stock.volume("unimedvl_image_translation", "brain0", **sharper).dataobj)
    assert len(np.unique(grey)) > 20, "the instruction of the request is followed"


def test_a_whole_volume_comes_back_in_its_place(stock: Server, studies: Path) -> None:
    made, source = stock.volume("unimedvl_volume", "brain1"), nibabel.load(studies / "brain1.nii.gz")
    assert made.shape == source.shape and np.abs(made.affine - source.affine).max() < 1e-4
    assert np.asarray(made.dataobj).std() > 1


def test_words_are_drawn_and_the_seed_counts(stock: Server, tmp_path: Path) -> None:
    made = []
    for seed in (1, 1, 2):
        content = stock.infer("unimedvl_text_to_image", "picture", "image", seed=seed, steps=3).content
        (tmp_path / "drawn.png").write_bytes(content)
        made.append(np.asarray(Image.open(tmp_path / "drawn.png")).astype(int))
    assert (made[0] == made[1]).all() and (made[0] != made[2]).any()
