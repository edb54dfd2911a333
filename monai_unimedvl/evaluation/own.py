# SPDX-License-Identifier: Apache-2.0
"""Scores of a network on one's own held-out data: answers, masks and drawings of `data.own`.

report = score_own(network, tokenizer, list_own("my_data", "val"), ReadOwn("mri"))
print(report.table())
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from monai_unimedvl.data.own import ReadOwn, subject_of
from monai_unimedvl.evaluation.image import dice, psnr, ssim
from monai_unimedvl.evaluation.report import Report, summarise
from monai_unimedvl.evaluation.text import exact_match, token_f1
from monai_unimedvl.inferers import ImageInferer, TextInferer
from monai_unimedvl.networks.unimedvl import UniMedVL
from monai_unimedvl.tokenizer import Tokenizer
from monai_unimedvl.transforms.image import resize
from monai_unimedvl.transforms.masks import ColoursToLabels

NOTES = (
    "Dice: mean over the labels in the truth of an image. PSNR in dB and SSIM for a data range of 1, at the "
    "size of the truth. Intervals: 95 % percentile bootstrap over patients (images where none is named)"
)


def score_own(
    network: UniMedVL, tokenizer: Tokenizer, items: Sequence[Mapping[str, Any]], reading: ReadOwn, *,
    steps: int = 4, seed: int = 0, max_new_tokens: int = 200, out: str | Path | None = None,
) -> Report:  # fmt: skip
    """A report with one row for each kind of item and metric.

    Args:
        items: as `list_own` gives them. Drawings from words alone have no single truth and are left out.
        steps: network evaluations of a drawing.
        out: folder to save the report in.

    Raises:
        ValueError: no item that can be scored.
    """
    text = TextInferer(tokenizer, max_new_tokens=max_new_tokens, seed=seed)
    shift = network.timestep_shift
    drawing = ImageInferer(tokenizer, steps=steps, shift=shift, seed=seed)
    subjects: dict[str, int] = {}  # numbered, because they may be names
    predictions = []
    for number, item in enumerate(items):
        if item["kind"] == "words":
            continue
        read = reading(item)
        prompt, truth = read["turns"][0].parts, read["turns"][1].parts[0]
        if isinstance(truth, str):
            (made,) = text([prompt], network)
            said, scores = str(made), {
                "exact match": exact_match(str(made), truth), "token F1": token_f1(str(made), truth),
            }  # fmt: skip
        else:
            (drawn,) = drawing([prompt], network)
            said, scores = "", dict(_drawn(drawn, truth, read))
        predictions.append(
            {
                "task": item["kind"],
                "section": item["section"],
                "groups": [],
                "setting": "",
                "item": number,
                "picture": f"subject {subjects.setdefault(subject_of(item), len(subjects) + 1)}",
                "said": said,
                "truth": truth if isinstance(truth, str) else "",
                "scores": scores,
                "baselines": {},
                "ceiling": {},
            }  # fmt: skip
        )
    if not predictions:
        raise ValueError(
            f"There is nothing to score in {len(items)} items, expected questions with answers, masks or "
            "pairs: add some to the held-out section."
        )
    alone = len(subjects) == 1
    who = ", of which there is one: they say nothing of others." if alone else f": {len(subjects)}."
    report = Report(summarise(predictions, seed=seed), predictions, {"notes": f"{NOTES}{who}"})
    if out is not None:
        report.save(out)
    return report


def _drawn(drawn: Tensor, truth: Tensor, item: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Scores of a drawing (3, h, w) against its truth (3, H, W), both in [0, 1]."""
    height, width = truth.shape[1:]
    if item["kind"] == "mask":
        labels = ColoursToLabels(item["legend"], threshold=None).labels(drawn)
        whole = torch.nn.functional.interpolate(
            labels[None, None].float(), (height, width), mode="nearest-exact"
        )
        each = dice(whole[0].long(), item["mask"][None].long(), len(item["legend"]))[0]  # (K,)
        yield "Dice", float(each.nanmean())
        return
    image = resize(drawn, (width, height), (0.0, 1.0))[None]
    yield "PSNR", float(psnr(image, truth[None])[0])
    yield "SSIM", float(ssim(image, truth[None])[0])
