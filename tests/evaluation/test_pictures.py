# SPDX-License-Identifier: Apache-2.0
"""Scores of drawings that a prediction file names, and what is said of files that cannot be scored."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from monai_unimedvl.evaluation.encoders import Encoder, ImageText
from monai_unimedvl.evaluation.image import hausdorff, paint, psnr, ssim, upstream_scores
from monai_unimedvl.evaluation.pictures import (
    read_picture,
    rows_of,
    score_pictures,
    score_words,
    set_scores,
)
from monai_unimedvl.evaluation.predictions import Prediction, Predictions

LEGEND = {"one": (255, 0, 0), "two": (0, 0, 255)}


def save(path, image):
    pixels = (image * 255).round().to(torch.uint8).movedim(0, -1).numpy()
    Image.fromarray(pixels).save(path)
    return torch.from_numpy(pixels.copy()).movedim(-1, 0).float() / 255


@pytest.fixture
def pair(tmp_path):
    truth = save(tmp_path / "truth.png", torch.rand(3, 24, 30))
    drawn = save(tmp_path / "drawn.png", (truth + 0.1 * torch.randn(3, 24, 30)).clamp(0, 1))
    return drawn, truth


def file(*rows):
    return Predictions([Prediction(f"i{n}", task="sr4", **row) for n, row in enumerate(rows)], {}, "edits")


PAIR = {"drawn": "drawn.png", "truth_image": "truth.png"}


def test_drawings_are_scored_beside_their_truth(pair, tmp_path):
    drawn, truth = (x.unsqueeze(0) for x in pair)
    scored = score_pictures(file(PAIR), tmp_path, inside=True)
    found = scored.rows[0].scores
    assert found["PSNR"] == pytest.approx(float(psnr(drawn, truth))) and len(found) == 4
    assert found["SSIM"] == pytest.approx(float(ssim(drawn, truth)))
    assert scored.about == {"pictures": "at the size of the truth, range 1", "resized": 0}
    (first, *_) = rows_of(scored)
    assert (first.task, first.metric, first.n, first.value) == ("sr4", "PSNR", 1, found["PSNR"])


def test_a_drawing_of_another_size_is_brought_to_the_truth_or_the_truth_to_it(pair, tmp_path):
    pytest.importorskip("skimage", reason="the upstream scores are scikit-image's")
    small = torch.nn.functional.interpolate(pair[1][None], (12, 15), mode="bicubic", antialias=True)[0]
    small = save(tmp_path / "small.png", small.clamp(0, 1))
    rows = file({"drawn": "small.png", "truth_image": "truth.png"})
    ours, theirs = (score_pictures(rows, tmp_path, upstream=upstream) for upstream in (False, True))
    assert ours.about["resized"] == 1 and set(theirs.rows[0].scores) == {"PSNR, upstream", "SSIM, upstream"}
    expected = float(upstream_scores(small[None], pair[1][None])["PSNR"])
    assert theirs.rows[0].scores["PSNR, upstream"] == pytest.approx(expected)
    assert expected > ours.rows[0].scores["PSNR"] + 3


def test_drawings_and_truths_of_any_size_are_compared_as_sets(tmp_path):
    for n in range(8):
        save(tmp_path / f"d{n}.png", torch.rand(3, 8 + n, 9))
        save(tmp_path / f"t{n}.png", torch.rand(3, 12, 9) * 0.5)
    rows = file(*({"drawn": f"d{n}.png", "truth_image": f"t{n}.png"} for n in range(8)))
    encoder = Encoder("means", lambda x: x.mean((2, 3)), side=8)
    found = set_scores(rows, tmp_path, encoder)["sr4"]
    assert (found.encoder, found.drawn, found.real) == ("means", 8, 8)
    assert found.scores["Frechet"].value == pytest.approx(3 * 0.25**2, abs=0.05)
    kinds = [replace(row, modality=("ct", "mri")[n % 2]) for n, row in enumerate(rows.rows)]
    found = set_scores(
        replace(rows, rows=kinds + [replace(row, id=f"{row.id}b") for row in kinds]), tmp_path, encoder
    )
    assert {name: one.drawn for name, one in found.items()} == {"sr4, ct": 8, "sr4, mri": 8}


def test_masks_are_decoded_from_their_colours(tmp_path):
    labels, truth = (torch.randint(0, 3, (1, 16, 16)) for _ in range(2))
    save(tmp_path / "drawn.png", paint(labels, LEGEND)[0])
    save(tmp_path / "truth.png", paint(truth, LEGEND)[0])
    found = score_pictures(file(PAIR), tmp_path, legend=LEGEND).rows[0].scores
    assert found["HD95"] == pytest.approx(float(hausdorff(labels, truth, 2).mean()))
    both = ((labels == truth) & (truth > 0)).sum()
    assert 0 < found["Dice"] < 1 and both > 0


def test_pictures_of_every_kind_are_read_alike(tmp_path):
    grey = np.linspace(0, 255, 12 * 12).reshape(12, 12).round()
    Image.fromarray(grey.astype(np.uint8)).save(tmp_path / "a.png")
    Image.fromarray((grey * 257).astype(np.uint16)).save(tmp_path / "b.tif")
    np.save(tmp_path / "c.npy", (grey / 255).astype(np.float32))
    np.save(tmp_path / "d.npy", np.repeat((grey / 255)[None], 3, 0))
    first, *others = (read_picture(tmp_path / name, "w") for name in ("a.png", "b.tif", "c.npy", "d.npy"))
    assert first.shape == (3, 12, 12)
    assert all(torch.allclose(one, first, atol=1e-6) for one in others)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"drawn": "gone.png"}, "edits row 2 .id i1., drawn: gone.png is not there: copy it"),
        ({"truth_image": "notes.txt"}, "row 2 .id i1., truth_image: notes.txt is no picture, expected .png"),
        ({"drawn": "broken.png"}, "row 2 .id i1., drawn: broken.png cannot be read: write it again"),
        ({"drawn": "nan.npy"}, "row 2 .id i1., drawn: nan.npy has pixels that are no numbers: draw it again"),
        ({"drawn": "wide.npy"}, "wide.npy goes from 0 to 255, expected .0, 1.: scale it"),
        ({"drawn": "deep.npy"}, "deep.npy has shape .9, 9, 9., expected .H, W. or three colours"),
        (
            {"drawn": "turned.npy"},
            "row 2 .id i1. has a drawing of .30, 12. and a truth of .24, 30. pixels, expected one form",
        ),
        ({"drawn": ""}, "row 2 .id i1. has nothing in drawn, expected a file as the others have"),
        ({"drawn": "tiny.png", "truth_image": "tiny.png"}, "row 2 .id i1.: ssim needs sides of at least 11"),
    ],
)
def test_files_that_cannot_be_scored_are_named_with_row_and_mend(pair, tmp_path, change, message):
    (tmp_path / "notes.txt").touch()
    (tmp_path / "broken.png").write_bytes(b"no picture")
    save(tmp_path / "tiny.png", torch.rand(3, 4, 4))
    np.save(tmp_path / "nan.npy", np.full((24, 30), np.nan))
    np.save(tmp_path / "wide.npy", np.array([[0.0, 255.0]]))
    np.save(tmp_path / "deep.npy", np.zeros((9, 9, 9)))
    np.save(tmp_path / "turned.npy", np.zeros((30, 12, 3)))
    with pytest.raises(ValueError, match=message):
        score_pictures(file(PAIR, {**PAIR, **change}), tmp_path)


def test_what_is_asked_for_must_fit(tmp_path):
    with pytest.raises(ValueError, match="edits names no drawing, expected files in the column drawn"):
        score_pictures(file({"truth": "yes"}), tmp_path)
    with pytest.raises(ValueError, match="upstream scores know no masks and no foreground"):
        score_pictures(file(PAIR), tmp_path, upstream=True, legend=LEGEND)


def test_a_drawing_is_held_against_its_words_beside_the_true_image(tmp_path):
    for name, colour in (("drawn", (255, 255, 0)), ("truth", (255, 0, 0))):
        Image.new("RGB", (16, 12), colour).save(tmp_path / f"{name}.png")
    read = []
    pair = ImageText(
        "pair", lambda x: x.mean((2, 3)), lambda texts: read.extend(texts) or torch.tensor([[1.0, 0.0, 0.0]])
    )
    scored = score_words(file({**PAIR, "prompt": "red"}), tmp_path, pair)
    (row,) = rows_of(scored)
    assert (row.metric, row.ceiling) == ("image-text cosine", pytest.approx(1.0))
    assert row.value == pytest.approx(0.5**0.5) and set(read) == {"red"}
    assert scored.about["image-text cosine"] == "pair"
    for prompt, what in (("<image> Sharpen.", "words about a picture"), (" ", "no words")):
        with pytest.raises(ValueError, match=rf"edits row 1 \(id i0\) has {what} in prompt.*--where task="):
            score_words(file({**PAIR, "prompt": prompt}), tmp_path, pair)
