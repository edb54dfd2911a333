# SPDX-License-Identifier: Apache-2.0
"""Masked, resized and upstream scores and edges of masks, against scikit-image and scipy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from monai_unimedvl.data.atlas import LEGENDS
from monai_unimedvl.evaluation.image import (
    IDENTICAL,
    at_size_of,
    foreground,
    hausdorff,
    labels_from_colours,
    paint,
    psnr,
    ssim,
    upstream_scores,
)

metrics = pytest.importorskip("skimage.metrics", reason="scores are held against scikit-image's")
ndimage = pytest.importorskip("scipy.ndimage", reason="edges are held against scipy's")


@pytest.fixture
def pair():
    truth = torch.rand(3, 3, 40, 48)
    return (truth + 0.1 * torch.randn_like(truth)).clamp(0, 1), truth


@pytest.fixture
def mask():
    return torch.rand(3, 40, 48) > 0.6


def test_masked_psnr_counts_the_pixels_of_the_mask_alone(pair, mask):
    image, truth = pair
    for n, found in enumerate(psnr(image, truth, mask).tolist()):
        inside = mask[n].numpy()
        expected = metrics.peak_signal_noise_ratio(
            truth[n].numpy()[:, inside], image[n].numpy()[:, inside], data_range=1.0
        )
        assert found == pytest.approx(expected, abs=1e-4)
    image[~mask.unsqueeze(1).expand_as(image)] = 0.0
    assert torch.equal(psnr(image, truth, mask), psnr(pair[0], truth, mask))
    everywhere = torch.ones_like(mask)
    assert torch.allclose(psnr(*pair, everywhere), psnr(*pair), atol=1e-4)


def test_masked_ssim_is_the_mean_of_scikit_image_s_map(pair, mask):
    image, truth = pair
    for n, found in enumerate(ssim(image, truth, mask).tolist()):
        _, each = metrics.structural_similarity(
            truth[n].double().numpy(), image[n].double().numpy(), data_range=1.0, channel_axis=0, full=True,
            gaussian_weights=True, sigma=1.5, win_size=11, use_sample_covariance=False,
        )  # fmt: skip
        inside = mask[n, 5:-5, 5:-5].numpy()
        assert found == pytest.approx(each[:, 5:-5, 5:-5][:, inside].mean(), abs=1e-4)
    assert torch.allclose(ssim(*pair, torch.ones_like(mask)), ssim(*pair), atol=1e-5)


def test_an_empty_mask_has_no_score(pair, mask):
    mask[1] = False
    assert psnr(*pair, mask).isnan().tolist() == ssim(*pair, mask).isnan().tolist() == [False, True, False]


def test_the_foreground_is_the_head_with_its_dark_middle():
    truth = torch.zeros(1, 3, 9, 9)
    truth[0, :, 2:7, 2:7] = 0.8
    truth[0, :, 4, 4] = 0.0
    found = foreground(truth)
    assert int(found.sum()) == 25 and bool(found[0, 4, 4])


def test_upstream_scores_are_those_of_8_bit_images_with_a_flat_window(pair):
    image, truth = pair
    found = upstream_scores(image, truth)
    for n in range(len(image)):
        a, b = ((x[n] * 255).round().numpy().astype(np.float64) for x in (image, truth))
        assert float(found["PSNR"][n]) == pytest.approx(
            20 * np.log10(255 / np.sqrt(np.square(a - b).mean())), abs=1e-4
        )
        window = 7**2
        values = []
        for x, y in zip(a, b, strict=True):
            mx, my = ndimage.uniform_filter(x, 7), ndimage.uniform_filter(y, 7)
            vx = (ndimage.uniform_filter(x * x, 7) - mx * mx) * window / (window - 1)
            vy = (ndimage.uniform_filter(y * y, 7) - my * my) * window / (window - 1)
            vxy = (ndimage.uniform_filter(x * y, 7) - mx * my) * window / (window - 1)
            c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
            each = (2 * mx * my + c1) * (2 * vxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
            values.append(each[3:-3, 3:-3].mean())
        assert float(found["SSIM"][n]) == pytest.approx(np.mean(values), abs=1e-4)
    assert upstream_scores(truth, truth)["PSNR"].tolist() == [IDENTICAL] * 3


def test_upstream_scores_of_a_small_drawing_are_higher_than_at_the_size_of_the_truth():
    truth = torch.rand(2, 3, 40, 40)
    small = torch.nn.functional.interpolate(truth, (20, 20), mode="bicubic", antialias=True).clamp(0, 1)
    drawn, real = at_size_of(list(small), list(truth))
    assert drawn.shape == real.shape == (2, 3, 40, 40)
    assert bool((upstream_scores(small, truth)["PSNR"] > psnr(drawn, real) + 5).all())


def edges_apart(a, b, percentile):
    """Of two masks: the larger of the two directed percentiles of the distances between edge pixels."""
    a, b = (np.argwhere(x & ~ndimage.binary_erosion(x)) for x in (a, b))
    apart = np.linalg.norm(a[:, None] - b[None], axis=2)
    return max(np.percentile(apart.min(1), percentile), np.percentile(apart.min(0), percentile))


def test_the_edges_of_decoded_masks_are_as_far_apart_as_scipy_says():
    legend = LEGENDS["seg-tissue"]
    noise = np.random.default_rng(0).normal(size=(4, 32, 32))
    smooth = torch.from_numpy(ndimage.gaussian_filter(noise, (0, 3, 3)))  # each picture by itself
    labels = torch.bucketize(smooth, smooth.flatten().quantile(torch.tensor([0.4, 0.6, 0.8]).double()))
    images = paint(labels, legend) + 0.02 * torch.randn(4, 3, 32, 32)
    decoded = labels_from_colours(images.clamp(0, 1), legend)
    assert torch.equal(decoded, labels)
    found = hausdorff(decoded[:2], labels[2:], 3, spacing=0.5)
    others = []
    for n in range(2):
        for k in range(3):
            a, b = ((x == k + 1).numpy() for x in (decoded[n], labels[n + 2]))
            assert float(found[n, k]) == pytest.approx(0.5 * edges_apart(a, b, 95), abs=1e-4)
            others.append(0.5 * edges_apart(a, b, 94))
    assert not np.allclose(found.flatten(), others, atol=1e-3)  # a case that says something


def test_a_label_that_only_one_side_has_is_as_far_as_can_be():
    drawn = torch.zeros(2, 3, 4, dtype=torch.long)
    truth = drawn.clone()
    truth[0, 0, 0], drawn[0, 1, 1] = 1, 2
    found = hausdorff(drawn, truth, 2)
    assert found[0].tolist() == [5.0, 5.0] and found[1].isnan().all()


@pytest.mark.parametrize(
    "images, truth, message",
    [
        ([torch.zeros(3, 4, 4)], [], "1 images came with 0 truths"),
        (
            [torch.zeros(3, 4, 4)] * 2,
            [torch.zeros(3, 4, 4), torch.zeros(3, 5, 4)],
            "truth of row 1 has shape",
        ),
    ],
)
def test_mixed_shapes_name_the_row(images, truth, message):
    with pytest.raises(ValueError, match=message):
        at_size_of(images, truth)


def test_pixels_that_are_no_numbers_name_the_row(pair, mask):
    image, truth = pair
    image[2, 0, 0, 0] = float("nan")
    for score in (psnr, ssim, upstream_scores):
        with pytest.raises(ValueError, match="image of row 2 has pixels that are no numbers"):
            score(image, truth)
    with pytest.raises(ValueError, match="The mask has shape .1, 40, 48., expected .3, 40, 48."):
        psnr(truth, truth, mask[:1])
