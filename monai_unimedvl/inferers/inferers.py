# SPDX-License-Identifier: Apache-2.0
"""Prompts in, answers out; and what every inferer of prompts shares.

A prompt is `list[str | Tensor]`, images (3, H, W) in [0, 1]; a dialogue is `list[Turn]`; a batch is a list of
prompts. Each prompt has its own chance, so its result is the same alone or in a batch.
"""

from __future__ import annotations

import operator
from collections.abc import Generator, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from monai.inferers import Inferer

from monai_unimedvl.inferers.context import Context, check_batch, segments_for
from monai_unimedvl.inferers.prefixes import Prefixes
from monai_unimedvl.inferers.sampling import Sampling, Word, words
from monai_unimedvl.networks.unimedvl import UniMedVL
from monai_unimedvl.sequence import Prompt, Segment, Text
from monai_unimedvl.tokenizer import Tokenizer
from monai_unimedvl.transforms.pruning import PruneTokens
from monai_unimedvl.transforms.segments import ToSegments

# The system prompts of UniMedVL (reference.md 8.4), character by character.
THINK_TO_ANSWER = (
    "You should first think about the reasoning process in the mind and then provide the user with the"
    " answer.\nThe reasoning process is enclosed within <think> </think> tags, i.e. <think> reasoning"
    " process here </think> answer here"
)
THINK_TO_DRAW = (
    "You should first think about the planning process in your mind, and then generate the image.\n"
    "The planning process is enclosed within <think> </think> tags; that is, <think> planning process here"
    " </think> image here.\n"
)


@dataclass(frozen=True)
class Answer:
    """What the model said; `str(answer)` is the text.

    Args:
        ids: of the words, without marks.
        logprobs: natural log-probability of each id under the model itself, before temperature and the like.
        stop_reason: "end" (the model finished), "length" (max_new_tokens), "context" (no room left).
    """

    text: str
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    stop_reason: str

    def __str__(self) -> str:
        return self.text


class PromptInferer(Inferer):
    """What the inferers of prompts share: tokenizer, choice of words, chance; not to be called itself.

    `seed` is an integer, the same for each prompt of a batch, or one for each. With `generator` seeds are
    drawn from it anew at each call. `drawn_from` has the seed of each prompt of the last call: an inferer
    with that `seed` makes the same.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        to_segments: ToSegments | None = None,
        fit: Literal["matched", "upstream"] = "matched",
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        repetition_penalty: float = 1.0,
        seed: int | Sequence[int] = 0,
        generator: torch.Generator | None = None,
        think: bool = False,
        progress: bool = False,
        prune: PruneTokens | None = None,
    ) -> None:
        super().__init__()
        self.tokenizer, self.to_segments, self.fit = tokenizer, to_segments, fit
        self.sampling = Sampling(max_new_tokens, temperature, top_k, top_p, repetition_penalty)
        self.seed, self.generator = _seeds(seed), generator
        self.drawn_from: tuple[int, ...] = ()
        self.think, self.progress, self.prune = think, progress, prune

    def _segmenter(self, network: UniMedVL) -> ToSegments:
        if not hasattr(network, "grids"):
            raise ValueError(
                f"{type(self).__name__} got a {type(network).__name__} for its network, expected (prompts, "
                "network) with a UniMedVL: correct the order, and give what a wrapper holds (network.module)."
            )
        found = self.to_segments or segments_for(network, self.tokenizer, self.fit)
        if self.prune is not None:
            found = copy(found)
            found.prune = self.prune
        return found

    def _generators(self, count: int) -> list[torch.Generator]:
        """A generator on the CPU for each prompt."""
        if self.generator is not None:
            limits = {"low": 0, "high": 2**62, "size": (count,)}
            seeds = torch.randint(**limits, generator=self.generator, device=self.generator.device).tolist()
        elif isinstance(self.seed, int):
            seeds = [self.seed] * count
        else:
            seeds = list(self.seed)
            if len(seeds) != count:
                raise ValueError(
                    f"Got {len(seeds)} seeds for {count} prompts, expected one for each, or one integer."
                )
        self.drawn_from = tuple(seeds)
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    def _system(self, prompt: str) -> list[Segment]:
        return [Text(self.tokenizer.encode(prompt))] if self.think else []

    def _answers(
        self, context: Context, generators: Sequence[torch.Generator], samples: Sequence[int] | None = None
    ) -> list[Answer]:
        """One answer for each of `samples`; the context goes on with them."""
        order = list(range(len(context)) if samples is None else samples)
        said: dict[int, list[Word]] = {s: [] for s in order}
        loop = words(context, self.sampling, generators, order)
        for step in shown(loop, self.progress, self.sampling.max_new_tokens, "words"):
            for word in step:
                said[word.sample].append(word)
        return [_answer(self.tokenizer, said[s]) for s in order]


def _seeds(given: Any) -> int | tuple[int, ...]:
    """A whole number, or several, of any library.

    Raises:
        ValueError: something else.
    """
    try:
        return operator.index(given)
    except TypeError:
        pass
    try:
        return tuple(map(operator.index, given))
    except TypeError as error:
        raise ValueError(
            f"seed is {given!r}, expected a whole number, or one for each prompt: change it, or give a "
            "torch.Generator as generator."
        ) from error


class TextInferer(PromptInferer):
    """Batch of prompts -> answers. What prompts begin alike with, such as an image, is read once.

    Args:
        tokenizer: of the network.
        to_segments: how prompts become segments; by default images are fitted to the network's own sizes.
        fit: "matched", or "upstream" for the reference's way of resizing.
        max_new_tokens, temperature, top_k, top_p, repetition_penalty: see `Sampling`; greedy by default.
        seed, generator: chance of sampled words: an integer, one for each prompt, or a generator.
        think: ask the model to reason first; the reasoning is part of the answer's text.
        progress: show a bar.
        prune: `PruneTokens()` drops tokens of neighbouring slices that repeat each other.

    Example::

        answer, = TextInferer(tokenizer)([[image, "Which plane is this?"]], network)
    """

    def __call__(  # type: ignore[override]
        self, batch: Sequence[Prompt], network: UniMedVL, *args: Any, **kwargs: Any
    ) -> list[Answer]:
        """An answer for each prompt.

        Raises:
            ValueError: an empty prompt, an image that is no (3, H, W) in [0, 1], a prompt longer than the
                context, an image for a network without vision.
        """
        context = self._read(check_batch(batch, "TextInferer"), network)
        return self._answers(context, self._generators(len(context)))

    def stream(self, prompt: Prompt, network: UniMedVL) -> Generator[str, None, Answer]:
        """The answer to one prompt in pieces as it comes; put together they are its text.

        A piece never ends within a character. The `Answer` is the value of the generator.
        """
        context = self._read([prompt], network)
        said: list[Word] = []
        waiting: list[int] = []
        for step in words(context, self.sampling, self._generators(1)):
            said += step
            waiting += [word.id for word in step if word.id is not None]
            piece = self.tokenizer.decode(waiting)
            if piece and not piece.endswith("\ufffd"):  # an unfinished character
                yield piece
                waiting = []
        if waiting and (piece := self.tokenizer.decode(waiting)):
            yield piece
        return _answer(self.tokenizer, said)

    def _read(self, batch: Sequence[Prompt], network: UniMedVL) -> Context:
        segmenter = self._segmenter(network)
        context = Context(network, segmenter, samples=len(batch))
        system = self._system(THINK_TO_ANSWER)
        prompts = [
            [*system, *segmenter(prompt, history=True)] for prompt in check_batch(batch, "TextInferer")
        ]
        Prefixes(context).read(dict(enumerate(prompts)))
        return context


def _answer(tokenizer: Tokenizer, said: Sequence[Word]) -> Answer:
    spoken = [word for word in said if word.id is not None]
    ids = tuple(word.id for word in spoken if word.id is not None)
    return Answer(
        tokenizer.decode(ids),
        ids,
        tuple(word.logprob for word in spoken),
        (said[-1].stop or "") if said else "",
    )


def shown(loop: Iterator[Any], progress: bool, total: int, unit: str) -> Iterator[Any]:
    """The loop itself, with a bar if asked for."""
    if not progress:
        return loop
    from tqdm import tqdm

    return iter(tqdm(loop, total=total, unit=f" {unit}", leave=False))
