# SPDX-License-Identifier: Apache-2.0
"""The scores of one item of the atlas benchmark, and what its truth is.

N images   K labels without background   H, W pixels
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from monai_unimedvl.data.atlas import LEGENDS
from monai_unimedvl.evaluation.baselines import Item
from monai_unimedvl.evaluation.image import dice, labels_from_colours, psnr, ssim
from monai_unimedvl.evaluation.text import exact_match, named_kind, token_f1
from monai_unimedvl.networks.unimedvl import UniMedVL

NEAR_COPY = 0.98  # correlation to a training image


def image_scores(task: str, images: Tensor, truth: Tensor) -> dict[str, Tensor]:
    """Metric -> score of each image, (N, 3, H, W) twice -> (N,)"""
    if task not in LEGENDS:
        return {"PSNR": psnr(images, truth), "SSIM": ssim(images, truth)}
    legend = LEGENDS[task]
    each = dice(
        labels_from_colours(images, legend), labels_from_colours(truth, legend), len(legend)
    )  # (N, K)
    scores = {"Dice": each.nanmean(1)}
    if task == "seg-tissue":
        scores |= {f"Dice {name}": each[:, k] for k, name in enumerate(legend)}
    return scores


def text_scores(task: str, said: str, item: Item) -> dict[str, float]:
    """Metric -> score of a text."""
    if task == "vqa":
        return {"exact match": exact_match(said, item["truth"])}
    return {
        "token F1": token_f1(said, item["truth"]),
        "contrast and plane": float(named_kind(said) == kind_of(item)),
    }


def kind_scores(named: tuple[str, str], truth: tuple[str, str]) -> dict[str, float]:
    """Metric -> whether contrast, plane and both were named right."""
    pairs = {
        "contrast and plane": named == truth,
        "contrast": named[0] == truth[0],
        "plane": named[1] == truth[1],
    }
    return {metric: float(right) for metric, right in pairs.items()}


@torch.no_grad()
def reconstruct(network: UniMedVL, images: Tensor) -> Tensor:
    """Through the autoencoder and back: (N, 3, H, W) in [0, 1] -> the same"""
    weight = network.decoder.embed.weight
    parts = [network.autoencoder(part.to(weight) * 2 - 1).float().cpu() for part in images.split(64)]
    return torch.cat(parts).add(1).div(2).clamp(0, 1)


def kind_of(item: Item) -> tuple[str, str]:
    """(contrast, plane) of an item."""
    return str(item["contrast"]), str(item["plane"])


def truths(items: Sequence[Item]) -> Tensor:
    """The true images of items of one size: (N, 3, H, W)"""
    return torch.stack([item["truth"] for item in items])
