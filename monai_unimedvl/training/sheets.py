# SPDX-License-Identifier: Apache-2.0
"""The same cases drawn again and again while a network learns: sheets of source, drawing and truth.

`Sheets` draws and writes them, for whoever trains; as a handler it works in MONAI's engines, and
`callbacks.Pictures` is its Lightning side. Sheets are marked as synthetic.
  H rows   W columns of one picture
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import Tensor

from monai_unimedvl.atomic import write
from monai_unimedvl.inferers import ImageInferer
from monai_unimedvl.networks.unimedvl import UniMedVL
from monai_unimedvl.provenance import Facts, save_image
from monai_unimedvl.sequence import Prompt, Turn
from monai_unimedvl.tokenizer import Tokenizer
from monai_unimedvl.transforms.image import resize
from monai_unimedvl.transforms.segments import dialogue
from monai_unimedvl.transforms.squares import squared


@dataclass(frozen=True)
class Case:
    """What is drawn: a prompt, and the true picture (3, H, W) where there is one."""

    prompt: Prompt
    truth: Tensor | None = None


class Sheets:
    """Draws its cases, one row each: source, drawing, truth.

    In MONAI: a handler of the evaluator, which draws after each validation; `exec_at_start` of
    ValidationHandler makes the sheet of the untrained network.

    Args:
        cases: what is drawn; dialogues under "turns" of a dataset's items do as well, those that end with an
            answer in words are left out, and of the others the first `count` are taken.
        folder: where `NAME-000000.png` and `rows.txt` go.
        steps: network evaluations of a drawing.
        square: pad pictures to squares, as `ToSegments(square=True)` does in training.
    """

    def __init__(
        self, tokenizer: Tokenizer, cases: Sequence[Case | Mapping[str, Any]], folder: str | Path, *,
        count: int = 6, steps: int = 8, seed: int = 0, square: bool = False,
    ) -> None:  # fmt: skip
        self.cases: list[Case] = []
        for place in range(len(cases)):  # MONAI's cached datasets begin anew after their last item
            if len(self.cases) == count:
                break
            given = cases[place]
            case = given if isinstance(given, Case) else _case_of(given["turns"])
            if case is not None:
                self.cases.append(_squared(case) if square else case)
        self.folder, self.steps, self.seed = Path(folder), steps, seed
        self.inferer = ImageInferer(tokenizer, steps=steps, seed=seed)
        self._drawn = 0

    def attach(self, engine: Engine) -> None:
        """Draw after each run of an evaluator; numbers count the runs."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Draw and write the next sheet."""
        self.write(engine.network, self._drawn, "validation")  # type: ignore[attr-defined]
        self._drawn += 1

    def draw(self, network: UniMedVL) -> Tensor:
        """(3, cases * H, 3 * W) in [0, 1]; what a case does not have is black."""
        was_training = network.training
        network.eval()
        rows = []
        for case in self.cases:
            (drawn,) = self.inferer([case.prompt], network)
            drawn = drawn.detach().float().cpu().clamp(0, 1)
            source = next((part for part in _parts(case.prompt) if isinstance(part, Tensor)), None)
            rows.append(torch.cat([_like(x, drawn) for x in (source, drawn, case.truth)], dim=2))
        network.train(was_training)
        return torch.cat(rows, dim=1)

    def write(self, network: UniMedVL, number: int, name: str = "step") -> Tensor | None:
        """Draw, write `NAME-NUMBER.png` and what its rows are; returns the sheet, None without cases."""
        return self.keep(self.draw(network), number, name) if self.cases else None

    def keep(self, sheet: Tensor, number: int, name: str = "step") -> Tensor:
        """Write a sheet that is drawn."""
        words = [_words(case.prompt) for case in self.cases]
        facts = Facts(
            prompt=" | ".join(words), seed=self.seed, weights=f"{name} {number} of a training run",
            task="training samples", steps=self.steps,
        )  # fmt: skip
        save_image(sheet, self.folder / f"{name}-{number:06d}.png", facts)
        rows = "\n".join(f"{n}. {said}" for n, said in enumerate(words, 1))
        write(self.folder / "rows.txt", f"Columns: source, drawing, truth. Rows:\n{rows}\n")
        return sheet


def _case_of(turns: Sequence[Turn]) -> Case | None:
    """The case of a dialogue that ends with a picture."""
    last = [part for part in turns[-1].parts if isinstance(part, Tensor)]
    return Case(list(turns[:-1]), last[-1]) if last else None


def _squared(case: Case) -> Case:
    truth = [] if case.truth is None else [case.truth]
    *turns, last = squared([*dialogue(case.prompt), Turn("assistant", truth)])
    return Case(turns, next((part for part in last.parts if isinstance(part, Tensor)), None))


def _like(image: Tensor | None, drawn: Tensor) -> Tensor:
    """The picture at the size of a drawing."""
    if image is None:
        return torch.zeros_like(drawn)
    height, width = drawn.shape[1:]
    return torch.as_tensor(resize(image.float().cpu(), (width, height), (0.0, 1.0))).to(drawn)


def _parts(prompt: Prompt) -> list[str | Tensor]:
    found: list[str | Tensor] = []
    for part in prompt:
        found += part.parts if isinstance(part, Turn) else [part]
    return found


def _words(prompt: Prompt) -> str:
    return " ".join(part for part in _parts(prompt) if isinstance(part, str))
