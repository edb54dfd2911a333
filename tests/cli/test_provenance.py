# SPDX-License-Identifier: Apache-2.0
"""`unimedvl provenance FILE`: the four cases, exit code 0 only where all is as it was made."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from monai_unimedvl.provenance import Facts, save_image, write_series


@pytest.fixture
def files(tmp_path):
    """One of each case."""
    photo = torch.from_numpy(data.astronaut()[:256, 100:356] / 255).float().movedim(-1, 0)
    marked = save_image(photo, tmp_path / "marked.png", Facts("A rocket.", 7, "ab" * 32, "draw"))
    pixels = np.array(Image.open(marked))
    Image.fromarray(pixels).save(tmp_path / "stripped.jpg", quality=90)
    Image.fromarray((photo * 255).byte().movedim(0, -1).numpy()).save(tmp_path / "unmarked.png")
    altered = save_image(photo, tmp_path / "altered.png", Facts("A rocket.", 7, "ab" * 32, "draw"))
    altered.write_bytes(altered.read_bytes() + b"\0")
    return {name: tmp_path / name for name in ("marked.png", "altered.png", "unmarked.png", "stripped.jpg")}


def test_each_case_is_said_in_words_and_by_the_exit_code(command, files):
    for name, path in files.items():
        code, out, err = command("provenance", path)
        case = name.split(".")[0]
        assert f"{name}: {case}: " in out and err == ""
        assert code == (0 if case == "marked" else 2)
    code, out, _ = command("provenance", files["marked.png"])
    assert "prompt: A rocket." in out and "seed: 7" in out


def test_many_files_as_json(command, files):
    code, out, _ = command("provenance", *files.values(), "--json")
    said = json.loads(out)
    assert code == 2 and said["ok"] is False
    assert [one["case"] for one in said["verdicts"]] == ["marked", "altered", "unmarked", "stripped"]
    assert said["verdicts"][3]["invisible"]["id"] == said["verdicts"][0]["mark"]["invisible_mark"]["id"]


def test_a_series_folder_is_one_thing(command, tmp_path):
    write_series(np.zeros((8, 8, 3)), tmp_path / "out", Facts("T2", 1, "ab" * 32, "draw"))
    code, out, _ = command("provenance", tmp_path / "out")
    assert code == 0 and "marked: 3 files, synthetic" in out


def test_one_of_several_that_cannot_be_told_hides_none(command, files, tmp_path):
    code, out, err = command("provenance", tmp_path / "absent.png", files["marked.png"])
    assert code == 2 and err == ""
    assert "absent.png: unknown: " in out and "does not exist" in out and "marked.png: marked: " in out


def test_what_cannot_be_told_is_one_line(command, tmp_path):
    (tmp_path / "x.docx").write_text("x")
    for name, message in (
        ("absent.png", "does not exist"),
        ("x.docx", "a name in .png or"),
        (".", "no DICOM"),
    ):
        code, out, err = command("provenance", tmp_path / name)
        assert (code, out) == (2, "") and err.count("\n") == 1 and message in err
