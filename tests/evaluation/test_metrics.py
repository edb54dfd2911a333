# SPDX-License-Identifier: Apache-2.0
"""Scores against independent arithmetic and hand-made cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from monai_unimedvl.data.atlas import LEGENDS
from monai_unimedvl.evaluation.atlas_scores import caption_labels, label_f1
from monai_unimedvl.evaluation.image import (
    IDENTICAL,
    dice,
    labels_from_colours,
    nearest_correlation,
    paint,
    psnr,
    ssim,
)  # fmt: skip
from monai_unimedvl.evaluation.text import exact_match, named_kind, named_level, plain_words, token_f1


@pytest.fixture
def pair():
    truth = torch.rand(3, 3, 40, 48)
    return (truth + 0.1 * torch.randn_like(truth)).clamp(0, 1), truth


def test_psnr_and_ssim_agree_with_scikit_image(pair):
    metrics = pytest.importorskip("skimage.metrics")
    for n, (image, truth) in enumerate(
        zip(*(part.double().movedim(1, -1).numpy() for part in pair), strict=True)
    ):
        expected = metrics.peak_signal_noise_ratio(truth, image, data_range=1.0)
        assert float(psnr(*pair)[n]) == pytest.approx(expected, abs=1e-4)
        expected = metrics.structural_similarity(
            truth, image, data_range=1.0, channel_axis=-1, gaussian_weights=True, sigma=1.5, win_size=11,
            use_sample_covariance=False,
        )  # fmt: skip
        assert float(ssim(*pair)[n]) == pytest.approx(expected, abs=1e-4)


def test_psnr_is_of_the_whole_image_and_finite_for_equal_images():
    truth = torch.zeros(2, 3, 16, 16)
    image = truth.clone()
    image[1] += 0.1
    assert psnr(image, truth).tolist() == [IDENTICAL, pytest.approx(20.0, abs=1e-4)]


def test_dice_of_hand_made_masks():
    truth = torch.zeros(2, 4, 4, dtype=torch.long)
    truth[0, :2], truth[0, 2] = 1, 2
    drawn = torch.zeros_like(truth)
    drawn[0, 1:3] = 1
    drawn[1, 0] = 2
    found = dice(drawn, truth, 2)
    assert found[0].tolist() == [0.5, 0.0]  # 2 * 4 / (8 + 8); label 2 was not drawn
    assert found[1].isnan().all()  # neither label is in the truth
    assert dice(truth, truth, 2)[0].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("score", [psnr, ssim, lambda a, b: dice(a[:, 0], b[:, 0], 1)])
def test_shapes_must_agree(score):
    with pytest.raises(ValueError, match="the truth .2, 3, 32, 16.*|the truth .2, 32, 16.*score at the size"):
        score(torch.zeros(2, 3, 16, 16), torch.zeros(2, 3, 32, 16))


def test_ssim_needs_a_window():
    with pytest.raises(ValueError, match="at least 11 pixels"):
        ssim(torch.zeros(1, 3, 8, 16), torch.zeros(1, 3, 8, 16))


@pytest.mark.parametrize("task", LEGENDS)
def test_painted_labels_are_read_back_through_noise(task):
    legend = LEGENDS[task]
    labels = torch.randint(0, len(legend) + 1, (2, 16, 16))
    image = paint(labels, legend)
    assert (image[0, :, labels[0] == 1].T * 255).round().unique(dim=0).tolist() == [
        list(map(float, [*legend.values()][0]))
    ]
    noisy = (image + 0.03 * torch.randn_like(image)).clamp(0, 1)
    assert torch.equal(labels_from_colours(noisy, legend), labels)


def test_black_is_background():
    assert labels_from_colours(torch.full((1, 3, 2, 2), 0.1), LEGENDS["seg-tissue"]).eq(0).all()


def test_nearest_correlation_finds_the_copy_whatever_its_brightness():
    bank = torch.rand(5, 3, 8, 8)
    near = nearest_correlation(torch.stack([bank[3] * 0.5 + 0.2, torch.rand(3, 8, 8)]), bank)
    grey = bank.mean(1).flatten(1).double().numpy()
    assert float(near[0]) == pytest.approx(1.0, abs=1e-5) and float(near[1]) < 0.9
    expected = np.corrcoef(np.vstack([grey[:1], grey[1:]]))[0, 1:].max()
    assert float(nearest_correlation(bank[:1], bank[1:])[0]) == pytest.approx(expected, abs=1e-5)


def test_texts_are_read_alike():
    assert plain_words(" H&E-stain, 22 %.\n") == "h&e stain 22 %"
    assert exact_match("Axial.", "axial") == 1.0 and exact_match("axial plane", "axial") == 0.0
    for one, other in [
        ("Well-defined mass.", "well defined mass"), ("- Oedema (left); effusion", "oedema left effusion"),
        ("T1 - axial", "T1, axial!"), ("1.5 cm.", "1.5 cm"), ("\N{MINUS SIGN}5 HU", "-5 HU"), ("ER+.", "er+"),
    ]:  # fmt: skip
        assert exact_match(one, other) == token_f1(one, other) == 1.0, one


@pytest.mark.parametrize(
    "one, other",
    [("ER+", "ER-"), ("HER2-", "HER2"), ("1.5 cm", "15 cm"), ("1.5", "1 5"), ("<5 mm", ">5 mm"), ("<5", "5"),
     ("-40 HU", "40 HU"), ("5 %", "5"), ("+", "-"), ("≤ 3", "≥ 3")],
)  # fmt: skip
def test_what_changes_a_finding_is_no_punctuation(one, other):
    assert exact_match(one, other) == 0.0 and token_f1(one, other) < 1.0


def test_token_f1_counts_each_word_as_often_as_it_occurs():
    assert token_f1("axial axial T1", "axial T1 MRI slice") == pytest.approx(2 * 2 / 7)
    assert token_f1("", "") == 1.0 and token_f1("", "axial") == 0.0 and token_f1("T2", "T1") == 0.0
    precision, recall = 2 / 3, 2 / 4
    assert math.isclose(
        token_f1("axial axial T1", "axial T1 MRI slice"), 2 * precision * recall / (precision + recall)
    )


@pytest.mark.parametrize(
    "caption, kind",
    [
        ("Axial T1 with contrast MRI of the head. No tumour.", ("T1 with contrast", "axial")),
        ("Coronal PET at the level of the thalamus, smooth average.", ("PET", "coronal")),
        ("Histology of skin, H&E stain.", ("H&E", "")),
        ("Colour fundus photograph of the retina.", ("fundus", "")),
        ("Fluorescence microscopy, up to 7 nuclei.", ("fluorescence", "")),
        ("", ("", "")),
    ],
)
def test_captions_name_their_kind(caption, kind):
    assert named_kind(caption) == kind


def test_every_caption_of_the_installed_atlas_names_its_own_kind(tmp_path):
    pytest.importorskip("nilearn", reason="the atlas corpus starts from nilearn's ICBM152 maps")
    pytest.importorskip("skimage", reason="the atlas corpus needs scikit-image")
    from monai_unimedvl.data.atlas import AtlasDataset

    data = AtlasDataset(tmp_path, "val", tasks=["caption"], progress=False)
    assert len(data) > 20
    for item in data:
        assert named_kind(item["truth"]) == (item["contrast"], item["plane"]), item["truth"]


@pytest.mark.parametrize(
    "caption, labels",
    [
        (
            "Coronal T1 MRI at the level of the parieto-occipital sulcus, skull-stripped average. Visible: "
            "insula, temporal lobe.",
            {"contrast: T1", "plane: coronal", "level: the parieto-occipital sulcus", "region: insula",
             "kind: skull-stripped average", "region: temporal lobe"},
        ),
        (
            "Axial T1 with contrast MRI of the head. Tumour in the left hemisphere, about 28 mm.",
            {"contrast: T1 with contrast", "plane: axial", "body: head", "tumour: tumour", "side: left",
             "diameter: above 20 mm"},
        ),
        (
            "Axial CT of the chest. No tumour.",
            {"contrast: CT", "plane: axial", "body: chest", "tumour: no tumour"},
        ),
        (
            "Axial CT of the head, bone window.",
            {"contrast: CT", "plane: axial", "body: head", "window: bone"},
        ),
        ("Histology of skin, H&E stain.", {"contrast: H&E", "tissue: skin"}),
        ("Fluorescence microscopy, 8 or 9 nuclei.", {"contrast: fluorescence", "nuclei: 8 or 9"}),
        ("", set()),
    ],
)  # fmt: skip
def test_a_caption_is_decoded_into_its_labels(caption, labels):
    assert caption_labels(caption) == labels


def test_label_f1_counts_what_is_right_missing_and_made_up():
    truth = "Axial T1 MRI at the level of the thalamus, whole head. Visible: putamen, thalamus."
    said = "Axial T2 MRI at the level of the thalamus, whole head. Visible: putamen."
    assert label_f1(truth, truth) == 1.0 and label_f1("", "") == 1.0 and label_f1("", truth) == 0.0
    assert label_f1(said, truth) == pytest.approx(2 * 4 / (5 + 6))
    assert named_level(truth) == "the thalamus" and named_level("Axial CT of the head.") == ""
