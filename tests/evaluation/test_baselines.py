# SPDX-License-Identifier: Apache-2.0
"""Baselines on items small enough to know the answer."""

from __future__ import annotations

import pytest
import torch

from monai_unimedvl.data.atlas import LEGENDS
from monai_unimedvl.evaluation import baselines as trivial
from monai_unimedvl.evaluation.classifier import train_judge
from monai_unimedvl.evaluation.image import labels_from_colours
from monai_unimedvl.sequence import Turn


def item(image, truth=None, mask=None, *, source="a", plane="axial", contrast="T1"):
    """What a baseline reads of an item; images given as (H, W) are grey."""
    image, truth = (x.expand(3, *x.shape[-2:]) if x is not None else image for x in (image, truth))
    return {
        "turns": [Turn("user", [image, "Do it."])], "truth": truth, "mask": mask, "source": source,
        "plane": plane, "contrast": contrast, "baseline": image * 0.5,
    }  # fmt: skip


def test_the_majority_is_of_each_question_and_ties_go_by_the_alphabet():
    items = [
        {"truth": t, "q": q} for q, t in [("1", "yes"), ("1", "no"), ("1", "no"), ("2", "b"), ("2", "a")]
    ]
    assert trivial.majority(items, lambda i: i["q"]) == {"1": "no", "2": "a"}


def test_a_label_lookup_learns_grey_levels_by_source_and_all_together_for_a_new_one():
    ramp = torch.linspace(0, 1, 64).expand(8, 64)
    bright = (ramp > 0.5).long()
    train = [
        item(ramp, mask=bright, source="a"),
        item(ramp, mask=1 - bright, source="b"),
        item(ramp, mask=bright, source="c"),
    ]
    guess = trivial.label_lookup(train, 1)
    assert torch.equal(guess(item(ramp, source="a")), bright)
    assert torch.equal(guess(item(ramp, source="b")), 1 - bright)
    assert torch.equal(guess(item(ramp, source="new")), bright)  # two of three say so


def test_a_usual_place_is_by_plane():
    here, there = torch.eye(4, dtype=torch.long), 2 * torch.eye(4, dtype=torch.long).flip(0)
    blank = torch.zeros(4, 4)
    guess = trivial.label_place([item(blank, mask=here), item(blank, mask=there, plane="coronal")], 2)
    assert torch.equal(guess(item(blank)), here)
    assert torch.equal(guess(item(blank, plane="coronal")), there)


def test_a_threshold_finds_the_level():
    ramp = torch.linspace(0, 1, 64).expand(8, 64)
    guess = trivial.threshold([item(ramp, mask=(ramp >= 0.75).long())])
    assert torch.equal(guess(item(ramp)), (ramp >= 0.75).long())


def test_the_mean_image_is_by_plane():
    blank = torch.zeros(4, 4)
    train = [item(blank, blank + 0.2), item(blank, blank + 0.6), item(blank, blank + 1, plane="coronal")]
    assert trivial.mean_image(train)(item(blank)).mean() == pytest.approx(0.4)
    assert trivial.mean_image(train)(item(blank, plane="sagittal")).mean() == pytest.approx(0.6)


def test_a_grey_lookup_inverts_and_an_unseen_level_takes_the_nearest():
    ramp = torch.linspace(0, 0.5, 33).expand(8, 33)
    guess = trivial.grey_lookup([item(ramp, 1 - ramp)])
    assert (guess(item(ramp)) - (1 - ramp)).abs().max() < 1 / 32
    assert guess(item(torch.ones(2, 2))).unique().item() == pytest.approx(0.5, abs=1 / 32)


def test_a_colour_map_recovers_an_affine_map():
    image, matrix = torch.rand(3, 8, 8), torch.tensor([[0.5, 0.1, 0], [0, 0.4, 0.2], [0.1, 0, 0.5]])
    truth = torch.einsum("oi,ihw->ohw", matrix, image) + 0.1
    other = torch.rand(3, 8, 8)
    found = trivial.colour_map([item(image, truth)])(item(other))
    assert (found - (torch.einsum("oi,ihw->ohw", matrix, other) + 0.1)).abs().max() < 1e-5


@pytest.mark.parametrize(
    "task, names",
    [
        ("sr4", ["bicubic"]),
        ("seg-tissue", ["lookup", "usual place", "nearest slice", "threshold"]),
        ("seg-lobes", ["lookup", "usual place", "nearest slice"]),
        ("seg-tumour", ["empty mask", "threshold"]),
        ("t1-to-t2", ["identity", "mean", "lookup"]),
        ("h-to-he", ["identity", "mean", "linear colours"]),
    ],
)
def test_every_drawing_task_has_its_baselines_and_they_are_images(task, names):
    image, mask = torch.rand(16, 16), torch.randint(0, 2, (16, 16))
    one = item(image, torch.rand(16, 16), mask)
    fitted = trivial.fit(task, [one])
    assert sorted(fitted) == sorted(names)
    for draw in fitted.values():
        assert draw(one).shape == (3, 16, 16) and 0 <= draw(one).min() and draw(one).max() <= 1
    if task in LEGENDS:
        labels = labels_from_colours(fitted[names[0]](one).unsqueeze(0), LEGENDS[task])
        assert labels.max() <= len(LEGENDS[task])


def test_the_nearest_slice_lends_its_mask():
    images = torch.rand(3, 16, 16)
    masks = torch.randint(0, 4, (3, 16, 16))
    train = [item(image, mask=mask) for image, mask in zip(images, masks, strict=True)]
    near = item(0.5 * images[1] + 0.1 + 0.02 * torch.rand(16, 16))  # another gain and offset, a little noise
    assert torch.equal(trivial.nearest_slice(train)(near), masks[1])


def test_the_tissue_threshold_knows_no_atlas_but_the_order_of_greys():
    """Four greys; in T1 the brightest is white matter, in T2 fluid; the place says nothing."""

    def scan(contrast):
        mask = torch.randint(0, 4, (16, 16))
        greys = {"T1": [0.0, 0.5, 0.8, 0.3], "T2": [0.0, 0.5, 0.3, 0.9]}[contrast]
        image = torch.tensor(greys)[mask] + 0.02 * torch.rand(16, 16)
        return item(image, mask=mask, contrast=contrast)

    draw = trivial.otsu([scan(name) for name in ("T1", "T2") for _ in range(3)], 3)
    for contrast in ("T1", "T2"):
        other = scan(contrast)
        assert torch.equal(draw(other), other["mask"])
    assert not draw(item(torch.full((16, 16), 0.3))).any(), "one grey cannot be cut"


def test_words_choose_a_training_image_and_a_mean():
    def asked(words, plane, image):
        one = item(image, image, plane=plane)
        return {**one, "turns": [Turn("user", [words])]}

    pictures = torch.rand(3, 16, 16)
    words = ("Axial T1 MRI of the head.", "Axial T1 MRI of the head.", "Coronal T1 MRI of the thalamus.")
    train = [asked(*row) for row in zip(words, ("axial", "axial", "coronal"), pictures, strict=True)]
    fitted = trivial.fit("text-to-image", train)
    wanted = asked("Coronal T1 MRI at the level of the thalamus.", "coronal", torch.rand(16, 16))
    assert torch.equal(fitted["nearest training image"](wanted), train[2]["truth"])
    mean = fitted["mean image"](train[0])
    assert (mean - pictures[:2].mean(0)).abs().max() < 1e-6
    assert trivial.fit("text-to-image", []) == {}


def test_without_training_items_only_what_needs_none_is_left():
    assert list(trivial.fit("t1-to-t2", [])) == ["identity"] and list(trivial.fit("seg-tumour", [])) == [
        "empty mask"
    ]
    assert trivial.fit("seg-lobes", []) == {}


def kinds(count):
    """Bright or dark images with a bar across or down."""
    images, contrasts, planes = 0.05 * torch.rand(count, 3, 32, 32), [], []
    for n in range(count):
        bright, across = n % 2, n // 2 % 2
        images[n] += 0.3 + 0.4 * bright
        place = slice(12, 20)
        images[n, :, place if across else slice(None), slice(None) if across else place] = 0
        contrasts.append(("T1", "T2")[bright])
        planes.append(("axial", "")[across])
    return images, contrasts, planes


def test_the_judge_learns_two_contrasts_and_two_planes_and_is_the_same_again():
    images, contrasts, planes = kinds(64)
    judge = train_judge(images, contrasts, planes, epochs=20)
    fresh = kinds(16)
    assert judge.name(fresh[0]) == list(zip(fresh[1], fresh[2], strict=True))
    state = torch.get_rng_state()
    again = train_judge(images, contrasts, planes, epochs=20)
    assert torch.equal(judge(fresh[0])[0], again(fresh[0])[0])
    assert torch.equal(state, torch.get_rng_state())  # others' chance is left alone


def test_a_judge_needs_names_for_its_images():
    with pytest.raises(ValueError, match="got 4 images, 3 contrasts and 4 planes"):
        train_judge(torch.zeros(4, 3, 32, 32), ["T1"] * 3, [""] * 4)
