# SPDX-License-Identifier: Apache-2.0
"""The four cases of a file: marked, altered, unmarked, and stripped of its mark."""

from __future__ import annotations

import json
import subprocess
import sys

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin
from skimage import data

from monai_unimedvl import provenance
from monai_unimedvl.provenance import (
    Facts,
    examine,
    manifest_path,
    save_image,
    save_page,
    save_text,
    save_volume,
    verify,
)

FACTS = Facts("A man behind a camera", 7, "ab" * 32, "draw")


@pytest.fixture(scope="module")
def photo() -> torch.Tensor:
    """(3, 256, 256) in [0, 1]"""
    return torch.from_numpy(data.astronaut()[:256, 100:356] / 255).float().movedim(-1, 0)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_the_four_cases_of_a_picture(tmp_path, photo, name):
    path = save_image(photo, tmp_path / name, FACTS)
    made = examine(path)
    assert made.case == "marked" and made.mark["invisible_mark"]["id"] == FACTS.id() and verify(path)
    stripped = tmp_path / f"stripped-{name}"
    Image.fromarray(np.asarray(Image.open(path))).save(stripped)
    verdict = examine(stripped)
    assert verdict.case == "stripped" and verdict.found.id == FACTS.id() and FACTS.id() in verdict.why
    exported = tmp_path / "exported.jpg"
    Image.open(path).convert("L").save(exported, quality=90)
    assert examine(exported).case == "stripped"
    plain = tmp_path / f"plain-{name}"
    Image.fromarray((photo * 255).byte().movedim(0, -1).numpy()).save(plain)
    assert examine(plain).case == "unmarked"
    path.write_bytes(path.read_bytes() + b"\0")
    assert examine(path).case == "altered"


def test_pixels_changed_under_a_kept_mark_are_altered_with_and_without_manifest(tmp_path, photo):
    path = save_image(photo, tmp_path / "a.png", FACTS)
    with Image.open(path) as file:
        pixels, text = np.array(file), file.text
    pixels[100:110, 100:110] = 0
    chunks = PngImagePlugin.PngInfo()
    for key, value in text.items():
        chunks.add_itxt(key, value)
    Image.fromarray(pixels).save(path, pnginfo=chunks)
    assert "its pixels were changed" in examine(path).why
    manifest_path(path).unlink()
    assert examine(path).case == "altered" and "its pixels were changed" in examine(path).why


def test_an_edited_mark_is_altered(tmp_path, photo):
    path = save_image(photo, tmp_path / "a.png", FACTS)
    raw = path.read_bytes()
    with Image.open(path) as file:
        pixels, mark = np.array(file), json.loads(file.text["Provenance"])
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("Provenance", json.dumps({**mark, "prompt": "A real photograph"}))
    Image.fromarray(pixels).save(path, pnginfo=chunks)
    assert "its mark was edited" in examine(path).why
    path.write_bytes(raw)
    assert examine(path).case == "marked"
    manifest_path(path).write_text(manifest_path(path).read_text().replace("camera", "tree"))
    assert "a.png.json tells of another file or was edited" in examine(path).why
    manifest_path(path).write_text("{")
    assert examine(path).case == "altered"
    manifest_path(path).unlink()
    verdict = examine(path)
    assert verdict.case == "marked" and "manifest is missing" in verdict.why


def test_a_small_picture_without_its_mark_is_known_by_its_manifest_only(tmp_path):
    path = save_image(torch.rand(3, 64, 64), tmp_path / "a.png", FACTS)
    assert examine(path).mark["invisible_mark"] == {"applied": False, "why": "smaller than 256x256"}
    Image.fromarray(np.asarray(Image.open(path))).save(path)
    assert examine(path).case == "altered" and "no mark, but the manifest" in examine(path).why
    manifest_path(path).unlink()
    assert examine(path).case == "unmarked"


def test_the_four_cases_of_a_volume(tmp_path, photo):
    values = photo.mean(0)[..., None] * 1000 + torch.arange(3.0)  # (256, 256, 3)
    path = save_volume(values, np.eye(4), tmp_path / "a.nii.gz", FACTS)
    made = examine(path)
    assert made.case == "marked" and made.mark["invisible_mark"]["slices"] == [3, 3]
    file = nibabel.load(path)
    assert np.abs(file.get_fdata() - values.numpy()).max() < 50
    nibabel.save(nibabel.Nifti1Image(file.get_fdata().astype(np.float32), np.eye(4)), tmp_path / "b.nii")
    assert examine(tmp_path / "b.nii").case == "stripped"
    nibabel.save(nibabel.Nifti1Image(values.numpy(), np.eye(4)), tmp_path / "c.nii")
    assert examine(tmp_path / "c.nii").case == "unmarked"
    nibabel.save(nibabel.Nifti1Image(file.get_fdata() + 1, np.eye(4), file.header), tmp_path / "d.nii")
    assert examine(tmp_path / "d.nii").case == "altered"
    labels = save_volume((values > 300).to(torch.uint8), np.eye(4), tmp_path / "labels.nii", FACTS)
    assert np.array_equal(np.asarray(nibabel.load(labels).dataobj), (values > 300).numpy())
    assert examine(labels).mark["invisible_mark"]["why"] == "labels keep their numbers"


def test_words_and_pages(tmp_path):
    words = save_text("No tumour.", tmp_path / "a.json", FACTS)
    page = save_page("<p>No tumour -- none.</p>", tmp_path / "a.html", FACTS)
    for path in (words, page):
        assert examine(path).case == "marked"
        path.write_text(path.read_text().replace("No tumour", "A tumour"))
        assert examine(path).case == "altered"
    (tmp_path / "plain.html").write_text("<p>x</p>")
    (tmp_path / "plain.json").write_text('{"synthetic": 1}')
    assert {examine(tmp_path / f"plain.{end}").case for end in ("html", "json")} == {"unmarked"}


@pytest.mark.parametrize("end", ["png", "tif", "nii", "nii.gz", "json", "html", "jpg"])
def test_damaged_files_are_named(tmp_path, end):
    path = tmp_path / f"a.{end}"
    path.write_bytes(b"\xff\xfe nothing")
    with pytest.raises(ValueError, match=f"a.{end} cannot be read"):
        examine(path)


def test_a_mark_is_checked_without_torch_and_monai(tmp_path, photo):
    path = save_image(photo, tmp_path / "a.png", FACTS)
    code = "import sys; from monai_unimedvl.provenance import examine, save_image, save_volume;"
    code += "print(examine(sys.argv[1]).case);"
    code += "print([name for name in ('torch', 'monai', 'transformers') if name in sys.modules])"
    words = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["marked", "[]"]


def test_an_unknown_name_of_provenance_is_an_attribute_error_that_lists_the_known():
    with pytest.raises(AttributeError, match="no public name 'mark'; it has .*examine"):
        _ = provenance.mark
    assert set(provenance.__all__) == set(provenance._HOME) <= set(dir(provenance))
