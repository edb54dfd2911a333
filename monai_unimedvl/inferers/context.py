# SPDX-License-Identifier: Apache-2.0
"""What the model has read: a cache of keys and values with one sample for each prompt, or guidance branch.

`Context.read` can be called again and again: reading in two steps equals reading at once.
  N prompts   S samples of a context
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import Module

from monai_unimedvl.flow import Guidance
from monai_unimedvl.networks.decoder import KVCache
from monai_unimedvl.networks.starts import Bases, bases
from monai_unimedvl.networks.unimedvl import UniMedVL
from monai_unimedvl.sequence import Canvas, Marks, Prompt, Segment, Text, Turn, View, pack, step
from monai_unimedvl.tokenizer import Tokenizer
from monai_unimedvl.transforms.image import Rule
from monai_unimedvl.transforms.segments import ToSegments, dialogue


def segments_for(
    network: UniMedVL, tokenizer: Tokenizer, fit: Literal["matched", "upstream"] = "matched"
) -> ToSegments:
    """The `ToSegments` that fits images to the sizes that `network` was made for (`network.grids`)."""
    canvas = Rule(*network.grids["canvas"])
    return ToSegments(
        tokenizer,
        view=Rule(*network.grids.get("view", network.grids["canvas"])),  # of no use without vision
        canvas=canvas,
        fit=fit,
        max_tokens=network.decoder.max_context,
        view_patch=None if network.vision is None else network.vision.patch_size,
        canvas_patch=network.canvas_stride,
    )


def check_batch(batch: Sequence[Prompt], name: str) -> list[Prompt]:
    """The prompts of a batch; in a dialogue the user has the last word.

    Raises:
        ValueError: a prompt where a list of prompts is needed; a dialogue that ends with the assistant; a
            network instead of prompts.
    """
    if isinstance(batch, Module):
        raise ValueError(f"{name} got a network for its prompts, expected (prompts, network): swap them.")
    prompts = [batch] if isinstance(batch, str | Tensor) else list(batch)  # an iterator too
    if any(isinstance(prompt, str | Tensor | Turn) for prompt in prompts):
        raise ValueError(f"{name} got one prompt, expected a list of prompts: write [prompt].")
    for n, prompt in enumerate(prompts):
        if dialogue(prompt)[-1].role != "user":
            raise ValueError(
                f"Prompt {n} ends with the assistant's turn, expected the user's: add Turn('user', [...])."
            )
    return prompts


class Context:
    """What the model has read, one sample for each prompt.

    Args:
        to_segments: turns prompts into segments; brings the tokenizer and so the marks.
        samples: S.
        capacity: tokens a sample has room for at first; it grows by itself.
    """

    def __init__(
        self, network: UniMedVL, to_segments: ToSegments, *, samples: int, capacity: int = 256
    ) -> None:
        self.network, self.to_segments = network, to_segments
        self.marks: Marks = to_segments.tokenizer.marks  # type: ignore[attr-defined]
        self.cache = KVCache(network.decoder, samples, capacity)
        self.unread: list[list[int]] = [[] for _ in range(samples)]  # ends of answers, see `close`
        self.bases: list[Bases] = [{} for _ in range(samples)]  # what a drawing may start from

    def __len__(self) -> int:
        return len(self.cache.lengths)

    @property
    def positions(self) -> list[int]:
        """The next rotary position of each sample."""
        return self.cache.positions

    @torch.no_grad()
    def read(self, batch: Sequence[Prompt | Sequence[Segment]], *, draw: bool = False) -> None:
        """Read on, in one forward.

        Args:
            batch: a prompt or a list of segments for each of the S samples; an empty one reads nothing.
            draw: images of prompts are read for drawing (as Canvas and View), not for understanding only.

        Raises:
            ValueError: not S prompts; a sample outgrows the context of the model.
        """
        if len(batch) != len(self):
            raise ValueError(
                f"Context got {len(batch)} prompts, expected {len(self)}: pass [] to read nothing."
            )
        self.close()
        samples = self.network.encode([self._segments(part, draw) for part in batch])
        for s, segments in enumerate(samples):
            self.bases[s] = bases(segments, self.bases[s])
        if any(samples):
            weight = self.network.decoder.embed.weight
            seq = pack(samples, self.marks, start=self.positions)
            self.network(seq.to(weight.device), self.cache)

    @torch.no_grad()
    def close(self) -> None:
        """Read what answers have left unread: the last word of one that was cut short, and text_end.

        Only who reads or forks after an answer pays for it; both call this.
        """
        while any(self.unread):
            waiting = [s for s, ids in enumerate(self.unread) if ids]
            words = torch.tensor([self.unread[s].pop(0) for s in waiting])
            words = words.to(self.network.decoder.embed.weight.device)
            self.network(step(words, waiting, [self.positions[s] for s in waiting]), self.cache)

    def forget(self, sample: int) -> None:
        """Let a sample start anew, as if it had read nothing."""
        self.cache.lengths[sample] = self.cache.positions[sample] = 0
        self.unread[sample], self.bases[sample] = [], {}

    def fork(self, indexes: Sequence[int | None]) -> Context:
        """A copy with the named samples, in that order; None is a sample that has read nothing."""
        self.close()
        copy = object.__new__(Context)
        copy.network, copy.to_segments, copy.marks = self.network, self.to_segments, self.marks
        copy.cache = self.cache.fork([0 if i is None else i for i in indexes])
        for s, i in enumerate(indexes):
            if i is None:
                copy.cache.lengths[s] = copy.cache.positions[s] = 0
        copy.unread = [[] for _ in indexes]
        copy.bases = [{} if i is None else dict(self.bases[i]) for i in indexes]
        return copy

    def _segments(self, part: Prompt | Sequence[Segment], draw: bool) -> list[Segment]:
        if all(isinstance(segment, Text | View | Canvas) for segment in part):
            return list(part)  # type: ignore[arg-type]
        return self.to_segments(part, draw=draw, history=True)


class Branches:
    """N prompts, and what guidance compares them with: the same without the last text, and without images.

    All are samples of one `context`: N full ones, then N without their last text, then N with texts only; the
    latter two as far as guidance needs them. What branches share is computed once.
    Unlike the reference (reference.md 8.4), an image after the last text belongs to both of the first two, so
    text guidance acts whatever the order of image and text.

    Args:
        prompts: N.
        guidance: decides which branches there are; None for text without drawing.
    """

    def __init__(
        self, network: UniMedVL, to_segments: ToSegments, *, prompts: int, guidance: Guidance | None = None
    ) -> None:
        text, image = (False, False) if guidance is None else (guidance.text > 1, guidance.image > 1)
        self.prompts = prompts
        self.count = 1 + text + (text and image)  # image guidance acts only while text guidance does
        self.context = Context(network, to_segments, samples=prompts * self.count)

    @property
    def full(self) -> range:
        """The samples of the context that hold everything."""
        return range(self.prompts)

    def read(self, batch: Sequence[Sequence[Segment]]) -> None:
        """Read on: N lists of segments."""
        if self.count == 1:
            return self.context.read(batch)
        last = [
            max((i for i, part in enumerate(parts) if isinstance(part, Text)), default=-1) for parts in batch
        ]
        nothing: list[list[Segment]] = [[] for _ in range(self.prompts * (self.count - 1))]
        first = [parts[: max(i, 0)] for parts, i in zip(batch, last, strict=True)]
        self.context.read(first + nothing)
        self.branch([i >= 0 for i in last])
        rest = [list(parts[max(i, 0) :]) for parts, i in zip(batch, last, strict=True)]
        wordless = [[part for part in parts if not isinstance(part, Text)] for parts in rest]
        texts = [[part for part in parts if isinstance(part, Text)] for parts in batch]
        self.context.read([*rest, *wordless, *texts][: len(self.context)])
        return None

    def branch(self, speaking: Sequence[bool] | None = None) -> None:
        """Before new words: the branch without text becomes what has been read so far.

        Args:
            speaking: which of the N prompts get new words; None for all.
        """
        if self.count == 1:
            return
        n = self.prompts
        without = [s if speaking is None or speaking[s] else n + s for s in self.full]
        self.context = self.context.fork([*self.full, *without, *range(2 * n, n * self.count)])

    def repeat(self, texts: Sequence[Tensor]) -> None:
        """Tell the branch without images what was said in the full one: N tensors of ids (n,)."""
        if self.count == 3:
            nothing: list[Any] = [[] for _ in range(2 * self.prompts)]
            self.context.read(nothing + [[Text(ids)] for ids in texts])
