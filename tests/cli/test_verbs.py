# SPDX-License-Identifier: Apache-2.0
"""The verbs that run the model: what they write, where, and with which marks."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import torch
from cli.conftest import NAME
from PIL import Image

from monai_unimedvl import bundle, provenance
from monai_unimedvl.cli import verbs
from monai_unimedvl.cli.command import parser
from monai_unimedvl.cli.reading import read_images


def test_ask_answers_and_says_which_slice_was_taken(command, scan):
    code, out, err = command("ask", scan, "Which plane is this?", "--modality", "mri", "--max-words", "5")
    assert code == 0 and out.endswith("\n")
    assert "axial slice 10 of 0 to 19, at S +50.0 mm" in err
    assert "made square" in err


def test_json_is_one_object_and_nothing_else(command, scan):
    code, out, _ = command("ask", scan, "Which plane?", "--modality", "mri", "--json", "--max-words", "5")
    said = json.loads(out)
    assert code == 0 and said["stop_reason"] in ("end", "length")
    assert said["manifest"]["slices"] == [10] and said["manifest"]["inputs"] == [provenance.sha256(scan)]


def test_slices_are_chosen_by_number_plane_and_count(command, scan):
    def read(*words):
        code, out, _ = command("report", scan, "--modality", "mri", "--json", "--max-words", "1", *words)
        return json.loads(out)["manifest"]["slices"] if code == 0 else code

    assert read("--slice", "3") == [3]
    assert read("--plane", "sagittal") == [15]
    assert read("--count", "4") == [2, 7, 12, 17]
    assert read("--slice", "20") == 2


def test_a_dicom_series_says_its_own_modality(command, series):
    code, _, err = command("ask", series, "Which plane?", "--max-words", "1")
    assert code == 0 and "read as mri, as its header says MR" in err


def test_the_same_seed_draws_the_same_picture(command, tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        words = ("draw", "Axial T1 MRI.", "--seed", seed, "--steps", "2", "--out", tmp_path / f"{name}.png")
        assert command(*words)[0] == 0
    a, b, c = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in "abc")
    assert a.shape == (64, 64, 3)
    assert (a == b).all() and (a != c).any()


def test_several_drawings_are_numbered_and_each_has_its_seed(command, tmp_path):
    code, out, _ = command("draw", "T1", "--count", "2", "--steps", "1", "--out", tmp_path / "made" / "x.png")
    assert code == 0 and "x-0.png" in out and "x-1.png" in out
    assert [provenance.verify(tmp_path / "made" / f"x-{i}.png")["seed"] for i in (0, 1)] == [0, 1]


def test_an_edit_has_the_size_and_place_of_its_picture(command, picture, tmp_path):
    out = tmp_path / "out.png"
    assert command("edit", picture, "--task", "h-to-he", "--out", out)[0] == 0
    assert Image.open(out).size == (48, 32)
    assert (np.asarray(Image.open(out)).max(axis=(0, 2)) > 0).all(), "nothing was cut off"


def test_a_mask_lies_where_the_slice_lies(command, scan, tmp_path, monkeypatch):
    """The model is replaced by one that paints what is bright as white matter."""

    class Painter:
        def __init__(self, *args, **options):
            pass

        def __call__(self, batch, network):
            bright = torch.nn.functional.interpolate(batch[0][0][None], (64, 64))[0] > 0.1
            return [bright.float() * torch.tensor([240, 240, 240]).view(3, 1, 1) / 255]

    monkeypatch.setattr(verbs, "ImageInferer", Painter)
    out = tmp_path / "mask.nii.gz"
    words = ("segment", scan, "--task", "tissue", "--modality", "mri", "--slice", "5", "--out", out)
    code, said, _ = command(*words)
    assert code == 0 and "2 white matter" in said
    mask, whole = nibabel.load(out), nibabel.load(scan)
    inside = np.argwhere(np.asarray(mask.dataobj) == 2)
    voxels = (
        nibabel.affines.apply_affine(np.linalg.inv(whole.affine) @ mask.affine, inside).round().astype(int)
    )
    found = np.zeros(whole.shape, bool)
    found[tuple(voxels.T)] = True
    truth = np.asarray(whole.dataobj) > 0
    truth[..., [i for i in range(20) if i != 5]] = False
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.9
    assert json.loads(provenance.manifest_path(out).read_text())["task"] == "seg-tissue"
    assert (tmp_path / "mask-colours.png").is_file()


def test_no_name_of_the_patient_comes_out(command, scan, series, tmp_path):
    made = tmp_path / "made"
    command("segment", scan, "--task", "bone", "--modality", "mri", "--out", made / "a.nii")
    command("edit", series, "Sharpen.", "--out", made / "b.png")
    command("ask", series, "Which plane?", "--max-words", "2", "--out", made / "c.json")
    files = sorted(path for path in made.iterdir())
    assert len(files) == 7
    for path in files:
        content = path.read_bytes()
        assert (
            NAME.encode() not in content and b"Doe" not in content and str(tmp_path).encode() not in content
        )


def test_everything_that_is_written_is_marked(command, picture, tmp_path):
    for verb, *words in (("draw", "T1"), ("edit", picture, "Stain.")):
        out = tmp_path / f"{verb}-out.png"
        assert command(verb, *words, "--steps", "1", "--out", out)[0] == 0
        code, said, _ = command("provenance", out)
        assert code == 0 and "marked: synthetic and as it was made" in said


def test_without_out_and_in_a_folder_a_free_name_is_taken(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "made").mkdir()
    for _ in range(2):
        assert command("draw", "T1", "--steps", "1")[0] == 0
        assert command("draw", "T1", "--steps", "1", "--out", tmp_path / "made")[0] == 0
        assert command("draw", "T1", "--steps", "1", "--count", "2")[0] == 0
    several = {"drawn-0.png", "drawn-1.png", "drawn1-0.png", "drawn1-1.png"}
    assert {path.name for path in tmp_path.glob("*.png")} == {"drawn.png", "drawn1.png", *several}
    assert {path.name for path in (tmp_path / "made").glob("*.png")} == {"drawn.png", "drawn1.png"}


def test_a_brain_is_framed_in_the_field_of_the_training_images(model, scan):
    network, _ = bundle.load(model)
    options = parser().parse_args(["ask", str(scan), "?", "--modality", "mri"])
    reading = read_images([str(scan)], options, network)
    assert reading.images[0].shape == (3, round(192 / 5), round(192 / 5))


def test_of_four_dimensions_one_is_chosen_by_a_setting(model, bad):
    network, _ = bundle.load(model)
    path, read = str(bad / "series.nii"), ["ask", "x", "?", "--modality", "mri"]
    first, last = (
        read_images([path], parser().parse_args([*read, "--settings", f"volume={n}"]), network)
        for n in (0, 2)
    )
    assert len(first.images) == len(last.images) == 1 and first.notes == last.notes
    windows = (
        ["--modality", "ct", "--window", "[0, 100]"],
        ["--modality", "ct", "--settings", "window=[0,100]"],
    )
    wide = [
        read_images([str(bad / "whole.nii")], parser().parse_args([*read[:3], *w]), network) for w in windows
    ]
    assert torch.equal(wide[0].images[0], wide[1].images[0])


def test_a_large_network_gets_eight_slices_as_they_are(model, scan):
    network, _ = bundle.load(model)
    network.decoder.max_context = 32768
    network.grids = {"view": [980, 378, 14], "canvas": [1024, 512, 16]}
    reading = read_images(
        [str(scan)], parser().parse_args(["ask", str(scan), "?", "--modality", "mri"]), network
    )
    assert reading.slices == [1, 3, 6, 8, 11, 13, 16, 18]
    assert all(image.shape == (3, 40, 30) for image in reading.images)


def test_the_demo_files_are_written_to_no_other_place(command, picture, tmp_path):
    before = set(Path(tmp_path).rglob("*"))
    command("report", picture, "--max-words", "1")
    assert set(Path(tmp_path).rglob("*")) == before
