# SPDX-License-Identifier: Apache-2.0
"""What was said and drawn in a dialogue before an edit is asked for: a case has a history, findings, a mask.

Without it an edit is learnt as the first request after its picture, and drawn wrong as the third.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from monai_unimedvl.data.atlas import AtlasDataset
from monai_unimedvl.sequence import Turn

SHARE = 0.4  # of the edits that something came before
DRAWN = 0.4  # of these, where the picture has another edit, that another drawing came before
SAID = 3  # questions with answers or descriptions, at most
HISTORY = 0.5  # share of the preludes with a line that says nothing about the picture
LETTERS = "abcdefghijklmnopqrstuvwxyz"


class Preludes:
    """Dialogues that lead to an edit, from the other entries about the same picture.

    Args:
        dataset: with questions, descriptions or several edits of a picture; else only histories come before.
    """

    def __init__(self, dataset: AtlasDataset) -> None:
        self.dataset = dataset
        self._said: dict[str, list[int]] = defaultdict(list)
        self._drawn: dict[str, list[int]] = defaultdict(list)
        for i, entry in enumerate(dataset.entries):
            if entry.answer is not None:
                self._said[entry.picture.id].append(i)
            elif entry.shown is not None and len(entry.targets) == 1:
                self._drawn[entry.picture.id].append(i)

    def before(
        self, index: int, turns: Sequence[Turn], generator: torch.Generator
    ) -> tuple[list[Turn], bool]:
        """The dialogue of an edit with what came before it, and whether something was drawn before.

        Args:
            index, turns: of the edit in the dataset.
            generator: the same state gives the same dialogue.
        """
        entry = self.dataset.entries[index]
        (given, asked), (drawn, *_) = (turn.parts for turn in turns)
        parts: list[str | Tensor] = [given]
        if _chance(generator) < HISTORY:
            parts.append(history(generator))
        said = self._said[entry.picture.id]
        for i in _some(said, int(torch.randint(SAID + 1, (), generator=generator)), generator):
            words, answer = (turn.parts[-1] for turn in self.dataset[i]["turns"])
            parts += [words, answer]
        others = [i for i in self._drawn[entry.picture.id] if i != index and self._same(i, given)]
        last = [Turn("user", [asked]), Turn("assistant", [drawn])]
        if not others or _chance(generator) >= DRAWN:
            return [Turn("user", [*parts, asked]), last[1]], False
        (other,) = _some(others, 1, generator)
        (_, words), (earlier, *_) = (turn.parts for turn in self.dataset[other]["turns"])
        return [Turn("user", [*parts, words]), Turn("assistant", [earlier]), *last], True

    def _same(self, index: int, given: str | Tensor) -> bool:
        """Whether an edit is of this very picture, not of a blurred one, say."""
        shown = self.dataset[index]["turns"][0].parts[0]
        return isinstance(given, Tensor) and torch.equal(shown, given)


def history(generator: torch.Generator) -> str:
    """A line in words that mean nothing, which a drawing is not to heed."""
    count = int(torch.randint(3, 10, (), generator=generator))
    lengths = torch.randint(2, 9, (count,), generator=generator).tolist()
    words = ["".join(LETTERS[i] for i in torch.randint(26, (n,), generator=generator)) for n in lengths]
    words[count // 2] = str(int(torch.randint(200, (), generator=generator)))
    return f"{'History' if _chance(generator) < 0.5 else words.pop().capitalize()}: {' '.join(words)}."


def _some(found: Sequence[int], count: int, generator: torch.Generator) -> list[int]:
    return [found[i] for i in torch.randperm(len(found), generator=generator)[:count].tolist()]


def _chance(generator: torch.Generator) -> float:
    return float(torch.rand((), generator=generator))
