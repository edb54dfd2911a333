# SPDX-License-Identifier: Apache-2.0
"""`unimedvl autoencoder`: a new latent space from a folder of pictures, and one line for what cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from monai_unimedvl.bundle import find
from monai_unimedvl.cli import main
from monai_unimedvl.training.autoencoder import load_autoencoder


def test_a_folder_of_pictures_becomes_a_latent_space(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = [str(path) for path in sorted((find("unimedvl_nano") / "samples").iterdir()) if path.is_dir()]
    words = [*samples, "--modality", "histopathology", "--new", "4", "--max-steps", "2", "--batch", "2"]
    code = main(["autoencoder", *words, "--out", str(tmp_path / "run"), "--json"])
    values = json.loads(capsys.readouterr().out)  # the bar of Lightning goes elsewhere
    assert code == 0 and values["psnr_after"] != values["psnr_before"]
    assert load_autoencoder(values["outputs"][0]).latent_channels == 4


def test_a_model_without_a_trainable_one_and_too_few_pictures_get_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = sorted((find("unimedvl_nano") / "samples").rglob("*.png"))
    words = ["--modality", "histopathology", "--quiet"]
    assert main(["autoencoder", *map(str, pictures), *words, "--out", str(tmp_path)]) == 2
    assert "has a PatchCodec, which is fitted and not trained" in capsys.readouterr().err
    assert main(["autoencoder", str(pictures[0]), *words, "--out", str(tmp_path)]) == 2
    assert "1 image came, expected 2 at least" in capsys.readouterr().err
    assert main(["autoencoder", str(pictures[0]), *words]) == 2
    assert "--out is missing" in capsys.readouterr().err
