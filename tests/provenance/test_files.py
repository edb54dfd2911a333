# SPDX-License-Identifier: Apache-2.0
"""What is written carries a mark that can be read back, and a manifest that belongs to its bytes."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

from monai_unimedvl import __version__, provenance
from monai_unimedvl.provenance import (
    Facts,
    manifest_path,
    read_mark,
    save_image,
    save_text,
    save_volume,
    verify,
)

FACTS = Facts("Axial T1, größer als 20 mm", 7, "ab" * 32, "draw", ["cd" * 32], [3], 4, 2.0)


def test_a_picture_holds_its_mark_and_its_pixels(tmp_path):
    image = torch.rand(3, 12, 20)
    path = save_image(image, tmp_path / "a.png", FACTS)
    mark = read_mark(path)
    assert mark["synthetic"] is True and mark["software"] == f"monai_unimedvl {__version__}"
    assert (mark["prompt"], mark["seed"], mark["weights"]) == (FACTS.prompt, 7, FACTS.weights)
    pixels = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) / 255
    assert (pixels - image).abs().max() <= 0.5 / 255 + 1e-6


def test_labels_keep_their_numbers(tmp_path):
    labels = torch.arange(48, dtype=torch.uint8).view(6, 8)
    path = save_image(labels, tmp_path / "labels.png", FACTS)
    assert torch.equal(torch.from_numpy(np.array(Image.open(path))), labels)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_a_volume_holds_its_mark_place_and_values(tmp_path, name):
    values, affine = torch.rand(4, 5, 6), np.diag([2.0, 3.0, 4.0, 1.0])
    path = save_volume(values, affine, tmp_path / name, FACTS)
    file = nibabel.load(path)
    assert np.array_equal(np.asarray(file.dataobj), values.numpy()) and np.array_equal(file.affine, affine)
    assert b"SYNTHETIC" in file.header["descrip"].item()
    mark = read_mark(path)
    assert mark["synthetic"] is True and mark["prompt"] == FACTS.prompt and mark["steps"] == 4
    assert verify(path)["seed"] == 7


def test_the_manifest_says_how_and_belongs_to_the_bytes(tmp_path):
    path = save_image(torch.zeros(3, 8, 8), tmp_path / "a.png", FACTS)
    manifest = verify(path)
    assert (
        manifest["inputs"] == ["cd" * 32] and manifest["slices"] == [3] and manifest["text_guidance"] == 2.0
    )
    assert set(manifest["versions"]) == {"monai_unimedvl", "python", "torch", "monai"}
    assert manifest["output"] == provenance.sha256(path)
    Image.open(path).point(lambda value: 255 - value).save(path, pnginfo=provenance.png_mark(FACTS))
    with pytest.raises(ValueError, match="a.png was changed after it was made"):
        verify(path)


def test_words_are_kept_with_their_facts(tmp_path):
    path = save_text("No tumour.", tmp_path / "answer.json", FACTS)
    said = json.loads(path.read_text("utf8"))
    assert said["text"] == "No tumour." and said["synthetic"] is True


def test_what_is_unmarked_or_alone_is_refused(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "plain.png")
    nibabel.save(nibabel.Nifti1Image(np.zeros((2, 2, 2), np.float32), np.eye(4)), tmp_path / "plain.nii")
    for name in ("plain.png", "plain.nii"):
        assert read_mark(tmp_path / name) is None
        with pytest.raises(ValueError, match=f"{name} has no mark of monai_unimedvl"):
            verify(tmp_path / name)
    path = save_image(torch.zeros(3, 8, 8), tmp_path / "a.png", FACTS)
    manifest_path(path).unlink()
    with pytest.raises(ValueError, match="a.png.json is missing: keep them together"):
        verify(path)


@pytest.mark.parametrize(
    "write, message",
    [
        (lambda folder: save_image(torch.zeros(3, 8, 8), folder / "a.jpg", FACTS), "'a.jpg'.*a name in .png"),
        (lambda folder: save_image(torch.zeros(1, 8, 8), folder / "a.png", FACTS), r"shape \(1, 8, 8\)"),
        (lambda folder: save_volume(torch.zeros(2, 2), np.eye(4), folder / "a.nii", FACTS), r"\(2, 2\)"),
        (lambda folder: save_text("x", folder / "a.txt", FACTS), "a name in .json"),
        (lambda folder: read_mark(folder / "absent.png"), "absent.png does not exist"),
    ],
)
def test_bad_calls_are_refused_and_leave_nothing(tmp_path, write, message):
    with pytest.raises(ValueError, match=message):
        write(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_damaged_file_is_named(tmp_path):
    path = save_image(torch.rand(3, 32, 32), tmp_path / "a.png", FACTS)
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(ValueError, match="a.png cannot be read"):
        read_mark(path)


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = save_image(torch.zeros(3, 8, 8), tmp_path / "a.png", FACTS)
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}

    def full(self: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ValueError, match=r"No space left on device.*choose another place"):
        save_image(torch.ones(3, 8, 8), path, FACTS)
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_the_hash_of_a_folder_does_not_depend_on_names(tmp_path):
    for folder, names in (("one", "ab"), ("two", "yx")):
        (tmp_path / folder).mkdir()
        for name, content in zip(names, ("1", "2"), strict=True):
            (tmp_path / folder / name).write_text(content)
    assert provenance.sha256(tmp_path / "one") == provenance.sha256(tmp_path / "two")
    (tmp_path / "two" / "y").write_text("3")
    assert provenance.sha256(tmp_path / "one") != provenance.sha256(tmp_path / "two")


def _full(monkeypatch: pytest.MonkeyPatch, beyond: int) -> None:
    """A disk that takes `beyond` more bytes of files."""
    left, plain = [beyond], Path.write_bytes

    def written(path: Path, content: bytes) -> int:
        left[0] -= len(content)
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return plain(path, content)

    monkeypatch.setattr(Path, "write_bytes", written)


@pytest.mark.parametrize("beyond", [0, 900])
def test_drawing_anew_on_a_full_disk_leaves_the_old_picture_with_its_manifest(tmp_path, monkeypatch, beyond):
    path = save_image(torch.zeros(3, 8, 8), tmp_path / "a.png", FACTS)
    before = path.read_bytes(), manifest_path(path).read_bytes()
    with monkeypatch.context() as during:
        _full(during, beyond)
        with pytest.raises(ValueError, match=r"a\.png cannot be written \(No space left on device\)"):
            save_image(torch.ones(3, 8, 8), path, FACTS)
        with pytest.raises(ValueError, match=r"b\.png cannot be written"):
            save_image(torch.ones(3, 8, 8), tmp_path / "b.png", FACTS)
    assert before == (path.read_bytes(), manifest_path(path).read_bytes()) and verify(path)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.png", "a.png.json"]
