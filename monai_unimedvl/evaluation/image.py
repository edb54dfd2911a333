# SPDX-License-Identifier: Apache-2.0
"""Scores of images, one number for each image of a batch; the arithmetic is MONAI's. Pixels are in [0, 1].

N images   K labels without background   H, W pixels
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from monai_unimedvl.packages import needed
from monai_unimedvl.transforms.image import resize
from monai_unimedvl.transforms.masks import ColoursToLabels

WINDOW = 11  # pixels of the structural similarity
IDENTICAL = 100.0  # dB given to equal images, whose PSNR is infinite


def psnr(images: Tensor, truth: Tensor, mask: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio in dB for a data range of 1.0, over all channels: twice (N, 3, H, W) -> (N,)

    Args:
        mask: (N, H, W) of booleans; only these pixels count. An image without any has NaN.

    Raises:
        ValueError: shapes differ, or pixels are no numbers.
    """
    from monai.metrics import PSNRMetric

    check_pairs(images, truth)
    if mask is None:
        return PSNRMetric(max_val=1.0)(images.float(), truth.float())[:, 0].clamp_max(IDENTICAL)
    inside = _inside(mask, truth).expand_as(truth)
    square = ((images.float() - truth.float()).square() * inside).flatten(1).sum(1) / inside.flatten(1).sum(1)
    return (-10 * square.log10()).clamp_max(IDENTICAL)


def ssim(images: Tensor, truth: Tensor, mask: Tensor | None = None) -> Tensor:
    """Structural similarity, Gaussian window of 11, sigma 1.5, data range 1.0: twice (N, 3, H, W) -> (N,)

    Args:
        mask: (N, H, W) of booleans; only windows with their middle there count. Without any: NaN.

    Raises:
        ValueError: shapes differ, pixels are no numbers, or a side is below 11 pixels.
    """
    from monai.metrics import SSIMMetric
    from monai.metrics.regression import compute_ssim_and_cs

    check_pairs(images, truth)
    if min(images.shape[-2:]) < WINDOW:
        raise ValueError(
            f"ssim needs sides of at least {WINDOW} pixels, got {tuple(images.shape)}: enlarge both."
        )
    if mask is None:
        return SSIMMetric(spatial_dims=2, data_range=1.0)(images.float(), truth.float())[:, 0]
    sizes = {"kernel_size": (WINDOW, WINDOW), "kernel_sigma": (1.5, 1.5)}
    each, _ = compute_ssim_and_cs(images.float(), truth.float(), spatial_dims=2, data_range=1.0, **sizes)
    edge = WINDOW // 2
    inside = _inside(mask, truth)[..., edge:-edge, edge:-edge].expand_as(each)
    return (each * inside).flatten(1).sum(1) / inside.flatten(1).sum(1)


def at_size_of(images: Sequence[Tensor], truth: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Drawings brought to the size of their truth, for scores at the resolution of the truth.

    Args:
        images, truth: (3, h, w) and (3, H, W) each; a drawing of another size is resized by bicubic
            interpolation. All truths must be of one size.

    Raises:
        ValueError: truths of several sizes, numbers that differ, or no image.
    """
    sizes = [tuple(one.shape) for one in truth]
    if not sizes or len(images) != len(truth):
        raise ValueError(
            f"{len(images)} images came with {len(truth)} truths: give one truth for each image."
        )
    if odd := next((row for row, size in enumerate(sizes) if size != sizes[0]), None):
        raise ValueError(
            f"The truth of row {odd} has shape {sizes[odd]}, row 0 {sizes[0]}: score images of one size at a "
            "time."
        )
    height, width = sizes[0][1:]
    drawn = [
        one if one.shape[1:] == (height, width) else resize(one, (width, height), (0.0, 1.0))
        for one in images
    ]
    return torch.stack(drawn), torch.stack(list(truth))


def upstream_scores(images: Tensor, truth: Tensor) -> dict[str, Tensor]:
    """PSNR and SSIM as the public code of the paper's group takes them: twice (N, 3, *, *) -> (N,) each.

    The truth is resized to the drawing (bicubic), both are 8-bit, data range 255; SSIM is scikit-image's with
    its flat window of 7 pixels. Where sizes differ this is higher than a score at the size of the truth.

    Raises:
        ValueError: scikit-image is not installed, or pixels are no numbers.
    """
    metrics = needed("skimage.metrics", "upstream_scores", "data")
    if images.shape[-2:] != truth.shape[-2:]:
        height, width = images.shape[-2:]
        truth = torch.stack([resize(one, (width, height), (0.0, 1.0)) for one in truth])
    check_pairs(images, truth)
    drawn, real = ((x.clamp(0, 1) * 255).round().to(torch.uint8).movedim(1, -1) for x in (images, truth))
    square = (drawn.double() - real.double()).square().flatten(1).mean(1)
    ratio = (20 * (255 / square.sqrt()).log10()).clamp_max(IDENTICAL)
    alike = [
        metrics.structural_similarity(one.numpy(), other.numpy(), channel_axis=2, data_range=255)
        for one, other in zip(real, drawn, strict=True)
    ]
    return {"PSNR": ratio, "SSIM": torch.tensor(alike, dtype=torch.float64)}


def foreground(truth: Tensor, threshold: float = 0.05) -> Tensor:
    """Where any channel of the truth is above a threshold, holes filled: (N, 3, H, W) -> (N, H, W) bool"""
    from monai.transforms import FillHoles

    masks = (truth.amax(1, keepdim=True) > threshold).float()
    filled = torch.stack([torch.as_tensor(FillHoles()(one)) for one in masks])
    return filled[:, 0] > 0


def dice(labels: Tensor, truth: Tensor, count: int) -> Tensor:
    """Dice of each label: twice (N, H, W) of integers 0..count, 0 is background -> (N, count)

    A label that the truth does not have is NaN.

    Raises:
        ValueError: shapes differ.
    """
    from monai.metrics import DiceHelper

    check_pairs(labels, truth)
    score = DiceHelper(include_background=False, reduction="none", get_not_nans=False, num_classes=count + 1)
    found: Tensor = score(labels.long().unsqueeze(1), truth.long().unsqueeze(1))  # (N, K)
    return found


def hausdorff(
    labels: Tensor, truth: Tensor, count: int, *, percentile: float = 95.0, spacing: float | None = None
) -> Tensor:
    """Hausdorff distance of each label's edge (HD95): twice (N, H, W) of integers 0..count -> (N, count)

    In pixels, or in the unit of `spacing`. A label that neither has is NaN; one that only one of the two has
    is as far as the image is wide: the length of its diagonal.

    Raises:
        ValueError: shapes differ.
    """
    from monai.metrics import compute_hausdorff_distance
    from monai.networks.utils import one_hot

    check_pairs(labels, truth)
    drawn, real = (one_hot(x.long().unsqueeze(1), count + 1) for x in (labels, truth))  # (N, K + 1, H, W)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of absent labels, which are told apart below
        found = compute_hausdorff_distance(
            drawn, real, include_background=False, percentile=percentile, spacing=spacing
        ).double()
    here, there = (x[:, 1:].flatten(2).any(2) for x in (drawn, real))
    height, width = truth.shape[-2:]
    diagonal = (height**2 + width**2) ** 0.5 * (spacing or 1.0)
    found[here ^ there] = diagonal
    found[~here & ~there] = float("nan")
    return found


def labels_from_colours(images: Tensor, legend: Mapping[str, tuple[int, int, int]]) -> Tensor:
    """The label whose colour is nearest, background is black: (N, 3, H, W) in [0, 1] -> (N, H, W) of 0..K

    Args:
        legend: name -> (red, green, blue) in 0..255; label n is the n-th name.
    """
    return ColoursToLabels(legend, threshold=None).labels(images).long()


def paint(labels: Tensor, legend: Mapping[str, tuple[int, int, int]]) -> Tensor:
    """Label maps in the colours of their legend: (N, H, W) of 0..K -> (N, 3, H, W) in [0, 1]"""
    palette = torch.tensor([(0, 0, 0), *legend.values()], dtype=torch.float32, device=labels.device) / 255
    return palette[labels.long()].movedim(-1, 1)


def nearest_correlation(images: Tensor, bank: Tensor) -> Tensor:
    """Highest correlation of each grey image with any of the bank: (N, 3, H, W), (M, 3, H, W) -> (N,)"""
    return (standardised(images) @ standardised(bank).T).amax(1)


def standardised(images: Tensor) -> Tensor:
    """Grey images without their mean, of length 1, so that a product is a correlation: (N, H*W)"""
    flat = images.float().mean(1).flatten(1)  # (N, H*W)
    flat = flat - flat.mean(1, keepdim=True)
    return flat / flat.norm(dim=1, keepdim=True).clamp_min(1e-12)


def check_pairs(images: Tensor, truth: Tensor) -> None:
    """Refuse what cannot be scored pixel by pixel.

    Raises:
        ValueError: shapes differ, or pixels are no numbers; the row is named.
    """
    if images.shape != truth.shape:
        raise ValueError(
            f"The images have shape {tuple(images.shape)}, the truth {tuple(truth.shape)}: score at the "
            "size of the truth."
        )
    for name, one in (("image", images), ("truth", truth)):
        if one.is_floating_point() and not bool(torch.isfinite(one).all()):
            row = int((~torch.isfinite(one)).flatten(1).any(1).nonzero()[0, 0])
            raise ValueError(
                f"The {name} of row {row} has pixels that are no numbers: mend or drop that row."
            )


def _inside(mask: Tensor, truth: Tensor) -> Tensor:
    """A mask (N, H, W) as (N, 1, H, W) of 0 and 1."""
    if mask.shape != (len(truth), *truth.shape[-2:]):
        raise ValueError(
            f"The mask has shape {tuple(mask.shape)}, expected {(len(truth), *truth.shape[-2:])}: give one"
            " value a pixel."
        )
    return mask.bool().unsqueeze(1).float()
