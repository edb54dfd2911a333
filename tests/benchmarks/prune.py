# SPDX-License-Identifier: Apache-2.0
"""Questions about runs of nine neighbouring slices: all tokens read, and 5/9 of them dropped in three ways.

The runs are real CT, MR and PET volumes of the atlas; the questions are those of the atlas, asked of the
run: a region or a tumour is there if any of its slices shows it. Pruning drops what repeats the neighbouring
slice, the second way drops as many tokens at random, the third shows four of the nine slices. Differences are
paired; runs are resampled whole, with their questions.

The shipped nano was asked about runs of up to nine slices of its training volumes, too; those are measured
beside the held-out ones, and say nothing about new patients.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from _timing import load_average, parsed, report

from monai_unimedvl import load
from monai_unimedvl.data.atlas import as_tensor
from monai_unimedvl.data.atlas_pictures import load_pictures
from monai_unimedvl.data.atlas_runs import Asked, Run, runs
from monai_unimedvl.data.atlas_tasks import QUESTIONS
from monai_unimedvl.data.fetch import default_root
from monai_unimedvl.inferers import TextInferer
from monai_unimedvl.inferers.context import segments_for
from monai_unimedvl.sequence import Segment, View
from monai_unimedvl.transforms.pruning import PruneTokens, share_dropped

SLICES, SHOWN = 9, 4  # 5/9 = 55.6 % are dropped
BUDGET = 1 - SHOWN / SLICES
SECTIONS = {  # slabs: of volumes of which other slices were trained on
    "volumes never trained on": ("test_subject",),
    "held-out slabs": ("test", "val"),
    "training volumes": ("train",),
}
RESAMPLES = 4000
Prune = Callable[[Sequence[Segment]], list[Segment]]


class RandomTokens:
    """Drops a share of the tokens of all slices, wherever they are."""

    def __init__(self, share: float) -> None:
        self.share = share

    def __call__(self, segments: Sequence[Segment]) -> list[Segment]:
        views = [i for i, segment in enumerate(segments) if isinstance(segment, View)]
        sizes = [len(segments[i].patches) for i in views]  # type: ignore[union-attr]
        total = sum(sizes)
        # other tokens for other slices, the same for each question about them
        seed = int(sum(segments[i].patches.double().abs().sum() for i in views) * 1e3)  # type: ignore[union-attr]
        chance = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(total, generator=chance)[: total - int(np.ceil(self.share * total))]
        keep = torch.zeros(total, dtype=torch.bool)
        keep[chosen] = True
        found = list(segments)
        for i, part in zip(views, keep.split(sizes), strict=True):
            found[i] = replace(found[i], kept=part.nonzero().squeeze(1))  # type: ignore[call-arg]
        return found


def answers(
    found: Sequence[Run], network: Any, tokenizer: Any, prune: Prune | None, shown: Sequence[int]
) -> tuple[np.ndarray, float, float]:
    """Right or wrong for each question of all runs, the share of image tokens dropped, CPU seconds."""
    infer = TextInferer(tokenizer, max_new_tokens=8, prune=prune)  # type: ignore[arg-type]
    to_segments = segments_for(network, tokenizer)
    shown_slices = [[as_tensor(run.slices[i].pixels) for i in shown] for run in found]
    right, dropped, begin = [], [], time.process_time()
    for run, slices in zip(found, shown_slices, strict=True):
        said = infer([[*slices, QUESTIONS[asked.key][0]] for asked in run.asked], network)
        right += [str(a) == asked.answer for a, asked in zip(said, run.asked, strict=True)]
        segments = to_segments(slices)
        kept = 1 - share_dropped(segments if prune is None else prune(segments))
        dropped.append(1 - kept * len(slices) / SLICES)
    return np.array(right), float(np.mean(dropped)), time.process_time() - begin


def commonest(asked: Sequence[Asked]) -> list[float]:
    """For each question whether its answer is the commonest one to that question among these same ones.

    A guess that knows this much of the held-out answers: more than one from the training answers could.
    """
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for one in asked:
        answers[one.key][one.answer] += 1
    return [float(answers[one.key].most_common(1)[0][0] == one.answer) for one in asked]


def interval(difference: np.ndarray, group: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95 % of the mean, runs resampled whole."""
    chance = np.random.default_rng(seed)
    sums, counts = np.bincount(group, difference), np.bincount(group)
    drawn = chance.integers(0, len(counts), (RESAMPLES, len(counts)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def compare(found: Sequence[Run], network: Any, tokenizer: Any, label: str) -> tuple[list[list[str]], str]:
    """The cells of all ways on some runs, and what was asked."""
    group = np.concatenate([np.full(len(run.asked), n) for n, run in enumerate(found)])
    everything = range(SLICES)
    spread = [(2 * i + 1) * SLICES // (2 * SHOWN) for i in range(SHOWN)]
    ways: dict[str, tuple[Prune | None, Sequence[int]]] = {
        "nothing": (None, everything),
        "what repeats the neighbouring slice": (PruneTokens(BUDGET), everything),
        "random tokens": (RandomTokens(BUDGET), everything),
        "five of the nine slices": (None, spread),
    }
    scores = {way: answers(found, network, tokenizer, *how) for way, how in ways.items()}
    base, pruned = scores["nothing"][0], scores["what repeats the neighbouring slice"][0]
    cells = []
    for way, (right, share, seconds) in scores.items():
        each = []
        for difference in (right.astype(float) - base, pruned.astype(float) - right):
            low, high = interval(difference, group)
            each.append(f"{100 * difference.mean():+.1f} ({100 * low:+.1f} to {100 * high:+.1f})")
        each = ["", ""] if right is base else [each[0], ""] if right is pruned else each
        cells.append(
            [label, way, f"{100 * share:.1f} %", f"{100 * right.mean():.1f} %", *each, f"{seconds:.0f} s"]
        )
    blind = np.mean(commonest([asked for run in found for asked in run.asked]))
    kinds = Counter(run.slices[0].modality for run in found)
    about = (
        f"{label}: {len(group)} questions about {len(found)} runs "
        f"({', '.join(f'{n} {kind}' for kind, n in kinds.items())}); the commonest answer of each question "
        f"is right in {100 * blind:.1f} %."
    )
    return cells, about


def main() -> None:
    """The table of RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=int, default=110, help="runs of each kind at most, spread over all")
    parser.add_argument("--model", default="unimedvl_nano")
    options = parsed(parser)
    load_before = load_average()
    network, tokenizer = load(options.model, parts=("understanding", "vision"))
    cells = [
        ["runs of", "dropped", "share", "right", "against all tokens, points", "pruning against it, points",
         "CPU"],
    ]  # fmt: skip
    said = ["Nine neighbouring slices, and questions about them. Intervals of 95 %: runs resampled whole."]
    pictures, _ = load_pictures(default_root())
    for label, sections in SECTIONS.items():
        found = list(runs(pictures, sections, length=SLICES))
        chosen = np.linspace(0, len(found) - 1, min(options.limit, len(found))).round().astype(int)
        more, about = compare([found[i] for i in chosen], network, tokenizer, label)
        cells, said = cells + more, [*said, about]
        print(about, *more, sep="\n", flush=True)
    report(" ".join(said), cells, options, load_before)


if __name__ == "__main__":
    main()
