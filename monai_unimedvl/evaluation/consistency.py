# SPDX-License-Identifier: Apache-2.0
"""Whether what a model draws, says and edits hangs together. No truth is needed, and none is claimed.

A model that agrees with itself may be wrong twice; these scores find the ones that do not even agree.
  H, W pixels   D slices
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_unimedvl.data.atlas_tasks import INSTRUCTIONS
from monai_unimedvl.evaluation.asking import Drawing, Request, ask
from monai_unimedvl.evaluation.image import psnr, ssim
from monai_unimedvl.evaluation.text import token_f1
from monai_unimedvl.networks.unimedvl import UniMedVL
from monai_unimedvl.tokenizer import Tokenizer

CHANGED = 0.02  # mean difference of grey levels in [0, 1], above which a pixel counts as changed
Score = Callable[[str, str], float]


@dataclass(frozen=True)
class Cycle:
    """A report, the image drawn from it (3, H, W) uint8, what was read there, how alike both texts are."""

    report: str
    image: Tensor
    again: str
    scores: Mapping[str, float]


def report_cycle(
    network: UniMedVL, tokenizer: Tokenizer, reports: Sequence[str], *, size: tuple[int, int],
    drawing: Drawing | None = None, prompt: str = INSTRUCTIONS["caption"], words: int = 160, seed: int = 0,
    batch: int = 32, scores: Mapping[str, Score] | None = None,
) -> list[Cycle]:  # fmt: skip
    """Report -> image -> report: each text is drawn, and what was drawn is described again.

    Args:
        size: of the images, height and width. words: new tokens of a description, at most.
        seed: of the first image; the next has the next number.
        scores: name -> (again, report) -> number; token F1 by default.
    """
    judges = scores or {"token F1": token_f1}
    found = []
    for start in range(0, len(reports), batch):
        part = list(reports[start : start + batch])
        seeds = tuple(range(seed + start, seed + start + len(part)))
        drawn = ask(
            network, tokenizer,
            Request([[text] for text in part], size=size, drawing=drawing or Drawing(), seeds=seeds),
        ).images  # fmt: skip
        assert drawn is not None
        asked = [[image.float() / 255, prompt] for image in drawn]
        said = ask(network, tokenizer, Request(asked, words=words)).said
        for text, image, one in zip(part, drawn, said, strict=True):
            found.append(
                Cycle(text, image, one.text, {name: judge(one.text, text) for name, judge in judges.items()})
            )
    return found


@dataclass(frozen=True)
class Drift:
    """What an edit did inside and outside of the region it was to change.

    Args:
        inside, outside: mean absolute difference of grey levels in [0, 1].
        leaked: share of all change that lies outside, in [0, 1]; 0 where nothing changed.
        touched: share of the outside pixels that changed by more than `CHANGED`.
        psnr: of the outside, in dB, by the image before.
    """

    inside: float
    outside: float
    leaked: float
    touched: float
    psnr: float


def edit_drift(before: Tensor, after: Tensor, region: Tensor) -> Drift:
    """How far an edit went outside of its region.

    Args:
        before, after: (3, H, W) in [0, 1]. region: (H, W) of booleans.

    Raises:
        ValueError: shapes differ, or the region is empty or everything.
    """
    change = difference_map(before, after)
    inside, outside = _parts(change, region)
    total = float(inside.sum() + outside.sum())
    score = psnr(after.unsqueeze(0), before.unsqueeze(0), ~region.bool().unsqueeze(0))
    return Drift(
        float(inside.mean()), float(outside.mean()), float(outside.sum()) / total if total else 0.0,
        float((outside > CHANGED).float().mean()), float(score[0]),
    )  # fmt: skip


def difference_map(before: Tensor, after: Tensor, sigma: float = 0.0) -> Tensor:
    """Mean absolute difference of the channels, smoothed: twice (3, H, W) in [0, 1] -> (H, W)

    Args:
        sigma: of a Gaussian in pixels; 0 does not smooth.

    Raises:
        ValueError: shapes differ.
    """
    if before.shape != after.shape:
        raise ValueError(
            f"The image before has shape {tuple(before.shape)}, the one after {tuple(after.shape)}: resize"
            " the edit to its source."
        )
    change = (after.float() - before.float()).abs().mean(0)
    if sigma:
        from monai.networks.layers import GaussianFilter

        change = GaussianFilter(2, sigma)(change[None, None])[0, 0]
    return change


@dataclass(frozen=True)
class Explained:
    """How well a difference map fits the region that an explanation names.

    Args:
        inside: share of the change that lies in the region. expected: what an even spread would give.
        auroc: chance that a pixel of the region changed more than one outside.
        hit: whether the largest change lies in the region (the pointing game).
        iou: of the region and as many of the most changed pixels.
    """

    inside: float
    expected: float
    auroc: float
    hit: bool
    iou: float


def explained(before: Tensor, after: Tensor, region: Tensor, *, sigma: float = 1.0) -> Explained:
    """Image -> counterfactual -> difference map, against the region that the explanation names.

    Args:
        before, after: (3, H, W) in [0, 1].
        region: (H, W) of booleans, such as `named_region` or boxes of an answer give it.

    Raises:
        ValueError: shapes differ, or the region is empty or everything.
    """
    change = difference_map(before, after, sigma)
    inside, outside = _parts(change, region)
    total, mask = float(change.sum()), region.bool()
    order = torch.cat([inside, outside]).double()
    _, place, counts = order.unique(return_inverse=True, return_counts=True)
    ranks = (counts.cumsum(0) - (counts - 1) / 2)[place]
    size = len(inside)
    auroc = (float(ranks[:size].sum()) - size * (size + 1) / 2) / (size * len(outside))
    most = torch.zeros(change.numel(), dtype=torch.bool)
    most[change.flatten().argsort(descending=True, stable=True)[:size]] = True
    both = int((most.view_as(mask) & mask).sum())
    return Explained(
        float(inside.sum()) / total if total else 0.0, size / change.numel(), auroc,
        bool(total > 0 and mask.flatten()[change.argmax()]), both / (2 * size - both),
    )  # fmt: skip


def named_region(explanation: str, masks: Mapping[str, Tensor]) -> Tensor | None:
    """The union of the structures that a text names, or None if it names none.

    Args:
        masks: name of a structure -> (H, W) of booleans, such as an expert's segmentation.
    """
    said = explanation.casefold()
    named = [
        mask.bool() for name, mask in masks.items() if re.search(rf"\b{re.escape(name.casefold())}", said)
    ]
    return torch.stack(named).any(0) if named else None


@dataclass(frozen=True)
class SliceConsistency:
    """How smoothly a volume goes from slice to slice, beside a real one.

    Args:
        similarity: mean SSIM of neighbouring slices; real: that of the reference.
        step: mean absolute difference of neighbours; ratio: to the reference's, 1 is as smooth, above is
            flicker, far below is smeared.
        worst: the z whose step to z + 1 is largest by that of the reference, and by how much.
    """

    similarity: float
    real: float | None
    step: float
    ratio: float | None
    worst: tuple[int, float]


def slice_consistency(volume: Tensor, reference: Tensor | None = None, *, axis: int = -1) -> SliceConsistency:
    """Slice-to-slice consistency of a generated volume.

    Args:
        volume, reference: (X, Y, Z) in one range; the reference is the source or the truth on the same grid.
        axis: along which slices were drawn.

    Raises:
        ValueError: shapes differ, or fewer than 2 slices.
    """
    if volume.ndim != 3 or volume.shape[axis] < 2:
        raise ValueError(f"A volume of shape {tuple(volume.shape)} came, expected (X, Y, Z), some slices.")
    if reference is not None and reference.shape != volume.shape:
        raise ValueError(
            f"The volume has shape {tuple(volume.shape)}, the reference {tuple(reference.shape)}: resample"
            " the one onto the other."
        )
    both = [one.float().movedim(axis, 0) for one in (volume, reference) if one is not None]
    low, high = both[-1].min(), both[-1].max()  # the range of the reference, or else its own
    if high == low:
        raise ValueError("The volume is one value everywhere: there is nothing to compare.")
    scaled = [((one - low) / (high - low)).clamp(0, 1) for one in both]  # (D, H, W)
    steps = [(one[1:] - one[:-1]).abs().mean((1, 2)) for one in scaled]  # (D - 1,)
    alike = [_neighbours(one) for one in scaled]
    relative = steps[0] / (steps[1] if reference is not None else steps[0].mean()).clamp_min(1e-6)
    worst = int(relative.argmax())
    ratio = float(steps[0].mean() / steps[1].mean().clamp_min(1e-6)) if reference is not None else None
    return SliceConsistency(
        alike[0], alike[1] if reference is not None else None, float(steps[0].mean()), ratio,
        (worst, float(relative[worst])),
    )  # fmt: skip


def _neighbours(slices: Tensor) -> float:
    """Mean SSIM of neighbouring slices (D, H, W); small ones are enlarged to a window."""
    images = slices.unsqueeze(1)
    short = min(images.shape[-2:])
    if short < 11:
        images = F.interpolate(images, scale_factor=-(-11 // short), mode="nearest")
    return float(ssim(images[1:], images[:-1]).mean())


def _parts(change: Tensor, region: Tensor) -> tuple[Tensor, Tensor]:
    """The changes inside and outside of a region."""
    if region.shape != change.shape:
        raise ValueError(f"The region has shape {tuple(region.shape)}, the images {tuple(change.shape)}.")
    inside, outside = change[region.bool()], change[~region.bool()]
    if not len(inside) or not len(outside):
        raise ValueError("The region is empty or everything, expected a part of the image: say where.")
    return inside, outside
