# SPDX-License-Identifier: Apache-2.0
"""The second request of a dialogue about a held-out slice: an edit after another, or a question about it.

An edit is asked for alone, after another of the same scan in a dialogue, and in a new prompt with that
drawing instead of the scan. Truth is that of the scan.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from _timing import load_average, parsed, report
from torch import Tensor

from monai_unimedvl import load
from monai_unimedvl.cli.stage import STEPS, Item, score
from monai_unimedvl.data.atlas import INSTRUCTIONS, LEGENDS, AtlasDataset
from monai_unimedvl.data.atlas_tasks import QUESTIONS
from monai_unimedvl.evaluation.intervals import interval
from monai_unimedvl.inferers import ImageInferer, TextInferer
from monai_unimedvl.sequence import Prompt, Turn

PAIRS = (
    ("seg-tissue", "t1-to-t2"), ("seg-tissue", "seg-lobes"), ("t1-to-t2", "seg-tissue"),
    ("t1-to-t2", "t1-to-pd"), ("sr4", "seg-tissue"), ("sr4", "t1-to-t2"),
)  # fmt: skip
ASKED = {"t1-to-t2": "T2", "t1-to-pd": "PD"}  # what a drawing shows
Held = dict[str, dict[str, Item]]  # task -> picture -> item


class Speaker:
    """Draws and answers in batches of 16."""

    def __init__(self, model: str) -> None:
        self.network, tokenizer = load(model)
        self.draws = ImageInferer(tokenizer, steps=STEPS)
        self.says = TextInferer(tokenizer, max_new_tokens=8)

    def __call__(self, infer: Any, prompts: Sequence[Prompt]) -> list[Any]:
        found: list[Any] = []
        for i in range(0, len(prompts), 16):
            found += infer(prompts[i : i + 16], self.network)
        return found


def chat(item: Item, drawn: Tensor, words: str) -> list[Turn]:
    """The request of an item, what was drawn, and the next request."""
    return [item["turns"][0], Turn("assistant", [drawn]), Turn("user", [words])]


def figure(values: Sequence[float], metric: str) -> str:
    """Mean and interval, slices resampled."""
    low, high = interval(values)
    mean, digits = sum(values) / len(values), 2 if metric == "PSNR" else 3
    return f"{mean:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def edits(first: str, then: str, held: Held, speaker: Speaker) -> list[str]:
    """A row: the second of two edits, asked for in three ways."""
    names = sorted(set(held[first]) & set(held[then]))
    before, items = ([held[task][name] for name in names] for task in (first, then))
    drawn = speaker(speaker.draws, [item["turns"][0].parts for item in before])
    words = INSTRUCTIONS[then]
    ways: list[list[Prompt]] = [
        [item["turns"][0].parts for item in items],
        [chat(item, image, words) for item, image in zip(before, drawn, strict=True)],
        [[image, words] for image in drawn],
    ]
    metric = "Dice" if then in LEGENDS else "PSNR"
    cells = []
    for prompts in ways:
        made = speaker(speaker.draws, prompts)
        cells.append(figure([score(i, image) for i, image in zip(items, made, strict=True)], metric))
    return [f"{first}, then {then} ({metric})", str(len(names)), *cells]


def questions(first: str, answer: str, held: Held, speaker: Speaker) -> list[str]:
    """A row: which contrast the drawing shows."""
    items = list(held[first].values())
    drawn = speaker(speaker.draws, [item["turns"][0].parts for item in items])
    words = QUESTIONS["contrast"][0]
    ways: list[list[Prompt]] = [
        [[item["truth"], words] for item in items],
        [chat(item, image, words) for item, image in zip(items, drawn, strict=True)],
        [[image, words] for image in drawn],
    ]
    cells = [
        figure([float(str(said) == answer) for said in speaker(speaker.says, prompts)], "share")
        for prompts in ways
    ]
    return [f"{first}, then: {words} (share {answer})", str(len(items)), *cells]


def main() -> None:
    """The table of RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--section", default="test")
    parser.add_argument("--model", default="unimedvl_nano")
    options = parsed(parser)
    load_before = load_average()
    tasks = sorted({task for pair in PAIRS for task in pair})
    held: Held = defaultdict(dict)
    for item in AtlasDataset(section=options.section, tasks=tasks, progress=False):
        held[item["task"]][item["id"].split("/", 1)[1]] = item
    speaker = Speaker(options.model)
    cells = [["what", "slices", "alone", "in a dialogue", "a new prompt with the drawing"]]
    for first, then in PAIRS:
        cells.append(edits(first, then, held, speaker))
        print(cells[-1], flush=True)
    for first, answer in ASKED.items():
        cells.append(questions(first, answer, held, speaker))
    about = (
        f"{(__doc__ or '').strip()}\nSlices of section `{options.section}`; edits in {STEPS} steps; alone, a "
        "question is about the true image. Intervals of 95 %: slices resampled."
    )
    report(about, cells, options, load_before)


if __name__ == "__main__":
    main()
