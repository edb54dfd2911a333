# SPDX-License-Identifier: Apache-2.0
"""What a bundle says of a folder without data: one sentence of ours below what MONAI wraps around it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigParser

from monai_unimedvl.bundle import places, shipping

LISTED = [name for name in places.available() if name != "unimedvl_text_to_image"]  # which reads words alone


def said(configs: list[Path], key: str, folder: Path) -> str:
    """What the user reads, where a config's list of data is made."""
    parser = ConfigParser()
    parser.read_config(configs)
    parser["dataset_dir"] = str(folder)
    with pytest.raises(RuntimeError) as caught:
        parser.get_parsed_content(key)
    cause = caught.value.__cause__
    assert isinstance(cause, ValueError) and "\n" not in str(cause)
    return str(cause)


@pytest.fixture(params=("empty", "notes", "nowhere"))
def folder(request: Any, tmp_path: Path) -> Path:
    """A folder without data of any kind."""
    if request.param != "nowhere":
        (tmp_path / request.param).mkdir()
    if request.param == "notes":
        (tmp_path / "notes" / "read.me").write_text("later")
    return tmp_path / request.param


@pytest.mark.parametrize("name", LISTED)
def test_inference_says_which_files_it_takes(name: str, folder: Path) -> None:
    words = said([places.BUNDLES / name / "configs" / "inference.json"], "dataset#data", folder)
    wanted = "expected a folder of images: check the path" if not folder.exists() else "expected .*: add some"
    assert re.search(wanted, words) and str(folder) in words
    if folder.exists():
        assert ("holds no volume" in words and ".png" not in words) == (name == "unimedvl_volume")


@pytest.mark.parametrize("name", places.available())
def test_training_and_evaluation_say_which_layouts_they_take(name: str, folder: Path, tmp_path: Path) -> None:
    whole = {path: content for path, content in shipping.compose(name).items() if path.startswith("configs/")}
    mine = shipping.put(whole, tmp_path / "mine") / "configs"
    for configs, key in ((["train"], "train#dataset#data"), (["inference", "evaluate"], "own_report#items")):
        words = said([mine / f"{config}.json" for config in configs], key, folder)
        assert re.search(r"expected (a folder with )?questions\.csv, or images/ and masks/ .*: \w+", words)


def test_a_volume_bundle_takes_no_pictures(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    config = places.BUNDLES / "unimedvl_volume" / "configs" / "inference.json"
    assert "holds no volume (1 other entries), expected .nii" in said([config], "dataset#data", tmp_path)
