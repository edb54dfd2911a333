# SPDX-License-Identifier: Apache-2.0
"""How few evaluations of the nano draw as well as fifty: each solver and the step cache, on held-out items.

Super-resolution, tissue masks and translation by their scores, with sharpness beside PSNR: the energy of
neighbouring pixels' differences, as a share of the truth's (1 is as sharp as the truth, less is smooth).
Drawings from words by what the judge names right, and by how far they are from the drawing in fifty steps.
Every item keeps its noise over all rows. The items are those of the val section, which chose the steps that
the bundle ships; a score of "Euler in 50" is reached where the lower end of the paired difference's interval
(95 %, items resampled) is above -2 % of that score, or the mean itself is no lower.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from _timing import arguments, load_average, report
from torch import Tensor

from monai_unimedvl.bundle import load
from monai_unimedvl.data.atlas import AtlasDataset
from monai_unimedvl.evaluation.atlas_scores import image_scores, kind_of, truths
from monai_unimedvl.evaluation.classifier import train_judge
from monai_unimedvl.flow import Guidance, Skip
from monai_unimedvl.inferers import ImageInferer

ITEMS, REFERENCE = 24, 50
EDITS = {"sr4": "PSNR", "seg-tissue": "Dice", "t1-to-t2": "PSNR"}
RUNS: list[tuple[str, int, Skip | None]] = [
    *(("euler", n, None) for n in (1, 2, 3, 4, 8)),
    *((solver, n, None) for solver in ("midpoint", "ab2", "dpm") for n in (2, 3, 4)),
    ("heun", 3, None),
    ("euler", 12, Skip(every=4)),
    ("ab2", 12, Skip(every=4)),
    ("euler", 16, Skip(every=8, tolerance=0.3)),
]


def sharpness(images: Tensor, truth: Tensor) -> float:
    """Energy of the differences of neighbours: twice (N, 3, H, W) -> share of the truth's"""
    energy = [x.diff(dim=-1).square().mean() + x.diff(dim=-2).square().mean() for x in (images, truth)]
    return float(energy[0] / energy[1])


def interval(differences: Tensor) -> float:
    """The lower end of the 95 % interval of the mean of (N,), items resampled 2,000 times."""
    chance = torch.Generator().manual_seed(0)
    picks = torch.randint(len(differences), (2000, len(differences)), generator=chance)
    return float(differences[picks].mean(1).quantile(0.025))


class Counted:
    """Calls of a network with something to draw."""

    def __init__(self, network: Any) -> None:
        self.calls, forward = 0, network.forward

        def counting(seq: Any, *rest: Any, **options: Any) -> Any:
            self.calls += bool(seq.noisy.any())
            return forward(seq, *rest, **options)

        network.forward = counting


def draw(
    items: Sequence[Any], network: Any, tokenizer: Any, counted: Counted, guidance: float, **how: Any
) -> tuple[Tensor, int, float]:
    """Images (N, 3, H, W) of the items, evaluations, and CPU ms an item."""
    size = tuple(items[0]["truth"].shape[1:])
    inferer = ImageInferer(
        tokenizer, size=size, guidance=Guidance(text=guidance), seed=list(range(len(items))), **how
    )
    counted.calls, began = 0, time.process_time()
    drawn = torch.stack(inferer([list(item["turns"][0].parts) for item in items], network)).float()
    return drawn, counted.calls, 1000 * (time.process_time() - began) / len(items)


def chosen(dataset: Any, count: int) -> list[Any]:
    """Items at even distances."""
    return [dataset[i] for i in range(0, len(dataset), max(1, len(dataset) // count))][:count]


def name(solver: str, steps: int, skip: Skip | None) -> str:
    """A row's."""
    if skip is None:
        return solver
    kept = "" if skip.tolerance is None else f", tolerance {skip.tolerance:g}"
    return f"{solver} over {steps} times, one in {skip.every} asked{kept}"


def main() -> None:
    """Edits, then drawings from words."""
    options, load_ = arguments(__doc__ or ""), load_average()
    network, tokenizer = load("unimedvl_nano")
    network.eval()
    counted = Counted(network)
    cells = [["task", "solver", "evaluations", "score", "of Euler in 50", "reached", "sharpness", "CPU ms"]]
    for task, metric in EDITS.items():
        items = chosen(AtlasDataset(None, "val", tasks=[task], progress=False), ITEMS)
        truth, found = truths(items), {}
        for solver, steps, skip in [("euler", REFERENCE, None), *RUNS]:
            drawn, calls, spent = draw(
                items, network, tokenizer, counted, 1.0, steps=steps, solver=solver, skip=skip
            )
            scores = image_scores(task, drawn, truth)[metric].nan_to_num()
            whole = found.setdefault("reference", scores)
            limit = -0.02 * float(whole.mean())
            reached = float(scores.mean()) >= float(whole.mean()) or interval(scores - whole) > limit
            cells.append(
                [
                    task, name(solver, steps, skip), str(calls), f"{metric} {scores.mean():.3f}",
                    f"{whole.mean():.3f}", "yes" if reached else "no",
                    f"{sharpness(drawn, truth):.2f}", f"{spent:.0f}",
                ]
            )  # fmt: skip
    cells += from_words(network, tokenizer, counted)
    about = f"{ITEMS} val items a task, one batch each; evaluations of the network, each of all branches."
    report(about, cells, options, load_)


def from_words(network: Any, tokenizer: Any, counted: Counted) -> list[list[str]]:
    """The curve of text-to-image: guidance 2, as the bundle draws."""
    training = AtlasDataset(None, "train", tasks=["text-to-image"], progress=False)
    lessons = chosen(training, 1500)
    kinds = [kind_of(item)[:2] for item in lessons]  # contrast and plane
    judge = train_judge(truths(lessons), [k for k, _ in kinds], [p for _, p in kinds], epochs=4)
    items = chosen(AtlasDataset(None, "val", tasks=["text-to-image"], progress=False), ITEMS)
    wanted, whole = [kind_of(item)[:2] for item in items], None
    named = judge.name(truths(items))
    real = sum(a == b for a, b in zip(named, wanted, strict=True)) / len(items)
    cells = [["text-to-image", "the real pictures", "", f"named right {real:.2f}", "", "", "1.00", ""]]
    runs: list[tuple[str, int, Skip | None]] = [
        ("euler", REFERENCE, None), *(("euler", n, None) for n in (4, 8, 20)),
        *((solver, n, None) for solver in ("midpoint", "heun", "ab2", "dpm") for n in (4, 8)),
        ("euler", 20, Skip(every=2)), ("euler", 20, Skip(every=4)),
    ]  # fmt: skip
    for solver, steps, skip in runs:
        drawn, calls, spent = draw(
            items, network, tokenizer, counted, 2.0, steps=steps, solver=solver, skip=skip
        )
        whole = drawn if whole is None else whole
        right = sum(a == b for a, b in zip(judge.name(drawn), wanted, strict=True)) / len(items)
        apart = float((drawn - whole).square().mean().sqrt())
        cells.append(
            [
                "text-to-image", name(solver, steps, skip), str(calls), f"named right {right:.2f}",
                f"RMS from it {apart:.3f}", "", f"{sharpness(drawn, truths(items)):.2f}", f"{spent:.0f}",
            ]
        )  # fmt: skip
    return cells


if __name__ == "__main__":
    main()
