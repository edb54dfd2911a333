# SPDX-License-Identifier: Apache-2.0
"""Scores of images, one number for each image of a batch; the arithmetic is MONAI's. Pixels are in [0, 1].

N images   K labels without background   H, W pixels
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from monai_unimedvl.transforms.masks import ColoursToLabels

IDENTICAL = 100.0  # dB given to equal images, whose PSNR is infinite


def psnr(images: Tensor, truth: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB for a data range of 1.0, over all channels: twice (N, 3, H, W) -> (N,)

    Raises:
        ValueError: shapes differ.
    """
    from monai.metrics import PSNRMetric

    _check(images, truth)
    return PSNRMetric(max_val=1.0)(images.float(), truth.float())[:, 0].clamp_max(IDENTICAL)


def ssim(images: Tensor, truth: Tensor) -> Tensor:
    """Structural similarity, Gaussian window of 11, sigma 1.5, data range 1.0: twice (N, 3, H, W) -> (N,)

    Raises:
        ValueError: shapes differ, or a side below 11 pixels.
    """
    from monai.metrics import SSIMMetric

    _check(images, truth)
    if min(images.shape[-2:]) < 11:
        raise ValueError(f"ssim needs sides of at least 11 pixels, got {tuple(images.shape)}: enlarge both.")
    return SSIMMetric(spatial_dims=2, data_range=1.0)(images.float(), truth.float())[:, 0]


def dice(labels: Tensor, truth: Tensor, count: int) -> Tensor:
    """Dice of each label: twice (N, H, W) of integers 0..count, 0 is background -> (N, count)

    A label that the truth does not have is NaN.

    Raises:
        ValueError: shapes differ.
    """
    from monai.metrics import DiceHelper

    _check(labels, truth)
    score = DiceHelper(include_background=False, reduction="none", get_not_nans=False, num_classes=count + 1)
    found: Tensor = score(labels.long().unsqueeze(1), truth.long().unsqueeze(1))  # (N, K)
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
    return (_standard(images) @ _standard(bank).T).amax(1)


def _standard(images: Tensor) -> Tensor:
    flat = images.float().mean(1).flatten(1)  # (N, H*W)
    flat = flat - flat.mean(1, keepdim=True)
    return flat / flat.norm(dim=1, keepdim=True).clamp_min(1e-12)


def _check(images: Tensor, truth: Tensor) -> None:
    if images.shape != truth.shape:
        raise ValueError(
            f"The images have shape {tuple(images.shape)}, the truth {tuple(truth.shape)}: score at the "
            "size of the truth."
        )
