# SPDX-License-Identifier: Apache-2.0
"""The same file gives the same numbers, to the bit, through Python, command line, bundle and Label app."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from PIL import Image

from monai_unimedvl import bundle, recipe
from monai_unimedvl.cli.command import parser
from monai_unimedvl.cli.reading import read_images
from monai_unimedvl.label.knobs import settled
from monai_unimedvl.label.pictures import pictures_of, reading_knobs
from monai_unimedvl.networks.layers import patchify
from monai_unimedvl.sequence import Canvas, View
from monai_unimedvl.transforms.geometry import FitToGrid, put_back
from monai_unimedvl.transforms.image import Rule
from monai_unimedvl.transforms.segments import ToSegments


def files(folder: Path) -> dict[str, tuple[str, dict]]:
    """Files that are not square, not isotropic, grey, deep and coloured -> their modality and settings."""
    chance = np.random.default_rng(0)
    voxels = (chance.random((40, 50, 12)) * 50).astype(np.float32)
    voxels[8:30, 10:35, 2:11] += 700
    affine = np.array([[-1.2, 0.1, 0, 30], [0.1, 1.2, 0, -20], [0, 0, 5.0, 3], [0, 0, 0, 1]])
    nibabel.save(nibabel.Nifti1Image(voxels, affine), folder / "head.nii.gz")
    Image.fromarray(chance.integers(0, 256, (48, 72, 3)).astype(np.uint8)).save(folder / "tissue.png")
    Image.fromarray((chance.random((70, 50)) * 4000).astype(np.uint16)).save(folder / "chest.png")
    return {
        "head.nii.gz": ("mri", {"plane": "coronal"}),
        "tissue.png": ("histopathology", {}),
        "chest.png": ("xray", {}),
    }


@pytest.mark.parametrize("name", ["head.nii.gz", "tissue.png", "chest.png"])
def test_python_command_line_bundle_and_label_app_see_the_same_picture(
    name: str, model: Path, tmp_path: Path
) -> None:
    modality, settings = files(tmp_path)[name]
    path = tmp_path / name
    network, _ = bundle.load(model)
    words = ["ask", str(path), "?", "--modality", modality]
    words += [word for key, value in settings.items() for word in (f"--{key}", value)]
    options = parser().parse_args(words)
    reading = read_images([str(path)], options, network)
    (here,) = reading.images
    index = reading.pictures[0].meta["source"]["index"]

    every = {"policy": "all"} if "volume" in recipe(modality).settings else {}
    python = recipe(modality, field="square", **every, **settings)(path)
    alone = next(one for one in python if one.meta["source"]["index"] == index)
    assert torch.equal(alone.as_tensor(), here)

    config = json.loads((bundle.find("unimedvl_nano") / "configs" / "inference.json").read_text("utf8"))
    by_recipe = {**config["preprocessing"]["transforms"][0], "modality": modality, **every, **settings}
    chain = ConfigParser({"steps": [by_recipe, config["preprocessing"]["transforms"][1]]}, excludes=["monai"])
    first, fit = chain.get_parsed_content("steps")
    through = [one["image"] for one in first({"image": str(path)})]
    bundled = next(one for one in through if one.meta.get("slice", -1) in (index, -1))
    assert torch.equal(bundled.as_tensor(), here)

    knobs = reading_knobs()  # tests/label/test_same_picture.py asks the app itself
    wanted, _ = settled(knobs, {"modality": modality, **settings})
    (labelled,), _ = pictures_of(path, wanted, network)
    assert torch.equal(labelled.as_tensor(), here)

    # and what the model's own resize makes of it
    grid = fit({"image": bundled})["image"].as_tensor()
    assert grid.shape == (3, 64, 64) and torch.equal(grid, FitToGrid(64, 64, 8, limits=(0, 1))(here))

    class Words:
        def encode(self, text: str) -> torch.Tensor:
            return torch.tensor([1])

    rule = Rule(64, 64, 8)
    segments = ToSegments(Words(), view=rule, canvas=rule)([here, "?"], draw=True)
    (canvas,), (view,) = ([s for s in segments if isinstance(s, kind)] for kind in (Canvas, View))
    assert torch.equal(canvas.image, (grid - 0.5) / 0.5) and torch.equal(
        view.patches, patchify(canvas.image, 8)
    )


def test_what_the_command_line_puts_back_is_the_inverse_of_the_recipe(model: Path, tmp_path: Path) -> None:
    files(tmp_path)
    (picture, *_) = recipe("mri", field="square", plane="coronal", count=1)(tmp_path / "head.nii.gz")
    back = put_back(picture, picture)
    assert list(back.shape[1:]) == picture.meta["source"]["size"] == [12, 40]
    np.testing.assert_allclose(back.affine.numpy(), picture.meta["source"]["affine"], atol=1e-9)
