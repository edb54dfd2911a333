# SPDX-License-Identifier: Apache-2.0
"""What a recipe adds to the time of a picture that the nano answers a question about, or edits.

Opening a file is paid once and shared by its slices, so whole files are taken: all slices or frames of each.
What the first step takes, which opens and decodes them, is measured beside it: that is paid by whoever wants
the pixels at all. Processor time of one thread. A unit is one file for a recipe, one picture for the model.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from _timing import Side, arguments, load_average, report, take_turns

from monai_unimedvl import ImageInferer, TextInferer, load, recipe
from monai_unimedvl.cli.recipes import CASES
from monai_unimedvl.evaluation.benchmarks import EDIT_STEPS
from monai_unimedvl.transforms import Recipe

FILES = {  # of a title of the contact sheets: how all of it is read
    ("mri", "ICBM152 average, T1"): {"policy": "all", "field": "square"},
    ("mri", "20 DICOM slices of a head, PD"): {"policy": "all", "field": "square"},
    ("ct", "head with a defect of the skull"): {"policy": "all", "field": "square"},
    ("xray", "chest"): {"field": "square"},
    ("ultrasound", "echo cine of 120 frames"): {"policy": "all", "field": "square"},
    ("fundus", "retina"): {"field": "square"},
    ("histopathology", "colon, IHC"): {"field": "square"},
}
QUESTION, WORDS = "Which plane is this?", "Segment grey matter, white matter and CSF."
MOST = 0.15  # of the time of a picture


def scan(modality: str, title: str) -> Any:
    """The file of a contact sheet; None where it is not installed."""
    return next(case for case in CASES if (case.modality, case.title) == (modality, title)).find()


def opened(made: Recipe, source: Any) -> Side:
    """The first step of a recipe on a file."""

    def side(tick: Callable[[], None]) -> None:
        tick()
        made.steps[0](source)
        tick()

    return side


def prepare(made: Any, source: Any, count: list[int]) -> Side:
    """A recipe on a file."""

    def side(tick: Callable[[], None]) -> None:
        tick()
        count[:] = [len(made(source))]
        tick()

    return side


def model(infer: Any, network: Any, picture: torch.Tensor, words: str) -> Side:
    """The nano on a picture that is ready."""

    def side(tick: Callable[[], None]) -> None:
        tick()
        infer([[picture, words]], network)
        tick()

    return side


def main() -> None:
    """Every file that is installed."""
    options, busy = arguments(__doc__ or ""), load_average()
    network, tokenizer = load("unimedvl_nano")
    answer, edit = TextInferer(tokenizer), ImageInferer(tokenizer, steps=EDIT_STEPS[0])
    cells = [
        [
            "recipe", "file", "pictures", "recipe, CPU ms a picture", "of it opening the file",
            "answer, CPU ms", "edit, CPU ms", "**recipe to answer**", "**without opening**", "recipe to edit",
        ]
    ]  # fmt: skip
    for (modality, title), settings in FILES.items():
        source = scan(modality, title)
        if source is None:
            continue
        made, count = recipe(modality, **settings), [0]
        picture = made(source)[0].as_tensor()
        sides = {
            "recipe": prepare(made, source, count),
            "open": opened(made, source),
            "answer": model(answer, network, picture, QUESTION),
            "edit": model(edit, network, picture, WORDS),
        }
        watches = take_turns(sides, options.rounds or 3)
        own, bare, asked, edited = (1000 * median(watches[name].cpu) for name in sides)
        own, bare = own / count[0], bare / count[0]
        name = Path(source).name if isinstance(source, str | Path) else "array in HU"
        cells.append(
            [
                modality, name, str(count[0]), f"{own:.1f}", f"{bare:.1f}", f"{asked:.0f}", f"{edited:.0f}",
                f"**{own / asked:.1%}**", f"**{(own - bare) / asked:.1%}**", f"{own / edited:.1%}",
            ]
        )  # fmt: skip
    about = f"Share that a recipe adds to the nano's time of a picture; the aim is {MOST:.0%} at most."
    report(about, cells, options, busy)


if __name__ == "__main__":
    main()
