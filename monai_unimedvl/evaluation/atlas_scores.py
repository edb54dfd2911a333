# SPDX-License-Identifier: Apache-2.0
"""The scores of one item of the atlas benchmark, and what its truth is.

N images   K labels without background   H, W pixels
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from monai_unimedvl.data.atlas import LEGENDS
from monai_unimedvl.data.atlas_regions import REGIONS
from monai_unimedvl.evaluation.baselines import Item
from monai_unimedvl.evaluation.image import dice, labels_from_colours, psnr, ssim
from monai_unimedvl.evaluation.text import exact_match, named_kind, named_level, plain_words, token_f1
from monai_unimedvl.networks.unimedvl import UniMedVL

NEAR_COPY = 0.98  # correlation to a training image
MADE = ("skull-stripped average", "whole-head average", "smooth average", "skull-stripped", "whole head")
Kind = tuple[str, str, str]  # contrast, plane, level; "" for what an image has not


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
        "label F1": label_f1(said, item["truth"]),
        "contrast and plane": float(named_kind(said) == kind_of(item)[:2]),
    }


def caption_labels(caption: str) -> frozenset[str]:
    """What an atlas caption says, decoded: contrast, plane, level, kind, tissue, regions, tumour, nuclei."""
    contrast, plane = named_kind(caption)
    text = f" {plain_words(caption)} "
    found = {"contrast": contrast, "plane": plane, "level": named_level(caption)}
    found["kind"] = next((kind for kind in MADE if f" {plain_words(kind)} " in text), "")
    for name, pattern in (
        ("tissue", r" histology of ([\w ]+?) (?:h&e|ihc) "), ("body", r" of the (head|chest|retina) "),
        ("window", r" (bone|brain) window "), ("side", r" tumour in the (left|right) "),
        ("diameter", r" about (\d+) mm "),
        ("nuclei", r" (up to 7|8 or 9|10 and more) nuclei "), ("tumour", r" (no tumour|tumour) "),
    ):  # fmt: skip
        hit = re.search(pattern, text)
        found[name] = hit[1] if hit else ""
    if found["diameter"]:
        found["diameter"] = "above 20 mm" if int(found["diameter"]) > 20 else "up to 20 mm"
    seen = text.partition(" visible ")[2]
    regions = {f"region: {region}" for region in REGIONS if region in seen}
    return frozenset({f"{name}: {value}" for name, value in found.items() if value} | regions)


def label_f1(said: str, truth: str) -> float:
    """F1 of the labels decoded from a caption against those of the true one; no label twice agrees (1.0)."""
    ours, theirs = caption_labels(said), caption_labels(truth)
    if not ours and not theirs:
        return 1.0
    return 2 * len(ours & theirs) / (len(ours) + len(theirs))


def kind_scores(named: Kind, truth: Kind) -> dict[str, float]:
    """Metric -> whether contrast, plane and level were named right, alone and together."""
    pairs = {
        "contrast and plane": named[:2] == truth[:2],
        "contrast, plane and level": named == truth,
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


def kind_of(item: Item) -> Kind:
    """(contrast, plane, level) of an item; the level is the one in its caption or prompt."""
    words = item["truth"] if isinstance(item["truth"], str) else str(item["turns"][0].parts[-1])
    return str(item["contrast"]), str(item["plane"]), named_level(words)


def truths(items: Sequence[Item]) -> Tensor:
    """The true images of items of one size: (N, 3, H, W)"""
    return torch.stack([item["truth"] for item in items])
